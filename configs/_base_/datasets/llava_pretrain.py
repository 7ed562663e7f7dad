"""LLaVA's 558,000 captions, for its first stage: 32 on each of 8 GPUs.

The instructions are left out, so that captions follow the images at once: let
the model have ``prompt_tmpl='{question}{answer}'``.
"""

_base_ = './llava_instruct.py'

train_pipeline = [
    _base_.train_pipeline[0],
    dict(type='transmamba.DropQuestions'),
    _base_.train_pipeline[1],
]
train_dataloader = dict(
    batch_size=32,
    dataset=dict(
        data_root='data/llava_pretrain/',
        ann_file='blip_laion_cc_sbu_558k.json',
        pipeline=train_pipeline,
    ),
)
