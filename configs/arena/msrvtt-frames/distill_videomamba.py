"""The same, with the teacher in stage two as well.

Run after ``teacher_vit-tiny.py``::

    python tools/train.py configs/arena/msrvtt-frames/distill_videomamba.py
"""

_base_ = [
    './student_videomamba.py',
    '../../_base_/teachers/vit_tiny_minilm_96.py',
    '../../_base_/methods/transmamba.py',
]

model = dict(
    _delete_=True,
    type='transmamba.TransMambaDistill',
    architecture=_base_.model,
    teacher=_base_.teacher,
    teacher_ckpt='work_dirs/teacher_vit-tiny_msrvtt/epoch_10.pth',
    **_base_.transmamba,
)
custom_hooks = [
    dict(type='transmamba.SubcloneInitializer', **_base_.subcloning)
]
