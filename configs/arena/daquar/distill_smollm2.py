"""The same, with the teacher in stage two as well.

Run after ``teacher_smollm2.py``::

    python tools/train.py configs/arena/daquar/distill_smollm2.py
"""

_base_ = [
    './student_smollm2.py',
    '../../_base_/teachers/llava_smollm2_135m.py',
    '../../_base_/methods/transmamba.py',
]

model = dict(
    _delete_=True,
    type='transmamba.TransMambaDistill',
    architecture=_base_.model,
    teacher=_base_.teacher,
    teacher_ckpt='work_dirs/teacher_smollm2/epoch_2.pth',
    **_base_.transmamba_answers,
)
# As a teacher it is in bfloat16.
model['teacher']['lang_encoder'] = dict(
    model['teacher']['lang_encoder'], dtype='bfloat16'
)
# A long turn of the mixers, as measured best on toy questions.
model['distiller']['phases'][0].update(end=0.4, lr_mult=2.0)
custom_hooks = [
    dict(type='transmamba.SubcloneInitializer', **_base_.subcloning)
]
