"""The contestants of ``cifar10_pmamba.py``, with a Vim in place of PlainMamba.

Two directions and a class token, as wide and deep as the teacher. Everything
else is the same, a search of each contestant's learning rate with it::

    python tools/arena.py run configs/arena/cifar10_vim.py \
        --work-dir work_dirs/cifar10_vim
"""

_base_ = './cifar10_pmamba.py'

title = 'Vim from a small ViT, 5,000 images of CIFAR-10, 6 epochs'
contestants = [
    dict(each, config=each['config'].replace('pmamba', 'vim'))
    for each in _base_.contestants
]
