"""Students half as wide or half as deep as their teacher, on CIFAR-10.

What subcloning keeps is chosen at random, or by importance; or the student
keeps the map to the teacher's width and its head (lifted). Learning rates are
those that were best at full size (``cifar10_pmamba.py``)::

    python tools/arena.py run configs/arena/cifar10_narrow.py \
        --work-dir work_dirs/cifar10_narrow
"""

_base_ = [
    '../_base_/methods/hidden_states.py',
    '../_base_/methods/lifted_tokens.py',
    '../_base_/methods/logits_kd.py',
    '../_base_/teachers/vit_64x4_24.py',
]

title = 'Smaller PlainMambas from a small ViT, 5,000 images of CIFAR-10'
seeds = [0, 1, 2]
# Each seed draws labelled images of its own.
seed_keys = ['randomness.seed', 'train_dataloader.dataset.seed']

_path = 'configs/arena/cifar10/{}_pmamba.py'
_students = {
    'width': {'backbone.arch.embed_dims': 32, 'head.in_channels': 32},
    'depth': {'backbone.arch.num_layers': 2},
}
_importance = dict(
    width=('random', 'activation', 'least_changed'), depth=('activation',)
)
# A head as wide as the teacher's, behind the map to its width.
_lifted = {
    'backbone.arch.embed_dims': 32,
    'neck': dict(
        type='LinearNeck', in_channels=32, out_channels=64, norm_cfg=None
    ),
}
_logits = dict(_base_.logits_kd, in_alpha=True)
_lifts = {
    'lifted': [_base_.lifted_tokens, _logits],
    'lifted_hidden': [_base_.hidden_states, _base_.lifted_tokens, _logits],
}


def _options(changes, prefix, lr, **options):
    changes = {f'{prefix}.{key}': value for key, value in changes.items()}
    return {**changes, 'optim_wrapper.optimizer.lr': lr, **options}


def _kept(importance):
    return {'custom_hooks.0.importance': importance}


_distilled = dict(
    config=_path.format('distill'),
    needs={'model.teacher_ckpt': 'teacher'},
)

contestants = [
    dict(
        name='teacher',
        config='configs/arena/cifar10/teacher_vit.py',
        seeds=[0],
    ),
    *(
        dict(
            name=f'scratch-{student}',
            config=_path.format('student'),
            options=_options(changes, 'model', 4e-3),
            variant=student,
        )
        for student, changes in _students.items()
    ),
    *(
        dict(
            name=f'subclone_{importance}-{student}',
            config=_path.format('subclone'),
            needs={'custom_hooks.0.teacher_ckpt': 'teacher'},
            options=_options(
                changes,
                'model',
                2e-3,
                # Measured importance needs the teacher itself.
                **{'custom_hooks.0.teacher': _base_.teacher},
                **_kept(importance),
            ),
            variant=student,
        )
        for student, changes in _students.items()
        for importance in _importance[student]
    ),
    *(
        dict(
            _distilled,
            name=f'default_{importance}-{student}',
            options=_options(
                changes, 'model.architecture', 8e-3, **_kept(importance)
            ),
            variant=student,
        )
        for student, changes in _students.items()
        for importance in _importance[student]
    ),
    *(
        dict(
            _distilled,
            name=f'{name}-width',
            options=_options(
                _lifted,
                'model.architecture',
                8e-3,
                **{'model.distiller.methods': methods},
                **_kept('activation'),
            ),
            variant='width',
        )
        for name, methods in _lifts.items()
    ),
]
references = ['subclone_activation', 'scratch']
pairs = [(f'{name}-width', 'default_activation-width') for name in _lifts]
