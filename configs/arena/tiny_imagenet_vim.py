"""The contestants of ``tiny_imagenet_pmamba.py``, with a ViM as the student.

Vim as wide and deep as the teacher, with FFNs. Run::

    python tools/arena.py run configs/arena/tiny_imagenet_vim.py \
        --work-dir work_dirs/tiny_imagenet_vim
"""

_base_ = './tiny_imagenet_pmamba.py'

title = 'ViM from ViT-Ti, 5,000 images of Tiny-ImageNet, 3 epochs'
contestants = [
    dict(each, config=each['config'].replace('pmamba', 'vim'))
    for each in _base_.contestants
]
