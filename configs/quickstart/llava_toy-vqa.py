"""The teacher: a small LLaVA on 6,000 toy images with 18,000 questions.

Run (about five minutes on one core)::

    python tools/dataset_converters/make_toy_vqa.py data/toy_vqa
    python tools/train.py configs/quickstart/llava_toy-vqa.py

Expect about 72 % right answers with seed 0. The students read
``work_dirs/llava_toy-vqa/epoch_12.pth``.
"""

_base_ = [
    '../_base_/teachers/llava_toy.py',
    '../_base_/datasets/toy_vqa.py',
    '../_base_/schedules/toy_vqa_adamw_cosine.py',
    '../_base_/default_runtime.py',
]
model = _base_.teacher
param_scheduler = [
    dict(_base_.param_scheduler[0], end=12),
    _base_.param_scheduler[1],
]
train_cfg = dict(max_epochs=12, val_interval=12)
default_hooks = dict(checkpoint=dict(interval=12))
