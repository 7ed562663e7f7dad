"""VideoMamba's own ImageNet recipe, 300 epochs.

Settings of the released training script of VideoMamba-Ti: a learning rate of
5e-4 per 512 images, here 4e-3 for 8 GPUs x 512; 5 epochs of warm-up from 1e-6,
cosine to 1e-5, weight decay 0.1, of the state space as well, gradients clipped
at 5. No EMA of the weights.
"""

_base_ = './vim_300e.py'

optim_wrapper = dict(
    optimizer=dict(lr=5e-4 * 4096 / 512),
    clip_grad=dict(_delete_=True, max_norm=5.0),
)

param_scheduler = [
    dict(_base_.param_scheduler[0], start_factor=2.5e-4),
    _base_.param_scheduler[1],
]

auto_scale_lr = dict(base_batch_size=4096)
