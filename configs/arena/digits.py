"""A small DeiT teaches a small PlainMamba on 259 of scikit-learn's digits.

Nothing to download. Every method at three learning rates::

    python tools/arena.py run configs/arena/digits.py \
        --work-dir work_dirs/arena_digits
"""

_base_ = [
    '../_base_/methods/transmamba.py',
    '../_base_/methods/logits_kd.py',
    '../_base_/methods/hidden_states.py',
    '../_base_/methods/mixer_matching.py',
]

title = 'PlainMamba from DeiT, 259 digits, 15 epochs'
seeds = [0, 1, 2, 3, 4]
# Each seed draws labelled images of its own.
seed_keys = ['randomness.seed', 'train_dataloader.dataset.seed']
options = {'train_cfg.val_interval': 1}

_path = 'configs/quickstart/{}_digits.py'
_distill = _path.format('transmamba_deit_pmamba')
_needs = {'model.teacher_ckpt': 'teacher'}

# 0.3 of the labels, 0.7 of the soft logits.
_labels = {'model.alpha': 0.3}
_logits = dict(_base_.logits_kd, in_alpha=True)
_methods = {
    'subclone_only': dict(
        config=_path.format('pmamba_subclone-only'),
        needs={'custom_hooks.0.teacher_ckpt': 'teacher'},
    ),
    'paper': dict(config=_distill, needs=_needs),
    'logits': dict(
        config=_distill,
        needs=_needs,
        options={**_labels, 'model.distiller.methods': [_logits]},
    ),
    'hidden_logits': dict(
        config=_distill,
        needs=_needs,
        options={
            **_labels,
            'model.distiller.methods': [_base_.hidden_states, _logits],
        },
    ),
    'mixer_hidden_logits': dict(
        config=_distill,
        needs=_needs,
        options={
            **_labels,
            'model.distiller.methods': [
                dict(_base_.mixer_matching, end=0.1),
                dict(_base_.hidden_states, begin=0.1),
                dict(_logits, begin=0.1),
            ],
            'model.distiller.phases': [
                dict(end=0.1, trains='mixers', task_loss=False)
            ],
        },
    ),
}
_rates = {'1x': 2e-3, '2x': 4e-3, '4x': 8e-3}

contestants = [
    dict(
        name='teacher',
        config=_path.format('deit'),
        seeds=[0],
    ),
    *(
        dict(
            each,
            name=f'{name}_{rate}',
            options={
                **each.get('options', {}),
                'optim_wrapper.optimizer.lr': value,
            },
        )
        for name, each in _methods.items()
        for rate, value in _rates.items()
    ),
]
pairs = [
    (f'{name}_{rate}', 'subclone_only_1x')
    for name in _methods
    for rate in _rates
    if (name, rate) != ('subclone_only', '1x')
]
