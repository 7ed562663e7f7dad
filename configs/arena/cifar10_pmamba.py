"""A small ViT teaches a small PlainMamba on 5,000 images of CIFAR-10.

30,000 images seen by every student, 10,000 test images; every method at
three learning rates::

    python tools/arena.py run configs/arena/cifar10_pmamba.py \
        --work-dir work_dirs/cifar10_pmamba
"""

_base_ = [
    '../_base_/methods/transmamba.py',
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
]

title = 'PlainMamba from a small ViT, 5,000 images of CIFAR-10, 6 epochs'
seeds = [0, 1, 2]
# Each seed draws labelled images of its own.
seed_keys = ['randomness.seed', 'train_dataloader.dataset.seed']

_path = 'configs/arena/cifar10/{}.py'
_rates = {'1x': 2e-3, '2x': 4e-3, '4x': 8e-3}
# 0.3 of the labels, 0.7 of the soft logits.
_logits = dict(_base_.logits_kd, in_alpha=True)
# Name: the weight of the labels, and the methods beside subcloning.
_methods = {
    'hidden_logits': (0.3, [_base_.hidden_states, _logits]),
    'logits': (0.3, [_logits]),
    'paper': (0.5, [_base_.transmamba]),
    'z_logits': (
        0.3,
        [dict(_base_.standardised_logits_kd, in_alpha=True)],
    ),
    'hard_label': (0.5, [_base_.hard_label]),
    'last_layer_hint': (0.5, [_base_.last_layer_hint]),
    'final_tokens': (0.5, [_base_.final_token_regression]),
    'hidden': (0.5, [_base_.hidden_states]),
    'own_mixer': (
        0.5,
        [dict(_base_.mixer_matching, teacher_forced=False)],
    ),
    'mixer': (0.5, [_base_.mixer_matching]),
    'directions': (0.5, [_base_.directional_mixer_matching]),
    'relations': (0.5, [_base_.token_relations]),
    'released': (0.5, [_base_.transmamba_released]),
}

contestants = [
    dict(name='teacher', config=_path.format('teacher_vit'), seeds=[0]),
    *(
        dict(
            name=f'subclone_only_{rate}',
            config=_path.format('subclone_pmamba'),
            needs={'custom_hooks.0.teacher_ckpt': 'teacher'},
            options={'optim_wrapper.optimizer.lr': value},
        )
        for rate, value in _rates.items()
    ),
    *(
        dict(
            name=f'{name}_{rate}',
            config=_path.format('distill_pmamba'),
            needs={'model.teacher_ckpt': 'teacher'},
            options={
                'model.alpha': alpha,
                'model.distiller.methods': methods,
                'optim_wrapper.optimizer.lr': value,
            },
        )
        for name, (alpha, methods) in _methods.items()
        for rate, value in _rates.items()
    ),
    dict(name='scratch_1x', config=_path.format('student_pmamba')),
]
pairs = [
    (f'{name}_{rate}', 'subclone_only_1x')
    for name in _methods
    for rate in _rates
]
