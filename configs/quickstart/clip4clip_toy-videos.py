_base_ = [
    '../_base_/teachers/clip4clip_toy.py',
    '../_base_/datasets/toy_videos.py',
    '../_base_/schedules/toy_adamw_cosine.py',
    '../_base_/default_runtime.py',
]
model = _base_.teacher
param_scheduler = [dict(_base_.param_scheduler[0], end=60)]
train_cfg = dict(max_epochs=60, val_interval=5)
default_hooks = dict(checkpoint=dict(interval=60))
