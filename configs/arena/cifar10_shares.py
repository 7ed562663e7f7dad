"""Shares of the labelled images, as in the paper's Table 6, on CIFAR-10.

25 to 100 % of the 5,000 images of ``cifar10_pmamba.py``, at equal epochs, at
the learning rates that were best there::

    python tools/arena.py run configs/arena/cifar10_shares.py \
        --work-dir work_dirs/cifar10_shares
"""

_base_ = '../_base_/methods/transmamba_paper.py'

title = 'Shares of 5,000 images of CIFAR-10, PlainMamba, 6 epochs'
seeds = [0, 1, 2]
# Each seed draws labelled images of its own; shares of one seed are nested.
seed_keys = ['randomness.seed', 'train_dataloader.dataset.seed']
axes = dict(
    share={
        f'{percent}': {'train_dataloader.dataset.fraction': percent / 900}
        for percent in (25, 50, 75, 100)
    }
)
_path = 'configs/arena/cifar10/{}.py'
_distilled = dict(
    config=_path.format('distill_pmamba'),
    needs={'model.teacher_ckpt': 'teacher'},
)
_paper = _base_.transmamba_paper


def _rate(value):
    return {'optim_wrapper.optimizer.lr': value}


contestants = [
    dict(
        name='teacher',
        config=_path.format('teacher_vit'),
        seeds=[0],
        axes=[],
    ),
    dict(_distilled, name='default', options=_rate(8e-3)),
    dict(
        config=_path.format('subclone_pmamba'),
        needs={'custom_hooks.0.teacher_ckpt': 'teacher'},
        name='subclone_only',
        options=_rate(2e-3),
    ),
    dict(
        name='scratch',
        config=_path.format('student_pmamba'),
        options=_rate(4e-3),
    ),
    dict(
        _distilled,
        name='paper',
        options={
            'model.alpha': _paper['alpha'],
            'model.distiller': dict(_paper['distiller'], _delete_=True),
            **_rate(4e-3),
        },
        wave=1,
    ),
]
references = ['subclone_only', 'scratch']
pairs = [('default-50', 'scratch-100'), ('default-50', 'subclone_only-100')]
paper = {
    f'{name}-{share}': ('Table 6', f'{share} %')
    for name in ('paper', 'default')
    for share in axes['share']
}
