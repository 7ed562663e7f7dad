"""The paper's Table 5 at full size: stage twos of PMamba-T, ImageNet-100.

Its best row is that of Table 6 with 75 % of the images, which are taken here
as well. Its feature distillation is not described; ours is of the last layer.
300 epochs of 224 pixels, a GPU for each cell::

    python tools/arena.py run configs/arena/paper/table5.py \
        --work-dir work_dirs/table5
    python tools/arena.py paper work_dirs/table5

We have not run it to completion.
"""

_base_ = [
    '../../_base_/methods/last_layer_hint.py',
    '../../_base_/methods/logits_kd.py',
]

title = 'Table 5: stage twos of PMamba-T on ImageNet-100, 300 epochs'
seeds = [0, 1, 2]
_share = {'train_dataloader.dataset.fraction': 0.75}
# Learning rates are of 512 images a step.
options = {'auto_scale_lr.enable': True}

_path = (
    'configs/transmamba/transmamba_deit-tiny_pmamba-tiny_8xb64-300e_'
    'imagenet100{}.py'
)
_needs = {'model.teacher_ckpt': 'teacher'}

contestants = [
    dict(
        name='teacher',
        config='configs/transmamba/deit-tiny_8xb64-50e_imagenet100.py',
        seeds=[0],
    ),
    dict(
        name='scratch',
        config='configs/plain_mamba/pmamba-tiny_8xb64-300e_imagenet100.py',
        options=_share,
    ),
    *(
        dict(
            name=name,
            config=_path.format('_paper'),
            needs=_needs,
            options={**_share, 'model.distiller.methods': [method]},
        )
        for name, method in {
            'feature': _base_.last_layer_hint,
            'logits': _base_.logits_kd,
        }.items()
    ),
    *(
        dict(
            name=name,
            config=_path.format(suffix),
            needs=_needs,
            options=_share,
        )
        for name, suffix in {'paper': '_paper', 'default': ''}.items()
    ),
]
references = ['scratch']
paper = dict(
    teacher=('Table 2, ImageNet-100', 'DeiT-T'),
    scratch=('Table 2, ImageNet-100', 'PMamba-T'),
    feature=('Table 5', 'feature distillation'),
    logits=('Table 5', 'logits'),
    paper=('Table 5', 'TransMamba'),
    default=('Table 5', 'TransMamba'),
)
