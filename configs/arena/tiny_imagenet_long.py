"""The contestants of ``tiny_imagenet_pmamba.py``, four times as long.

The teacher is the same. Run::

    python tools/arena.py run configs/arena/tiny_imagenet_long.py \
        --work-dir work_dirs/tiny_imagenet_long
"""

_base_ = './tiny_imagenet_pmamba.py'

title = 'PlainMamba from ViT-Ti, 5,000 images of Tiny-ImageNet, 12 epochs'
_long = {
    'param_scheduler.0.end': 0.6,
    'param_scheduler.1.begin': 0.6,
    'param_scheduler.1.end': 12,
    'train_cfg.max_epochs': 12,
    'train_cfg.val_interval': 2,
}
contestants = [
    _base_.contestants[0],
    *(
        dict(each, options={**_long, **each.get('options', {})})
        for each in _base_.contestants[1:]
    ),
]
