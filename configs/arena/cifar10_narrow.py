"""Students half as wide or half as deep as their teacher, on CIFAR-10.

What subcloning keeps is chosen at random, or by importance::

    python tools/arena.py run configs/arena/cifar10_narrow.py \
        --work-dir work_dirs/cifar10_narrow
"""

_base_ = '../_base_/datasets/cifar10_24_held-out.py'

title = 'Smaller PlainMambas from a small ViT, 5,000 images of CIFAR-10'
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

_path = 'configs/arena/cifar10/{}_pmamba.py'
_students = {
    'width': {'backbone.arch.embed_dims': 32, 'head.in_channels': 32},
    'depth': {'backbone.arch.num_layers': 2},
}
_importance = dict(
    width=('random', 'activation', 'least_changed'), depth=('activation',)
)


def _sized(student, prefix, **options):
    changes = _students[student].items()
    return {**{f'{prefix}.{k}': v for k, v in changes}, **options}


def _kept(importance):
    return {'custom_hooks.0.importance': importance}


contestants = [
    dict(
        name='teacher',
        config='configs/arena/cifar10/teacher_vit.py',
        seeds=[0],
        search=[],
    ),
    *(
        dict(
            name=f'scratch-{student}',
            config=_path.format('student'),
            options=_sized(student, 'model'),
            variant=student,
        )
        for student in _students
    ),
    *(
        dict(
            name=f'subclone_{importance}-{student}',
            config=_path.format('subclone'),
            needs={'custom_hooks.0.teacher_ckpt': 'teacher'},
            options=_sized(student, 'model', **_kept(importance)),
            variant=student,
        )
        for student in _students
        for importance in _importance[student]
    ),
    *(
        dict(
            name=f'default_{importance}-{student}',
            config=_path.format('distill'),
            needs={'model.teacher_ckpt': 'teacher'},
            options=_sized(student, 'model.architecture', **_kept(importance)),
            variant=student,
        )
        for student in _students
        for importance in _importance[student]
    ),
]
references = ['subclone_activation', 'scratch']
