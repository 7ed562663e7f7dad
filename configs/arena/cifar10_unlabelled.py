"""Images without labels beside 1,250 with labels, on CIFAR-10.

Every student sees 30,000 images: the labelled ones 24 times, 5,000 of which
they are a part 6 times, or 30,000 once. Learning rates are those of
``cifar10_pmamba.py``, the best there::

    python tools/arena.py run configs/arena/cifar10_unlabelled.py \
        --work-dir work_dirs/cifar10_unlabelled
"""

title = 'Few labels, more images: PlainMamba on CIFAR-10, 30,000 images seen'
seeds = [0, 1, 2]
# Each seed draws images of its own, and which of them have labels.
seed_keys = [
    'randomness.seed',
    'train_dataloader.dataset.seed',
    'train_dataloader.dataset.dataset.seed',
]

_config = 'configs/arena/cifar10/{}_pmamba_unlabelled.py'
_distilled = dict(
    config=_config.format('distill'),
    needs={'model.teacher_ckpt': 'teacher'},
)


def _images(count):
    epochs = 30000 // count
    return {
        'train_dataloader.dataset.labelled': 1250 / count,
        'train_dataloader.dataset.dataset.fraction': count / 45000,
        'param_scheduler.0.end': 0.05 * epochs,
        'param_scheduler.1.begin': 0.05 * epochs,
        'param_scheduler.1.end': epochs,
        'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': max(1, epochs // 6),
    }


contestants = [
    dict(
        name='teacher',
        config='configs/arena/cifar10/teacher_vit.py',
        seeds=[0],
    ),
    *(
        dict(_distilled, name=f'default_{count}', options=_images(count))
        for count in (1250, 5000, 30000)
    ),
    dict(
        name='subclone_only',
        config=_config.format('subclone'),
        needs={'custom_hooks.0.teacher_ckpt': 'teacher'},
        options=_images(1250),
    ),
]
references = ['subclone_only']
pairs = [
    ('default_5000', 'default_1250'),
    ('default_30000', 'default_5000'),
]
