"""TransMamba, the paper's stage two: CLIP4Clip to VideoMamba-M, msrvtt-9k.

To run it on 4 GPUs, the teacher first::

    NAME=clip4clip-b16_4xb32-5e_msrvtt-9k
    bash tools/dist_train.sh configs/retrieval/$NAME.py 4
    NAME=transmamba_clip4clip-b16_videomamba-middle_4xb32-5e_msrvtt-9k_paper
    bash tools/dist_train.sh configs/retrieval/$NAME.py 4

We have not run it.
"""

_base_ = [
    '../_base_/pairs/clip4clip-b16_videomamba-middle.py',
    '../_base_/methods/transmamba_paper.py',
    '../_base_/datasets/msrvtt_224.py',
    '../_base_/schedules/retrieval_5e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    teacher_ckpt='work_dirs/clip4clip-b16_4xb32-5e_msrvtt-9k/epoch_5.pth',
    **_base_.transmamba_paper,
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
