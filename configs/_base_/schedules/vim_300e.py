"""Vim's own ImageNet recipe, 300 epochs.

Settings of the released training scripts of Vim-tiny: a learning rate of 5e-4
per 512 images, here 1e-3 for 8 GPUs x 128; 5 epochs of warm-up from 1e-6,
cosine to 1e-5, weight decay 0.1, of the state space as well, gradients not
clipped. Repeated augmentation (``RepeatAugSampler``) and an EMA of the
weights (``ema_hook``) are part of them.
"""

_base_ = './adamw_cosine_300e.py'

optim_wrapper = dict(
    optimizer=dict(lr=5e-4 * 1024 / 512, weight_decay=0.1),
    paramwise_cfg=dict(role_decay_mult=dict(A=1.0)),
    clip_grad=None,
)

# From 1e-6 as there, which is another part of the peak.
param_scheduler = [
    dict(_base_.param_scheduler[0], start_factor=1e-3),
    _base_.param_scheduler[1],
]

ema_hook = dict(momentum=4e-5)

auto_scale_lr = dict(base_batch_size=1024)
