"""Teacher: timm's ViT-Ti/16 at 96 pixels, 200 classes of ImageNet."""

teacher = dict(
    type='TimmClassifier',
    model_name='vit_tiny_patch16_224',
    img_size=96,
    num_classes=200,
    loss=dict(type='CrossEntropyLoss'),
)
