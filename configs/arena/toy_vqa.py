"""A small LLaVA teaches Mambas to answer questions about toy images.

Drawn shapes, a token for each byte, nothing to download. Every student sees
7,500 conversations of three questions; the metric is the share of right
answers to 500 questions about new images. ``make quickstart-vqa`` runs this::

    python tools/dataset_converters/make_toy_vqa.py data/toy_vqa
    python tools/arena.py run configs/arena/toy_vqa.py \
        --work-dir work_dirs/toy_vqa
"""

_base_ = [
    '../_base_/methods/answer_logits_kd.py',
    '../_base_/methods/transmamba_paper.py',
]

title = 'TransMambaLM from LLaVA, toy questions, 5 epochs'
metric = 'vqa/accuracy'
seeds = [0, 1, 2]
# Each seed draws images of its own.
seed_keys = ['randomness.seed', 'train_dataloader.dataset.seed']

_path = 'configs/quickstart/{}_toy-vqa.py'
_distilled = dict(
    config=_path.format('transmamba_llava_transmamba-lm'),
    needs={'model.teacher_ckpt': 'teacher'},
)

_slow = {'optim_wrapper.optimizer.lr': 2e-3}

contestants = [
    dict(name='teacher', config=_path.format('llava'), seeds=[0]),
    # The default recipe: mixers first, then hidden states and logits.
    dict(_distilled, name='transmamba'),
    dict(
        name='subclone_only',
        config=_path.format('transmamba-lm_subclone-only'),
        needs={'custom_hooks.0.teacher_ckpt': 'teacher'},
    ),
    dict(name='scratch', config=_path.format('transmamba-lm_scratch')),
    dict(
        _distilled,
        name='transmamba_cross',
        options={
            'model.architecture.lang_encoder.cross_layers': (1, 3),
            # Cross-Mamba cannot run on the teacher's stream alone.
            'model.distiller.methods.0.layer_map': [0, None, 2, None],
        },
    ),
    dict(
        _distilled,
        name='paper',
        options={'model': _base_.transmamba_paper, **_slow},
    ),
    dict(
        _distilled,
        name='logits',
        options={
            'model.distiller.methods': [
                dict(_base_.answer_logits_kd, in_alpha=True)
            ],
            'model.distiller.phases': [],
            **_slow,
        },
    ),
]
references = ['subclone_only', 'scratch']
pairs = [
    ('transmamba', 'logits'),
    ('transmamba_cross', 'transmamba'),
]
