"""Plain logits distillation into a freshly initialised student.

Run after ``deit_digits.py``::

    python tools/train.py configs/quickstart/logits-kd_deit_pmamba_digits.py

Expect 66 to 70 % top-1 (means over seeds on three processors, ``make
quickstart``).
"""

_base_ = [
    './pmamba_scratch_digits.py',
    '../_base_/teachers/deit_digits.py',
    '../_base_/methods/logits_kd.py',
]

model = dict(
    _delete_=True,
    type='transmamba.TransMambaDistill',
    architecture=_base_.model,
    teacher=_base_.teacher,
    teacher_ckpt='work_dirs/deit_digits/epoch_60.pth',
    distiller=dict(
        type='transmamba.MethodDistiller', methods=[_base_.logits_kd]
    ),
)
