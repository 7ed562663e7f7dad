"""A VideoMamba and MiniLM on 800 videos of MSR-VTT, 10 epochs.

Run::

    python tools/train.py configs/arena/msrvtt-frames/student_videomamba.py
"""

_base_ = [
    '../../_base_/models/videomamba_tiny_minilm_96.py',
    '../../_base_/datasets/msrvtt_frames_96.py',
    '../../_base_/schedules/arena_adamw_cosine.py',
    '../../_base_/default_runtime.py',
]

param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], end=10),
]
train_cfg = dict(max_epochs=10, val_interval=5)
