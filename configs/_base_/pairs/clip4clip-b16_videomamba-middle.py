"""CLIP4Clip on ViT-B/16 teaches VideoMamba-M; a method adds the distiller."""

_base_ = '../models/videomamba_middle_clip.py'

_part = dict(type='transmamba.CLIPVisionTower', arch='ViT-B/16')

model = dict(
    _delete_=True,
    type='transmamba.TransMambaDistill',
    architecture=_base_.model,
    teacher=dict(
        type='transmamba.VideoTextRetriever',
        backbone=dict(type='transmamba.PerFrame', model=_part),
        text_encoder=dict(type='transmamba.CLIPTextTower', arch='ViT-B/16'),
        head=dict(type='transmamba.MeanPooling', embed_dims=512),
    ),
)
# Stage one. Both models have patches of 16 pixels, so all that is no scan is
# the teacher's; the scans are VideoMamba's, the text tower is the teacher's.
custom_hooks = [
    dict(
        type='transmamba.SubcloneInitializer',
        # What the teacher was tuned from.
        reference_ckpt='data/clip/ViT-B-16.pt',
        ssm_from='data/videomamba/videomamba_m16_k400.pth',
        copies={
            'text_encoder': 'text_encoder',
            'head.logit_scale': 'head.logit_scale',
        },
    )
]
