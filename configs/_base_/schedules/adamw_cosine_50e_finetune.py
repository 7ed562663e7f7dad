"""Fine-tuning of a teacher: AdamW, 50 epochs, a fifth of the learning rate.

How the paper fine-tuned its teachers is not known to us; this is our choice.
"""

_base_ = './adamw_cosine_300e.py'

optim_wrapper = dict(optimizer=dict(lr=1e-4))

param_scheduler = [
    dict(_base_.param_scheduler[0], start_factor=1e-2),
    dict(_base_.param_scheduler[1], eta_min=1e-6, end=50),
]
train_cfg = dict(max_epochs=50)
