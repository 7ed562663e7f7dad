"""TransMamba: CLIP4Clip to VideoMamba-M, msrvtt-7k.

To run it on 4 GPUs, the teacher first::

    NAME=clip4clip-b16_4xb32-5e_msrvtt-7k
    bash tools/dist_train.sh configs/retrieval/$NAME.py 4
    NAME=transmamba_clip4clip-b16_videomamba-middle_4xb32-5e_msrvtt-7k
    bash tools/dist_train.sh configs/retrieval/$NAME.py 4

We have not run it.
"""

_base_ = [
    '../_base_/pairs/clip4clip-b16_videomamba-middle.py',
    '../_base_/methods/transmamba.py',
    '../_base_/datasets/msrvtt-7k_224.py',
    '../_base_/schedules/retrieval_5e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    teacher_ckpt='work_dirs/clip4clip-b16_4xb32-5e_msrvtt-7k/epoch_5.pth',
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
