"""TransMamba: subcloning, then hidden states and logits of the teacher.

Run after ``deit_digits.py``::

    python tools/transfer_plan.py \
        configs/quickstart/transmamba_deit_pmamba_digits.py
    python tools/train.py configs/quickstart/transmamba_deit_pmamba_digits.py

Expect 96 to 98 % top-1 (3 seeds, AMD EPYC, ``make quickstart``); subcloning
alone has 93 to 95 % there.
"""

_base_ = [
    './pmamba_scratch_digits.py',
    '../_base_/teachers/deit_digits.py',
    '../_base_/methods/transmamba.py',
]

model = dict(
    _delete_=True,
    type='transmamba.TransMambaDistill',
    architecture=_base_.model,
    teacher=_base_.teacher,
    teacher_ckpt='work_dirs/deit_digits/epoch_60.pth',
    **_base_.transmamba_shallow,
)
custom_hooks = [dict(type='transmamba.SubcloneInitializer')]
# Hidden states hold what was copied: four times the rate is best.
optim_wrapper = dict(optimizer=dict(lr=8e-3))
