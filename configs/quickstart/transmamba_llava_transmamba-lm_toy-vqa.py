"""Subcloning, then stage two.

Run after ``llava_toy-vqa.py``::

    python tools/train.py \
        configs/quickstart/transmamba_llava_transmamba-lm_toy-vqa.py
"""

_base_ = [
    './transmamba-lm_scratch_toy-vqa.py',
    '../_base_/teachers/llava_toy.py',
    '../_base_/methods/transmamba.py',
]

model = dict(
    _delete_=True,
    type='transmamba.TransMambaDistill',
    architecture=_base_.model,
    teacher=_base_.teacher,
    teacher_ckpt='work_dirs/llava_toy-vqa/epoch_5.pth',
    **_base_.transmamba_answers,
)
custom_hooks = [
    dict(type='transmamba.SubcloneInitializer', **_base_.subcloning)
]
