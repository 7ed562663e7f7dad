"""VMamba's own ImageNet recipe, 300 epochs, which is Swin's.

Settings of the released configs: a learning rate of 5e-4 per 512 images, here
1e-3 for 8 GPUs x 128; 20 epochs of warm-up from 5e-7, cosine to 5e-6, weight
decay 0.05 of all but vectors and biases, so of the state space as well,
gradients clipped at 5. An EMA of the weights (``ema_hook``) is part of them.
"""

_base_ = './adamw_cosine_300e.py'

optim_wrapper = dict(
    optimizer=dict(lr=5e-4 * 1024 / 512),
    paramwise_cfg=dict(role_decay_mult=dict(A=1.0, dt_bias=1.0)),
)

param_scheduler = [
    dict(_base_.param_scheduler[0], start_factor=5e-4, end=20),
    dict(_base_.param_scheduler[1], eta_min=5e-6, begin=20),
]

auto_scale_lr = dict(base_batch_size=1024)
