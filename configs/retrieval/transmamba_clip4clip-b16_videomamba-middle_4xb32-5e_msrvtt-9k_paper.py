"""TransMamba, the paper's stage two: CLIP4Clip to VideoMamba-M, msrvtt-9k.

To run it on 4 GPUs, the teacher first::

    NAME=clip4clip-b16_4xb32-5e_msrvtt-9k
    bash tools/dist_train.sh configs/retrieval/$NAME.py 4
    NAME=transmamba_clip4clip-b16_videomamba-middle_4xb32-5e_msrvtt-9k_paper
    bash tools/dist_train.sh configs/retrieval/$NAME.py 4

We have not run it.
"""

_base_ = [
    './transmamba_clip4clip-b16_videomamba-middle_4xb32-5e_msrvtt-9k.py',
    '../_base_/methods/transmamba_paper.py',
]

model = _base_.transmamba_paper
