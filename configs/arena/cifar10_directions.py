"""PlainMambas of one direction and of four, on CIFAR-10.

The students have the same number of parameters. Contestants are some of
``cifar10_pmamba.py``, at the learning rates that were best there, with four::

    python tools/arena.py run configs/arena/cifar10_directions.py \
        --work-dir work_dirs/cifar10_directions
"""

_base_ = './cifar10_pmamba.py'

title = 'PlainMambas of one and four directions, 5,000 images of CIFAR-10'
search = None
_directions = {'four': {}, 'one': {'directions': ['snake_horizontal']}}
# The name here, and the learning rate.
_chosen = {
    'transmamba': ('default', 8e-3),
    'mixer': ('mixer', 4e-3),
    'directions': ('directions', 4e-3),
    'paper': ('paper', 4e-3),
    'subclone_only': ('subclone_only', 2e-3),
    'scratch': ('scratch', 4e-3),
}


def _contestant(each, student):
    name, lr = _chosen[each['name']]
    distilled = 'model.teacher_ckpt' in each.get('needs', {})
    backbone = 'model.architecture' if distilled else 'model'
    return dict(
        each,
        name=f'{name}-{student}',
        search=None,
        wave=0,
        options={
            **each.get('options', {}),
            f'{backbone}.backbone': _directions[student],
            'optim_wrapper.optimizer.lr': lr,
        },
        variant=student,
    )


contestants = [
    _base_.contestants[0],
    *(
        _contestant(each, student)
        for student in _directions
        for each in _base_.contestants
        if each['name'] in _chosen
    ),
]
pairs = [(f'{name}-four', f'{name}-one') for name, _ in _chosen.values()]
