"""VideoMamba-M on ImageNet-1k with its authors' recipe, less the teacher.

To run it on 8 GPUs, in mixed precision as its authors did::

    NAME=videomamba-middle_8xb128-300e_imagenet1k
    bash tools/dist_train.sh configs/video_mamba/$NAME.py 8 --amp

Theirs was bfloat16, ``--cfg-options optim_wrapper.dtype=bfloat16``.
VideoMamba's authors report 82.8 % top-1 for their run, in which a trained
VideoMamba-S was the teacher. This config has none, so it need not reach that:
they found that larger models overfit without. We have not run this config to
completion.
"""

_base_ = [
    '../_base_/models/videomamba_middle.py',
    '../_base_/datasets/imagenet1k_224.py',
    '../_base_/schedules/videomamba_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(backbone=dict(drop_path_rate=0.5))
train_dataloader = dict(batch_size=128, sampler=dict(type='RepeatAugSampler'))

# 5e-4 per 512 images, as for the smaller models; 20 epochs of warm-up and
# half the last learning rate.
optim_wrapper = dict(optimizer=dict(lr=5e-4 * 1024 / 512, weight_decay=0.05))
param_scheduler = [
    dict(_base_.param_scheduler[0], start_factor=1e-3, end=20),
    dict(_base_.param_scheduler[1], eta_min=5e-6, begin=20),
]
auto_scale_lr = dict(base_batch_size=1024)
