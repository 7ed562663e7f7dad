"""TransMamba: CLIP4Clip to VideoMamba-M, didemo.

To run it on 8 GPUs, the teacher first::

    NAME=clip4clip-b16_8xb16-5e_didemo
    bash tools/dist_train.sh configs/retrieval/$NAME.py 8
    NAME=transmamba_clip4clip-b16_videomamba-middle_8xb16-5e_didemo
    bash tools/dist_train.sh configs/retrieval/$NAME.py 8

We have not run it.
"""

_base_ = [
    '../_base_/pairs/clip4clip-b16_videomamba-middle.py',
    '../_base_/methods/transmamba.py',
    '../_base_/datasets/didemo_224.py',
    '../_base_/schedules/retrieval_5e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    architecture=dict(backbone=dict(num_frames=64)),
    teacher_ckpt='work_dirs/clip4clip-b16_8xb16-5e_didemo/epoch_5.pth',
    **_base_.transmamba,
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
