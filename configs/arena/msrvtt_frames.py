"""ViT-Ti and MiniLM teach a VideoMamba to retrieve real videos.

Frames of 1,276 videos of MSR-VTT and real pretrained weights. Frames are not
clips, and few: nothing here compares with published figures. Every student
sees 8,000 pairs of two frames and a caption, of 800 videos; recall at 10 of
text to video among 476 videos of 1k-A::

    python tools/arena.py run configs/arena/msrvtt_frames.py \
        --work-dir work_dirs/msrvtt_frames

Data: ``configs/_base_/datasets/msrvtt_frames_96.py``. The teacher starts from
``configs/arena/tiny-imagenet/teacher_vit-tiny.py``.
"""

_base_ = [
    '../_base_/methods/similarity.py',
    '../_base_/methods/transmamba_paper.py',
]

title = 'VideoMamba from ViT-Ti and MiniLM, frames of MSR-VTT, 10 epochs'
metric = 't2v/R@10'
seeds = [0, 1, 2]
seed_keys = ['randomness.seed']

_path = 'configs/arena/msrvtt-frames/{}.py'
_distilled = dict(
    config=_path.format('distill_videomamba'),
    needs={'model.teacher_ckpt': 'teacher'},
)

contestants = [
    dict(name='teacher', config=_path.format('teacher_vit-tiny'), seeds=[0]),
    dict(
        name='subclone_only',
        config=_path.format('subclone_videomamba'),
        needs={'custom_hooks.0.teacher_ckpt': 'teacher'},
    ),
    dict(_distilled, name='transmamba'),
    dict(
        _distilled,
        name='similarity',
        options={
            'model.alpha': 0.3,
            'model.distiller.methods': [
                dict(_base_.similarity, in_alpha=True)
            ],
            'model.distiller.phases': [],
        },
    ),
    dict(name='scratch', config=_path.format('student_videomamba')),
    dict(_distilled, name='paper', options={'model': _base_.transmamba_paper}),
]
references = ['subclone_only', 'scratch']
pairs = [('transmamba', 'similarity')]
