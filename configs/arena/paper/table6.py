"""The paper's Table 6 at full size: shares of ImageNet-100, PMamba-T.

Its plots over epochs and images are what Figures 1 and 3 are about. 300 epochs
of 224 pixels, a GPU for each cell::

    python tools/arena.py run configs/arena/paper/table6.py \
        --work-dir work_dirs/table6
    python tools/arena.py paper work_dirs/table6

We have not run it to completion.
"""

title = 'Table 6: PMamba-T on shares of ImageNet-100, 300 epochs'
seeds = [0, 1, 2]
# Each seed draws labelled images of its own.
seed_keys = ['randomness.seed', 'train_dataloader.dataset.seed']
axes = dict(
    share={
        f'{percent}': {'train_dataloader.dataset.fraction': percent / 100}
        for percent in (25, 50, 75, 100)
    }
)
# Learning rates are of 512 images a step.
options = {'auto_scale_lr.enable': True}

_path = (
    'configs/transmamba/transmamba_deit-tiny_pmamba-tiny_8xb64-300e_'
    'imagenet100{}.py'
)
_needs = {'model.teacher_ckpt': 'teacher'}

contestants = [
    dict(
        name='teacher',
        config='configs/transmamba/deit-tiny_8xb64-50e_imagenet100.py',
        seeds=[0],
        axes=[],
    ),
    dict(
        name='scratch',
        config='configs/plain_mamba/pmamba-tiny_8xb64-300e_imagenet100.py',
    ),
    dict(name='paper', config=_path.format('_paper'), needs=_needs),
    dict(name='default', config=_path.format(''), needs=_needs),
]
references = ['scratch']
pairs = [('default-50', 'scratch-100'), ('paper-50', 'scratch-100')]
paper = {
    f'{name}-{share}': ('Table 6', f'{share} %')
    for name in ('paper', 'default')
    for share in axes['share']
}
