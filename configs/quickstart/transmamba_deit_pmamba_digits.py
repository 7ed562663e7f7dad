"""TransMamba: subcloning, mixers, then hidden states and logits.

Run after ``deit_digits.py``::

    python tools/transfer_plan.py \
        configs/quickstart/transmamba_deit_pmamba_digits.py
    python tools/train.py configs/quickstart/transmamba_deit_pmamba_digits.py

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
    **_base_.transmamba,
)
custom_hooks = [dict(type='transmamba.SubcloneInitializer')]
