"""The same, from the teacher's weights: stage one alone.

Run after ``teacher_vit-tiny.py``::

    python tools/train.py configs/arena/tiny-imagenet/subclone_vim.py
"""

_base_ = './student_vim.py'

custom_hooks = [
    dict(
        type='transmamba.SubcloneInitializer',
        teacher_ckpt='work_dirs/teacher_vit-tiny/epoch_3.pth',
    ),
]
