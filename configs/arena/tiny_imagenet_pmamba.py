"""ViT-Ti teaches a PlainMamba on 5,000 images of Tiny-ImageNet, 96 pixels.

Real pretrained weights; 15,000 images seen by every student. Run, and look at
what is finished so far::

    python tools/arena.py run configs/arena/tiny_imagenet_pmamba.py \
        --work-dir work_dirs/tiny_imagenet_pmamba
    python tools/arena.py report configs/arena/tiny_imagenet_pmamba.py \
        --work-dir work_dirs/tiny_imagenet_pmamba
"""

_base_ = [
    '../_base_/methods/transmamba_paper.py',
    '../_base_/methods/transmamba_released.py',
    '../_base_/methods/last_layer_hint.py',
    '../_base_/methods/attention_bridge.py',
    '../_base_/methods/one_for_all.py',
    '../_base_/methods/logits_kd.py',
    '../_base_/methods/hidden_states.py',
    '../_base_/methods/mixer_matching.py',
]

title = 'PlainMamba from ViT-Ti, 5,000 images of Tiny-ImageNet, 3 epochs'
seeds = [0, 1, 2]
# Each seed draws labelled images of its own.
seed_keys = ['randomness.seed', 'train_dataloader.dataset.seed']

_path = 'configs/arena/tiny-imagenet/{}.py'
_distill = _path.format('distill_pmamba')
_needs = {'model.teacher_ckpt': 'teacher'}

# 0.3 of the labels, 0.7 of the soft logits.
_labels = {'model.alpha': 0.3}
_logits = dict(_base_.logits_kd, in_alpha=True)
_warm_up = dict(_base_.mixer_matching, end=0.25)
_after = dict(begin=0.25)
_phase = dict(end=0.25, trains='mixers', task_loss=False)

# Weight of the labels, and the methods beside subcloning.
_rivals = {
    'released': (0.5, [_base_.transmamba_released]),
    'released_logits': (0.3, [_base_.transmamba_released, _logits]),
    'last_layer_hint': (0.5, [_base_.last_layer_hint]),
    'exits': (0.5, [_base_.one_for_all]),
    # As its authors: no labels, soft logits at temperature 1.
    'bridge': (
        0.0,
        [
            _base_.attention_bridge,
            dict(_base_.logits_kd, tau=1.0, in_alpha=True),
        ],
    ),
}

contestants = [
    dict(
        name='teacher',
        config=_path.format('teacher_vit-tiny'),
        seeds=[0],
    ),
    dict(
        name='subclone_only',
        config=_path.format('subclone_pmamba'),
        needs={'custom_hooks.0.teacher_ckpt': 'teacher'},
    ),
    # The default recipe, whose mixers have four times the rate at first.
    dict(name='transmamba', config=_distill, needs=_needs),
    # It with twice that rate at first, and with twice the time for it.
    *(
        dict(
            name=f'transmamba_{name}',
            config=_distill,
            needs=_needs,
            options={f'model.distiller.phases.0.{key}': value},
            wave=1,
        )
        for name, key, value in [
            ('8x', 'lr_mult', 8.0),
            ('half', 'end', 0.5),
        ]
    ),
    dict(
        name='mixer_hidden_logits',
        config=_distill,
        needs=_needs,
        wave=1,
        options={
            **_labels,
            'model.distiller.methods': [
                _warm_up,
                dict(_base_.hidden_states, **_after),
                dict(_logits, **_after),
            ],
            'model.distiller.phases': [_phase],
        },
    ),
    dict(
        name='hidden_logits',
        config=_distill,
        needs=_needs,
        options={
            **_labels,
            'model.distiller.methods': [_base_.hidden_states, _logits],
            'model.distiller.phases': [],
        },
    ),
    dict(
        name='logits',
        config=_distill,
        needs=_needs,
        wave=1,
        options={
            **_labels,
            'model.distiller.methods': [_logits],
            'model.distiller.phases': [],
        },
    ),
    dict(
        name='paper',
        config=_distill,
        needs=_needs,
        options={'model': _base_.transmamba_paper},
    ),
    *(
        dict(
            name=name,
            config=_distill,
            needs=_needs,
            wave=1,
            options={
                'model.alpha': alpha,
                'model.distiller.methods': methods,
                'model.distiller.phases': [],
            },
        )
        for name, (alpha, methods) in _rivals.items()
    ),
    dict(name='scratch', config=_path.format('student_pmamba'), wave=1),
]
references = ['subclone_only', 'scratch']
pairs = [
    ('transmamba_8x', 'transmamba'),
    ('transmamba_half', 'transmamba'),
    ('transmamba', 'mixer_hidden_logits'),
    ('transmamba', 'hidden_logits'),
    ('mixer_hidden_logits', 'hidden_logits'),
    ('hidden_logits', 'logits'),
    *(('transmamba', name) for name in ('logits', *_rivals)),
    ('released_logits', 'hidden_logits'),
]
