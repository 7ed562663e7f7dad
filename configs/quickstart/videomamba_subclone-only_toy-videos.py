"""Stage one alone: vision tower into VideoMamba, text tower and head copied.

Run after ``clip4clip_toy-videos.py``::

    python tools/train.py \
        configs/quickstart/videomamba_subclone-only_toy-videos.py

Expect 12 to 19 % t2v/R@1 (3 seeds, AMD EPYC,
``docs/results/arena/toy_videos``).
"""

_base_ = [
    './videomamba_scratch_toy-videos.py',
    '../_base_/teachers/clip4clip_toy.py',
]

custom_hooks = [
    dict(
        type='transmamba.SubcloneInitializer',
        teacher_ckpt='work_dirs/clip4clip_toy-videos/epoch_20.pth',
        teacher=_base_.teacher,
        **_base_.subcloning,
    ),
]
