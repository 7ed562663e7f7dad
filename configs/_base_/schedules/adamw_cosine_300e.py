"""AdamW, 300 epochs, cosine decay after a linear warm-up.

The paper states AdamW, 300 epochs and a learning rate of 5e-4; the rest are
DeiT's settings, of which these three are a part, and gradient clipping as in
mmpretrain's DeiT.

The learning rate is 5e-4 for 512 images per step, e.g. 8 GPUs x 64. With
``--auto-scale-lr`` any other product is scaled linearly; GPUs that do not
hold 64 images can take fewer at a time with ``--cfg-options
train_dataloader.batch_size=32 optim_wrapper.accumulative_counts=2``.

An exponential moving average of the weights is an option: add ``ema_hook`` to
``custom_hooks``, e.g. ``custom_hooks = [_base_.ema_hook]``.
"""

optim_wrapper = dict(
    optimizer=dict(
        type='AdamW',
        lr=5e-4,
        weight_decay=0.05,
        eps=1e-8,
        betas=(0.9, 0.999),
    ),
    constructor='transmamba.MergedGroupsOptimWrapperConstructor',
    clip_grad=dict(max_norm=5.0),
)

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=2e-3,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=5,
        end=300,
        convert_to_iter_based=True,
    ),
]

ema_hook = dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL')

train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=512)
