"""The same, with a teacher in stage two.

Run after ``teacher_vit-tiny.py``::

    python tools/train.py configs/arena/tiny-imagenet/distill_vim.py
"""

_base_ = [
    './student_vim.py',
    '../../_base_/teachers/vit_tiny_timm_96.py',
    '../../_base_/methods/transmamba.py',
]

model = dict(
    _delete_=True,
    type='transmamba.TransMambaDistill',
    architecture=_base_.model,
    teacher=_base_.teacher,
    teacher_ckpt='work_dirs/teacher_vit-tiny/epoch_3.pth',
    **_base_.transmamba,
)
custom_hooks = [dict(type='transmamba.SubcloneInitializer')]
