"""Stage one alone: the student starts from the teacher's weights.

Run after ``deit_digits.py``::

    python tools/train.py configs/quickstart/pmamba_subclone-only_digits.py

Expect 91.5 to 93.6 % top-1 (means over seeds on three processors, ``make
quickstart``).
"""

_base_ = './pmamba_scratch_digits.py'

custom_hooks = [
    dict(
        type='transmamba.SubcloneInitializer',
        teacher_ckpt='work_dirs/deit_digits/epoch_60.pth',
    ),
]
