"""The teacher: DeiT-Ti of ImageNet-1k, fine-tuned at 96 pixels.

Its start, the pretrained weights with positions for 96 pixels and the head's
rows of these 200 classes, is made by::

    python tools/model_converters/timm_to_classifier.py \
        deit_tiny_patch16_224 data/weights/deit_tiny_patch16_224.safetensors \
        data/weights/deit-tiny_96_tiny-imagenet.pth --img-size 96 \
        --classes data/tiny_imagenet/train

Run::

    python tools/train.py configs/arena/tiny-imagenet/teacher_deit-tiny.py
"""

_base_ = './teacher_vit-tiny.py'

# The mean and standard deviation that DeiT was trained with.
data_preprocessor = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]
)
load_from = 'data/weights/deit-tiny_96_tiny-imagenet.pth'
