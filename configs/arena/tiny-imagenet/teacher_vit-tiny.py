"""The teacher: timm's ViT-Ti of ImageNet-1k, fine-tuned at 96 pixels.

Its start, the pretrained weights with positions for 96 pixels and the head's
rows of these 200 classes, is made by::

    python tools/model_converters/timm_to_classifier.py \
        vit_tiny_patch16_224 data/weights/vit_tiny_patch16_224.safetensors \
        data/weights/vit-tiny_96_tiny-imagenet.pth --img-size 96 \
        --classes data/tiny_imagenet/train

Run::

    python tools/train.py configs/arena/tiny-imagenet/teacher_vit-tiny.py
"""

_base_ = [
    '../../_base_/models/vit_tiny_timm_96.py',
    '../../_base_/datasets/tiny_imagenet_96.py',
    '../../_base_/schedules/arena_adamw_cosine.py',
    '../../_base_/default_runtime.py',
]

load_from = 'data/weights/vit-tiny_96_tiny-imagenet.pth'
optim_wrapper = dict(optimizer=dict(lr=1e-4))
