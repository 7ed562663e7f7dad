"""A Mamba of six layers on DAQUAR, its ViT pretrained, all else fresh.

Run::

    python tools/train.py configs/arena/daquar/student_smollm2.py
"""

_base_ = [
    '../../_base_/models/llava_transmamba_smollm2.py',
    '../../_base_/datasets/daquar_128.py',
    '../../_base_/schedules/arena_adamw_cosine.py',
    '../../_base_/default_runtime.py',
]

# In bfloat16, on a CPU.
optim_wrapper = dict(
    type='transmamba.CpuAmpOptimWrapper',
    optimizer=dict(lr=5e-4),
    paramwise_cfg=dict(bypass_duplicate=True),
)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], end=2),
]
train_cfg = dict(max_epochs=2, val_interval=2)
