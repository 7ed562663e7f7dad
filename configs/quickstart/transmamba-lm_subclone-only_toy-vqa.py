"""Stage one alone: LLaMA into Mamba, vision tower and projector copied.

Run after ``llava_toy-vqa.py``::

    python tools/train.py \
        configs/quickstart/transmamba-lm_subclone-only_toy-vqa.py

Expect 39 to 44 % right answers (3 seeds, AMD EPYC,
``docs/results/arena/toy_vqa``).
"""

_base_ = [
    './transmamba-lm_scratch_toy-vqa.py',
    '../_base_/teachers/llava_toy.py',
]

custom_hooks = [
    dict(
        type='transmamba.SubcloneInitializer',
        teacher_ckpt='work_dirs/llava_toy-vqa/epoch_12.pth',
        teacher=_base_.teacher,
        **_base_.subcloning,
    ),
]
