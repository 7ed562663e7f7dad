"""A Mamba that answers questions, from scratch, on a quarter of the images.

Run (about half a minute on one core)::

    python tools/train.py configs/quickstart/transmamba-lm_scratch_toy-vqa.py

Expect 33 to 40 % right answers (3 seeds, AMD EPYC,
``docs/results/arena/toy_vqa``).
"""

_base_ = [
    '../_base_/models/llava_toy.py',
    '../_base_/datasets/toy_vqa.py',
    '../_base_/schedules/toy_vqa_adamw_cosine.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(dataset=dict(fraction=0.25))
default_hooks = dict(checkpoint=dict(interval=5))
