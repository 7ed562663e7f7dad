"""Students of half the width: what their hidden states are compared with.

259 of scikit-learn's digits; nothing to download::

    python tools/arena.py run configs/arena/digits_narrow.py \
        --work-dir work_dirs/arena_digits_narrow
"""

_base_ = [
    '../_base_/methods/logits_kd.py',
    '../_base_/methods/hidden_states.py',
    '../_base_/methods/mixer_matching.py',
]

title = 'PlainMamba of half the width from DeiT, 259 digits, 15 epochs'
seeds = [0, 1, 2, 3, 4]
seed_keys = ['randomness.seed', 'train_dataloader.dataset.seed']

_path = 'configs/quickstart/{}_digits.py'
_logits = dict(_base_.logits_kd, in_alpha=True)
_kept = _base_.hidden_states
_warm_up = dict(_base_.mixer_matching, end=0.1)
_phase = dict(end=0.1, trains='mixers', task_loss=False)
_methods = {
    'logits': [_logits],
    'kept_logits': [_kept, _logits],
    'learned_logits': [dict(_kept, channels='learned'), _logits],
    'mixer_kept_logits': [
        _warm_up,
        dict(_kept, begin=0.1),
        dict(_logits, begin=0.1),
    ],
}
_student = {
    'backbone.arch.embed_dims': 32,
    'head.in_channels': 32,
}
_rates = {'1x': 2e-3, '2x': 4e-3, '4x': 8e-3}

contestants = [
    dict(name='teacher', config=_path.format('deit'), seeds=[0]),
    *(
        dict(
            name=f'subclone_only_{rate}',
            config=_path.format('pmamba_subclone-only'),
            needs={'custom_hooks.0.teacher_ckpt': 'teacher'},
            options={
                **{f'model.{key}': size for key, size in _student.items()},
                'custom_hooks.0.importance': 'magnitude',
                'optim_wrapper.optimizer.lr': value,
            },
        )
        for rate, value in _rates.items()
    ),
    *(
        dict(
            name=f'{name}_{rate}',
            config=_path.format('transmamba_deit_pmamba'),
            needs={'model.teacher_ckpt': 'teacher'},
            options={
                **{
                    f'model.architecture.{key}': size
                    for key, size in _student.items()
                },
                'custom_hooks.0.importance': 'magnitude',
                'model.alpha': 0.3,
                'model.distiller.methods': methods,
                'model.distiller.phases': [_phase]
                if name.startswith('mixer')
                else [],
                'optim_wrapper.optimizer.lr': value,
            },
        )
        for name, methods in _methods.items()
        for rate, value in _rates.items()
    ),
]
pairs = [
    (f'{name}_{rate}', f'subclone_only_{rate}')
    for name in _methods
    for rate in _rates
]
