"""The teacher, stage one of LLaVA: the projector alone, on captions.

To run it on 8 GPUs::

    NAME=llava-llama3.2-3b_8xb32-1e_llava-pretrain
    bash tools/dist_train.sh configs/vqa/$NAME.py 8

LLaVA-1.5's settings: 1e-3, batches of 256, one epoch of 558,000 captions. We
have not run it.
"""

_base_ = [
    '../_base_/teachers/llava_llama3_2_3b.py',
    '../_base_/datasets/llava_pretrain.py',
    '../_base_/schedules/llava_1e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    _base_.teacher,
    # Captions follow the images at once.
    prompt_tmpl='{question}{answer}',
    frozen=('vision_encoder', 'lang_encoder'),
)
model['vision_encoder'] = dict(
    model['vision_encoder'],
    init_cfg=dict(type='Pretrained', checkpoint='data/clip/ViT-L-14-336px.pt'),
)
model['lang_encoder'] = dict(
    model['lang_encoder'],
    name_or_path='checkpoints/Llama-3.2-3B',
    load_pretrained=True,
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
auto_scale_lr = dict(base_batch_size=256)
