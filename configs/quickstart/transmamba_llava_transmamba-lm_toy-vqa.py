"""Subcloning, the mixers' turn, then hidden states and soft logits.

Run after ``llava_toy-vqa.py``::

    python tools/train.py \
        configs/quickstart/transmamba_llava_transmamba-lm_toy-vqa.py

Expect 54 to 59 % right answers (3 seeds, AMD EPYC,
``docs/results/arena/toy_vqa``).
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
    teacher_ckpt='work_dirs/llava_toy-vqa/epoch_12.pth',
    **_base_.transmamba_answers,
)
# A long turn of the mixers, and four times the learning rate that was better
# after subcloning alone.
model['distiller']['phases'][0].update(end=0.4, lr_mult=2.0)
optim_wrapper = dict(optimizer=dict(lr=8e-3))
custom_hooks = [
    dict(type='transmamba.SubcloneInitializer', **_base_.subcloning)
]
