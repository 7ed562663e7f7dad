"""The teacher, stage two of LLaVA: everything but the vision tower.

To run it on 8 GPUs, after stage one::

    NAME=llava-llama3.2-3b_8xb32-1e_llava-pretrain
    bash tools/dist_train.sh configs/vqa/$NAME.py 8
    NAME=llava-llama3.2-3b_8xb16-1e_llava-instruct
    bash tools/dist_train.sh configs/vqa/$NAME.py 8

LLaVA-1.5's settings (2e-5, batches of 128, one epoch of 665,000
conversations), of which TransMamba says no more than "the LLaVA way". We have
not run it.
"""

_base_ = [
    '../_base_/teachers/llava_llama3_2_3b.py',
    '../_base_/datasets/llava_instruct.py',
    '../_base_/schedules/llava_1e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    **_base_.teacher,
    init_cfg=dict(
        type='Pretrained',
        checkpoint=(
            'work_dirs/llava-llama3.2-3b_8xb32-1e_llava-pretrain/epoch_1.pth'
        ),
    ),
)
# Weights are trained in float32 (--amp adds autocast); as a teacher it is in
# bfloat16.
model['lang_encoder'] = dict(
    model['lang_encoder'], dtype='float32', with_cp=True
)
