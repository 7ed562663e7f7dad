"""TransMamba, the paper's stage two: CLIP4Clip to VideoMamba-M, didemo.

To run it on 8 GPUs, the teacher first::

    NAME=clip4clip-b16_8xb16-5e_didemo
    bash tools/dist_train.sh configs/retrieval/$NAME.py 8
    NAME=transmamba_clip4clip-b16_videomamba-middle_8xb16-5e_didemo_paper
    bash tools/dist_train.sh configs/retrieval/$NAME.py 8

We have not run it.
"""

_base_ = [
    './transmamba_clip4clip-b16_videomamba-middle_8xb16-5e_didemo.py',
    '../_base_/methods/transmamba_paper.py',
]

model = _base_.transmamba_paper
