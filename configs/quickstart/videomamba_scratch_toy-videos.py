"""A VideoMamba from scratch on a quarter of the toy videos, 500 clips.

Run (less than a minute on one core)::

    python tools/train.py configs/quickstart/videomamba_scratch_toy-videos.py

Expect 2 % t2v/R@1 (3 seeds, AMD EPYC,
``docs/results/arena/toy_videos``).
"""

_base_ = [
    '../_base_/models/videomamba_toy.py',
    '../_base_/datasets/toy_videos.py',
    '../_base_/schedules/toy_adamw_cosine.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(dataset=dict(fraction=0.25))
