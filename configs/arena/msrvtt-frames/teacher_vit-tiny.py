"""The teacher: ViT-Ti and MiniLM, tuned on 800 videos of MSR-VTT.

Run after ``configs/arena/tiny-imagenet/teacher_vit-tiny.py``, from whose
ViT-Ti at 96 pixels it starts::

    python tools/train.py configs/arena/msrvtt-frames/teacher_vit-tiny.py \
        --work-dir work_dirs/teacher_vit-tiny_msrvtt
"""

_base_ = [
    '../../_base_/teachers/vit_tiny_minilm_96.py',
    '../../_base_/datasets/msrvtt_frames_96.py',
    '../../_base_/schedules/arena_adamw_cosine.py',
    '../../_base_/default_runtime.py',
]

model = _base_.teacher
model.backbone.model.init_cfg = dict(
    type='Pretrained', checkpoint='work_dirs/teacher_vit-tiny/epoch_3.pth'
)
# The projections are new, the towers are not.
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=10)}),
)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], end=10),
]
train_cfg = dict(max_epochs=10, val_interval=5)
