"""The same, from the teacher's weights: stage one alone.

Run after ``teacher_vit-tiny.py``::

    python tools/train.py configs/arena/msrvtt-frames/subclone_videomamba.py
"""

_base_ = [
    './student_videomamba.py',
    '../../_base_/teachers/vit_tiny_minilm_96.py',
]

custom_hooks = [
    dict(
        type='transmamba.SubcloneInitializer',
        teacher_ckpt='work_dirs/teacher_vit-tiny_msrvtt/epoch_10.pth',
        teacher=_base_.teacher,
        **_base_.subcloning,
    ),
]
