"""The same, from the teacher's weights: stage one alone.

Run after ``teacher_smollm2.py``::

    python tools/train.py configs/arena/daquar/subclone_smollm2.py
"""

_base_ = [
    './student_smollm2.py',
    '../../_base_/teachers/llava_smollm2_135m.py',
]

custom_hooks = [
    dict(
        type='transmamba.SubcloneInitializer',
        teacher_ckpt='work_dirs/teacher_smollm2/epoch_2.pth',
        teacher=_base_.teacher,
        **_base_.subcloning,
    ),
]
