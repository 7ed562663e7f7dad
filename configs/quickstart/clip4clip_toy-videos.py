"""The teacher: a small CLIP4Clip on 2,000 toy videos.

Run (about four minutes on one core)::

    python tools/dataset_converters/make_toy_videos.py data/toy_videos
    python tools/train.py configs/quickstart/clip4clip_toy-videos.py

Expect about 44 % t2v/R@1 of 200 clips with seed 0. The students read
``work_dirs/clip4clip_toy-videos/epoch_20.pth``.
"""

_base_ = [
    '../_base_/teachers/clip4clip_toy.py',
    '../_base_/datasets/toy_videos.py',
    '../_base_/schedules/toy_adamw_cosine.py',
    '../_base_/default_runtime.py',
]
model = _base_.teacher
param_scheduler = [dict(_base_.param_scheduler[0], end=20)]
train_cfg = dict(max_epochs=20, val_interval=5)
default_hooks = dict(checkpoint=dict(interval=20))
