"""A small ViT teaches a small PlainMamba on 5,000 images of CIFAR-10.

30,000 images seen by every student, 10,000 test images. Every contestant has
a learning rate of its own, the best of three on 5,000 training images that
neither it nor the teacher sees::

    python tools/arena.py run configs/arena/cifar10_pmamba.py \
        --work-dir work_dirs/cifar10_pmamba
"""

_base_ = [
    '../_base_/datasets/cifar10_24_held-out.py',
    '../_base_/methods/transmamba_paper.py',
    '../_base_/methods/transmamba_released.py',
    '../_base_/methods/logits_kd.py',
    '../_base_/methods/standardised_logits_kd.py',
    '../_base_/methods/hard_label.py',
    '../_base_/methods/last_layer_hint.py',
    '../_base_/methods/final_token_regression.py',
    '../_base_/methods/hidden_states.py',
    '../_base_/methods/mixer_matching.py',
    '../_base_/methods/directional_mixer_matching.py',
    '../_base_/methods/token_relations.py',
    '../_base_/methods/masked_token_relations.py',
    '../_base_/methods/attention_bridge.py',
    '../_base_/methods/one_for_all.py',
]

title = 'PlainMamba from a small ViT, 5,000 images of CIFAR-10, 6 epochs'
seeds = [0, 1, 2]
# Each seed draws labelled images of its own.
seed_keys = ['randomness.seed', 'train_dataloader.dataset.seed']
search = dict(
    key='optim_wrapper.optimizer.lr',
    values=[2e-3, 4e-3, 8e-3],
    seeds=[100],
    options={
        'train_cfg.val_interval': 6,
        'val_dataloader.dataset': dict(_delete_=True, **_base_.held_out),
    },
)
# For those of which the highest of these was the best.
_high = [4e-3, 8e-3, 1.6e-2]
_higher = [8e-3, 1.6e-2, 3.2e-2]

_path = 'configs/arena/cifar10/{}.py'
# 0.3 of the labels, 0.7 of the soft logits.
_logits = dict(_base_.logits_kd, in_alpha=True)


def _warm_up(share, **phase):
    """Only the mixers train for a share of the time, then all."""
    after = dict(begin=share)
    return {
        'model.alpha': 0.3,
        'model.distiller.methods': [
            dict(_base_.mixer_matching, end=share),
            dict(_base_.hidden_states, **after),
            dict(_logits, **after),
        ],
        'model.distiller.phases': [
            dict(end=share, trains='mixers', task_loss=False, **phase)
        ],
    }


def _distil(alpha, *methods):
    """The weight of the labels, and the methods beside subcloning."""
    return {
        'model.alpha': alpha,
        'model.distiller.methods': list(methods),
        'model.distiller.phases': [],
    }


_student = dict(config=_path.format('student_pmamba'))
_subcloned = dict(
    config=_path.format('subclone_pmamba'),
    needs={'custom_hooks.0.teacher_ckpt': 'teacher'},
)
_distilled = dict(
    config=_path.format('distill_pmamba'),
    needs={'model.teacher_ckpt': 'teacher'},
)
_first = {
    # The default recipe of few layers.
    'transmamba': dict(_distilled, search=_high),
    'mixer_hidden_logits': dict(_distilled, options=_warm_up(0.25)),
    'fast_mixer_hidden_logits': dict(
        _distilled, options=_warm_up(0.25, lr_mult=4.0)
    ),
    'short_mixer_hidden_logits': dict(
        _distilled, options=_warm_up(0.1, lr_mult=4.0), search=_high
    ),
    'logits': dict(_distilled, options=_distil(0.3, _logits)),
    'paper': dict(_distilled, options={'model': _base_.transmamba_paper}),
    'subclone_only': dict(_subcloned, search=[1e-3, 2e-3, 4e-3]),
    'scratch': _student,
}
_rivals = {
    'z_logits': _distil(
        0.3, dict(_base_.standardised_logits_kd, in_alpha=True)
    ),
    'hard_label': _distil(0.5, _base_.hard_label),
    'last_layer_hint': _distil(0.5, _base_.last_layer_hint),
    'final_tokens': _distil(0.5, _base_.final_token_regression),
    'hidden': _distil(0.5, _base_.hidden_states),
    'own_mixer': _distil(
        0.5, dict(_base_.mixer_matching, teacher_forced=False)
    ),
    'mixer': _distil(0.5, _base_.mixer_matching),
    'directions': _distil(0.5, _base_.directional_mixer_matching),
    'relations': _distil(0.5, _base_.token_relations),
    'masked_relations': _distil(0.5, _base_.masked_token_relations),
    # As its authors: no labels, soft logits at temperature 1.
    'bridge': _distil(
        0.0,
        _base_.attention_bridge,
        dict(_base_.logits_kd, tau=1.0, in_alpha=True),
    ),
    'exits': _distil(0.5, _base_.one_for_all),
    'released': _distil(0.5, _base_.transmamba_released),
}
_search = {
    **dict.fromkeys(['final_tokens', 'hidden', 'exits'], _high),
    **dict.fromkeys(['last_layer_hint', 'bridge', 'released'], _higher),
}

contestants = [
    dict(
        name='teacher',
        config=_path.format('teacher_vit'),
        seeds=[0],
        search=[],
    ),
    *(dict(each, name=name) for name, each in _first.items()),
    *(
        dict(
            _distilled,
            name=name,
            options=options,
            search=_search.get(name),
            wave=1,
        )
        for name, options in _rivals.items()
    ),
]
references = ['subclone_only', 'scratch']
pairs = [
    ('transmamba', other)
    for other in (
        'logits',
        'mixer_hidden_logits',
        'fast_mixer_hidden_logits',
        'short_mixer_hidden_logits',
        *_rivals,
    )
]
