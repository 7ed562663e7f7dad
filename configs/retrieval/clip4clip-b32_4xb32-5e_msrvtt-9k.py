"""CLIP4Clip, mean pooling, on ViT-B/32: MSR-VTT, 9k split.

To run it on 4 GPUs::

    NAME=clip4clip-b32_4xb32-5e_msrvtt-9k
    bash tools/dist_train.sh configs/retrieval/$NAME.py 4

CLIP4Clip's authors report 43.1 % t2v/R@1. We have not run it.
"""

_base_ = [
    '../_base_/models/clip4clip_b32.py',
    '../_base_/datasets/msrvtt_224.py',
    '../_base_/schedules/retrieval_5e.py',
    '../_base_/default_runtime.py',
]

# A thousandth of that of new modules, of which mean pooling has none.
optim_wrapper = dict(optimizer=dict(lr=1e-7))
