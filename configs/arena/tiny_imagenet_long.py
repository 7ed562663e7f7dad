"""The contestants of ``tiny_imagenet_pmamba.py``, four times as long.

The teacher is the same. Beside the default there is its recipe for long
trainings, with a brief warm-up of the mixers. Run::

    python tools/arena.py run configs/arena/tiny_imagenet_long.py \
        --work-dir work_dirs/tiny_imagenet_long
"""

_base_ = ['./tiny_imagenet_pmamba.py', '../_base_/methods/transmamba.py']

title = 'PlainMamba from ViT-Ti, 5,000 images of Tiny-ImageNet, 12 epochs'
_long = {
    'param_scheduler.0.end': 0.6,
    'param_scheduler.1.begin': 0.6,
    'param_scheduler.1.end': 12,
    'train_cfg.max_epochs': 12,
    'train_cfg.val_interval': 2,
}
_teacher, *_students = _base_.contestants
_brief = dict(
    name='transmamba_long',
    config='configs/arena/tiny-imagenet/distill_pmamba.py',
    needs={'model.teacher_ckpt': 'teacher'},
    options={
        'model.distiller': dict(
            _base_.transmamba_long['distiller'], _delete_=True
        )
    },
)
contestants = [
    _teacher,
    *(
        dict(each, options={**_long, **each.get('options', {})})
        for each in (*_students, _brief)
    ),
]
pairs = [*_base_.pairs, ('transmamba_long', 'transmamba')]
