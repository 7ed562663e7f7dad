"""PlainMambas of one direction and of four, on CIFAR-10.

The students have the same number of parameters.
Learning rates are those that were best with four (``cifar10_pmamba.py``)::

    python tools/arena.py run configs/arena/cifar10_directions.py \
        --work-dir work_dirs/cifar10_directions
"""

_base_ = [
    '../_base_/methods/directional_mixer_matching.py',
    '../_base_/methods/mixer_matching.py',
    '../_base_/methods/transmamba_paper.py',
]

title = 'PlainMambas of one and four directions, 5,000 images of CIFAR-10'
seeds = [0, 1, 2]
# Each seed draws labelled images of its own.
seed_keys = ['randomness.seed', 'train_dataloader.dataset.seed']

_path = 'configs/arena/cifar10/{}.py'
_students = {
    'four': {},
    'one': {'backbone.directions': ['snake_horizontal']},
}
_subcloned = dict(
    config=_path.format('subclone_pmamba'),
    needs={'custom_hooks.0.teacher_ckpt': 'teacher'},
)
_distilled = dict(
    config=_path.format('distill_pmamba'),
    needs={'model.teacher_ckpt': 'teacher'},
)


def _method(method):
    return {
        'model.alpha': 0.5,
        'model.distiller.methods': [method],
        'model.distiller.phases': [],
    }


_paper = _base_.transmamba_paper
# Its learning rate, where the student is, and what it is made of.
_each = {
    'default': (8e-3, 'model.architecture', _distilled),
    'mixer': (
        4e-3,
        'model.architecture',
        dict(_distilled, options=_method(_base_.mixer_matching)),
    ),
    'directions': (
        4e-3,
        'model.architecture',
        dict(_distilled, options=_method(_base_.directional_mixer_matching)),
    ),
    'paper': (
        4e-3,
        'model.architecture',
        dict(
            _distilled,
            options={
                'model.alpha': _paper['alpha'],
                'model.distiller': dict(_paper['distiller'], _delete_=True),
            },
        ),
    ),
    'subclone_only': (2e-3, 'model', _subcloned),
    'scratch': (4e-3, 'model', dict(config=_path.format('student_pmamba'))),
}

contestants = [
    dict(
        name='teacher',
        config=_path.format('teacher_vit'),
        seeds=[0],
    ),
    *(
        dict(
            recipe,
            name=f'{name}-{student}',
            options={
                **recipe.get('options', {}),
                **{f'{place}.{key}': value for key, value in changes.items()},
                'optim_wrapper.optimizer.lr': lr,
            },
            variant=student,
        )
        for student, changes in _students.items()
        for name, (lr, place, recipe) in _each.items()
    ),
]
references = ['subclone_only', 'scratch']
pairs = [(f'{name}-four', f'{name}-one') for name in _each]
