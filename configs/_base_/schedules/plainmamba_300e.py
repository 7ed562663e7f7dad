"""PlainMamba's own ImageNet recipe, 300 epochs.

Settings of the released configs of PlainMamba-L2 and -L3: a learning rate of
5e-4 per 512 images, here 2e-3 for 8 GPUs x 256; 20 epochs of warm-up, cosine
to 1 % of the peak, gradients clipped at 1. An EMA of the weights
(``ema_hook``) is part of them.
"""

_base_ = './adamw_cosine_300e.py'

optim_wrapper = dict(
    optimizer=dict(lr=5e-4 * 2048 / 512), clip_grad=dict(max_norm=1.0)
)

param_scheduler = [
    dict(_base_.param_scheduler[0], start_factor=1e-3, end=20),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=0.01,
        by_epoch=True,
        begin=20,
        end=300,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(base_batch_size=2048)
