"""Fine-tuning of a teacher: AdamW, 50 epochs, a fifth of the learning rate.

How the paper fine-tuned its teachers is not known to us; this is our choice.
"""

_base_ = './adamw_cosine_300e.py'

optim_wrapper = dict(optimizer=dict(lr=1e-4))

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-2,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        by_epoch=True,
        begin=5,
        end=50,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=50, val_interval=1)
