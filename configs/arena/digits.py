"""A small DeiT teaches a small PlainMamba on 260 of scikit-learn's digits.

Nothing to download. The teacher sees 1,038 of the 1,297 training digits, of
which the students' are drawn. Every contestant has a learning rate of its
own, the best of three on the 259 others; 500 test digits::

    python tools/arena.py run configs/arena/digits.py \
        --work-dir work_dirs/arena_digits
"""

_base_ = [
    '../_base_/datasets/digits_16.py',
    '../_base_/methods/transmamba_paper.py',
    '../_base_/methods/logits_kd.py',
    '../_base_/methods/hidden_states.py',
    '../_base_/methods/mixer_matching.py',
]

title = 'PlainMamba from DeiT, 260 digits, 15 epochs'
seeds = [0, 1, 2, 3, 4]
# Each seed draws labelled images of its own.
seed_keys = ['randomness.seed', 'train_dataloader.dataset.seed']

_split = dict(type='transmamba.FractionDataset', fraction=0.8, seed=0)
_train = _base_.train_dataloader['dataset']['dataset']
options = {
    'train_dataloader.dataset': dict(
        dataset=dict(_delete_=True, **_split, dataset=_train), fraction=0.25
    )
}
search = dict(
    key='optim_wrapper.optimizer.lr',
    values=[2e-3, 4e-3, 8e-3],
    seeds=[100, 101],
    options={
        'train_cfg.val_interval': 15,
        'val_dataloader.dataset': dict(
            _delete_=True,
            **_split,
            rest=True,
            dataset=dict(_train, pipeline=_base_.test_pipeline),
        ),
    },
)

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
    'paper': dict(
        config=_distill,
        needs=_needs,
        options={'model': _base_.transmamba_paper},
    ),
    'logits': dict(
        config=_distill,
        needs=_needs,
        options={
            **_labels,
            'model.distiller.methods': [_logits],
            'model.distiller.phases': [],
        },
    ),
    'hidden_logits': dict(
        config=_distill,
        needs=_needs,
        options={
            **_labels,
            'model.distiller.methods': [_base_.hidden_states, _logits],
            'model.distiller.phases': [],
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
    'scratch': dict(config=_path.format('pmamba_scratch')),
}

contestants = [
    dict(
        name='teacher',
        config=_path.format('deit'),
        options={'train_dataloader.dataset.fraction': 1.0},
        seeds=[0],
        search=[],
    ),
    *(dict(each, name=name) for name, each in _methods.items()),
]
references = ['subclone_only', 'scratch']
