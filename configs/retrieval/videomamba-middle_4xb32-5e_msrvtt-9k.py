"""VideoMamba-M and CLIP's text tower, no teacher: MSR-VTT, 9k split.

To run it on 4 GPUs::

    NAME=videomamba-middle_4xb32-5e_msrvtt-9k
    bash tools/dist_train.sh configs/retrieval/$NAME.py 4

VideoMamba starts from a checkpoint of its authors. We have not run it.
"""

_base_ = [
    '../_base_/models/videomamba_middle_clip.py',
    '../_base_/datasets/msrvtt_224.py',
    '../_base_/schedules/retrieval_5e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        init_cfg=dict(
            type='Pretrained',
            checkpoint='data/videomamba/videomamba_m16_k400.pth',
        ),
    ),
    text_encoder=dict(
        init_cfg=dict(type='Pretrained', checkpoint='data/clip/ViT-B-16.pt')
    ),
)

# CLIP4Clip's `coef_lr`: a thousandth for what comes from CLIP.
_slow = dict(lr_mult=1e-3)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'text_encoder.': _slow,
            'head.logit_scale': _slow,
        }
    )
)
