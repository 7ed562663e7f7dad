"""The same, with a teacher in stage two.

Run after ``teacher_vit.py``::

    python tools/train.py configs/arena/cifar10/distill_vim.py
"""

_base_ = [
    './student_vim.py',
    '../../_base_/teachers/vit_64x4_24.py',
    '../../_base_/methods/transmamba.py',
]

model = dict(
    _delete_=True,
    type='transmamba.TransMambaDistill',
    architecture=_base_.model,
    teacher=_base_.teacher,
    teacher_ckpt='work_dirs/teacher_vit/epoch_9.pth',
    **_base_.transmamba_shallow,
)
custom_hooks = [dict(type='transmamba.SubcloneInitializer')]
