"""The teacher: ViT-Ti and SmolLM2-135M, tuned on DAQUAR for two epochs.

Their weights, the ViT's with positions for 128 pixels, are made by::

    python tools/model_converters/timm_to_classifier.py \
        vit_tiny_patch16_224 data/weights/vit_tiny_patch16_224.safetensors \
        data/weights/vit-tiny_128.pth --img-size 128
    python tools/model_converters/gguf_to_transformers.py \
        SmolLM2-135M-Instruct.Q4_1.gguf data/weights/SmolLM2-135M-Instruct

Run::

    python tools/train.py configs/arena/daquar/teacher_smollm2.py
"""

_base_ = [
    '../../_base_/teachers/llava_smollm2_135m.py',
    '../../_base_/datasets/daquar_128.py',
    '../../_base_/schedules/arena_adamw_cosine.py',
    '../../_base_/default_runtime.py',
]

model = _base_.teacher
model['lang_encoder']['load_pretrained'] = True
# The projector is new, the others are not. In bfloat16, on a CPU.
optim_wrapper = dict(
    type='transmamba.CpuAmpOptimWrapper',
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(
        bypass_duplicate=True,
        custom_keys={'projector': dict(lr_mult=10)},
    ),
)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], end=2),
]
train_cfg = dict(max_epochs=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2))
