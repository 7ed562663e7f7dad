"""Images without labels beside 1,250 with labels, on CIFAR-10.

Every student sees 30,000 images: the labelled ones 24 times, 5,000 of which
they are a part 6 times, or 30,000 once. Learning rates are those of
``cifar10_pmamba.py``, the best there::

    python tools/arena.py run configs/arena/cifar10_unlabelled.py \
        --work-dir work_dirs/cifar10_unlabelled
"""

_base_ = '../_base_/datasets/cifar10_24_held-out.py'

title = 'Few labels, more images: PlainMamba on CIFAR-10, 30,000 images seen'
seeds = [0, 1, 2]
# Each seed draws images of its own, and which of them have labels.
seed_keys = [
    'randomness.seed',
    'train_dataloader.dataset.seed',
    'train_dataloader.dataset.dataset.seed',
]

_path = 'configs/arena/cifar10/{}.py'


def _options(count, lr):
    epochs = 30000 // count
    images = dict(_base_.train_dataloader['dataset'], fraction=count / 45000)
    return {
        'train_dataloader.dataset': dict(
            _delete_=True,
            type='transmamba.PartlyLabelledDataset',
            dataset=images,
            labelled=1250 / count,
        ),
        'optim_wrapper.optimizer.lr': lr,
        'param_scheduler.0.end': 0.05 * epochs,
        'param_scheduler.1.begin': 0.05 * epochs,
        'param_scheduler.1.end': epochs,
        'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': max(1, epochs // 6),
    }


contestants = [
    dict(
        name='teacher',
        config=_path.format('teacher_vit'),
        seeds=[0],
    ),
    *(
        dict(
            name=f'default_{count}',
            config=_path.format('distill_pmamba'),
            needs={'model.teacher_ckpt': 'teacher'},
            options=_options(count, 8e-3),
        )
        for count in (1250, 5000, 30000)
    ),
    dict(
        name='subclone_only',
        config=_path.format('subclone_pmamba'),
        needs={'custom_hooks.0.teacher_ckpt': 'teacher'},
        options=_options(1250, 2e-3),
    ),
]
references = ['subclone_only']
pairs = [
    ('default_5000', 'default_1250'),
    ('default_30000', 'default_5000'),
]
