"""CLIP4Clip, mean pooling, on ViT-B/16: DiDeMo, paragraphs.

To run it on 8 GPUs::

    NAME=clip4clip-b16_8xb16-5e_didemo
    bash tools/dist_train.sh configs/retrieval/$NAME.py 8

We have not run it.
"""

_base_ = [
    '../_base_/models/clip4clip_b16.py',
    '../_base_/datasets/didemo_224.py',
    '../_base_/schedules/retrieval_5e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(model=dict(with_cp=True)), text_encoder=dict(with_cp=True)
)

# A thousandth of that of new modules, of which mean pooling has none.
optim_wrapper = dict(optimizer=dict(lr=1e-7))
