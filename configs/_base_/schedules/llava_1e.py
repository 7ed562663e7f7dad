"""LLaVA-1.5's: cosine after 3 % of warm-up, no weight decay, one epoch.

TransMamba gives Adam at 2e-5, batches of 128 and one epoch, and no more.
"""

optim_wrapper = dict(
    optimizer=dict(type='Adam', lr=2e-5, weight_decay=0.0),
    constructor='transmamba.MergedGroupsOptimWrapperConstructor',
    # A LLaMA's head and embedding are one parameter.
    paramwise_cfg=dict(bypass_duplicate=True),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        end=0.03,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        by_epoch=True,
        begin=0.03,
        end=1,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=1)

auto_scale_lr = dict(base_batch_size=128)
