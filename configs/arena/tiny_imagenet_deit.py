"""The contestants of ``tiny_imagenet_pmamba.py``, taught by DeiT-Ti.

Run::

    python tools/arena.py run configs/arena/tiny_imagenet_deit.py \
        --work-dir work_dirs/tiny_imagenet_deit
"""

_base_ = ['./tiny_imagenet_pmamba.py', './tiny-imagenet/teacher_deit-tiny.py']

title = 'PlainMamba from DeiT-Ti, 5,000 images of Tiny-ImageNet, 3 epochs'
# As its teacher, every student reads images as DeiT does.
options = dict(data_preprocessor=_base_.data_preprocessor)
contestants = [
    dict(each, config=each['config'].replace('vit-tiny', 'deit-tiny'))
    for each in _base_.contestants
]
