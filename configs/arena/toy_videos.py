"""A small CLIP4Clip teaches a VideoMamba to retrieve toy videos.

Real video files and captions, nothing to download. Every student sees 5,000
clips; text to video among 200 clips that hold colours of shapes which no
training clip has, each also backwards. ``make quickstart-retrieval`` runs
this::

    python tools/dataset_converters/make_toy_videos.py data/toy_videos
    python tools/arena.py run configs/arena/toy_videos.py \
        --work-dir work_dirs/toy_videos
"""

_base_ = [
    '../_base_/methods/logits_kd.py',
    '../_base_/methods/hidden_states.py',
    '../_base_/methods/similarity.py',
    '../_base_/methods/transmamba_paper.py',
]

title = 'VideoMamba from CLIP4Clip, toy videos, 10 epochs'
metric = 't2v/R@1'
seeds = [0, 1, 2]
# Each seed draws clips of its own.
seed_keys = ['randomness.seed', 'train_dataloader.dataset.seed']

_path = 'configs/quickstart/{}_toy-videos.py'
_distilled = dict(
    config=_path.format('transmamba_clip4clip_videomamba'),
    needs={'model.teacher_ckpt': 'teacher'},
)


def _distil(alpha, *methods):
    """The weight of the contrastive loss, and the methods beside it."""
    return {
        'model.alpha': alpha,
        'model.distiller.methods': list(methods),
        'model.distiller.phases': [],
    }


_logits = dict(_base_.logits_kd, in_alpha=True)
_similarity = dict(_base_.similarity, in_alpha=True)

contestants = [
    dict(name='teacher', config=_path.format('clip4clip'), seeds=[0]),
    dict(
        name='subclone_only',
        config=_path.format('videomamba_subclone-only'),
        needs={'custom_hooks.0.teacher_ckpt': 'teacher'},
    ),
    # The default recipe: hidden states and logits.
    dict(_distilled, name='transmamba'),
    dict(_distilled, name='similarity', options=_distil(0.3, _similarity)),
    dict(
        _distilled,
        name='hidden_similarity',
        options=_distil(0.3, _base_.hidden_states, _similarity),
    ),
    dict(_distilled, name='logits', options=_distil(0.3, _logits)),
    dict(
        _distilled,
        name='paper',
        options={'model': _base_.transmamba_paper},
    ),
    dict(name='scratch', config=_path.format('videomamba_scratch')),
]
references = ['subclone_only', 'scratch']
pairs = [
    ('transmamba', 'similarity'),
    ('hidden_similarity', 'transmamba'),
    ('hidden_similarity', 'similarity'),
]
