"""The teacher: a small LLaVA on 6,000 toy images with 18,000 questions.

Run (about three minutes on one core)::

    python tools/dataset_converters/make_toy_vqa.py data/toy_vqa
    python tools/train.py configs/quickstart/llava_toy-vqa.py
"""

_base_ = [
    '../_base_/teachers/llava_toy.py',
    '../_base_/datasets/toy_vqa.py',
    '../_base_/schedules/toy_vqa_adamw_cosine.py',
    '../_base_/default_runtime.py',
]
model = _base_.teacher
default_hooks = dict(checkpoint=dict(interval=5))
