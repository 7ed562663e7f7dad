"""The same, from the teacher's weights: stage one alone.

Run after ``teacher_vit.py``::

    python tools/train.py configs/arena/cifar10/subclone_vim.py
"""

_base_ = './student_vim.py'

custom_hooks = [
    dict(
        type='transmamba.SubcloneInitializer',
        teacher_ckpt='work_dirs/teacher_vit/epoch_9.pth',
    ),
]
