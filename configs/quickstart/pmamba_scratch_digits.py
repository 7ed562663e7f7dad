"""A PlainMamba from scratch on 20 % of the digits, 259 images.

Run (about 10 seconds on one core)::

    python tools/train.py configs/quickstart/pmamba_scratch_digits.py

Expect 68 to 74 % top-1 (means over seeds on three processors, ``make
quickstart``).
"""

_base_ = [
    '../_base_/models/pmamba_digits.py',
    '../_base_/datasets/digits_16.py',
    '../_base_/schedules/digits_adamw_cosine.py',
    '../_base_/default_runtime.py',
]

default_hooks = dict(distill_monitor=dict(interval=5))

# 20 %: 259 labelled images, 25 or 26 of each digit.
train_dataloader = dict(dataset=dict(fraction=0.2))
