"""Subcloning, then hidden states and scores of the teacher.

Run after ``clip4clip_toy-videos.py``::

    python tools/train.py \
        configs/quickstart/transmamba_clip4clip_videomamba_toy-videos.py

Expect 17 to 27 % t2v/R@1 (3 seeds, AMD EPYC,
``docs/results/arena/toy_videos``), 7.0 ± 6.6 more than subcloning alone.
"""

_base_ = [
    './videomamba_scratch_toy-videos.py',
    '../_base_/teachers/clip4clip_toy.py',
    '../_base_/methods/transmamba.py',
]

model = dict(
    _delete_=True,
    type='transmamba.TransMambaDistill',
    architecture=_base_.model,
    teacher=_base_.teacher,
    teacher_ckpt='work_dirs/clip4clip_toy-videos/epoch_20.pth',
    **_base_.transmamba_shallow,
)
custom_hooks = [
    dict(type='transmamba.SubcloneInitializer', **_base_.subcloning)
]
