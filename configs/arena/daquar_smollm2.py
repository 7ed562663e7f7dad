"""ViT-Ti and SmolLM2-135M teach a Mamba to answer questions about photos.

Real weights and photos of rooms (DAQUAR, splits without common images), but
small ones, and few: nothing here compares with published figures. Every
student sees 1,588 conversations, of 8.5 questions each; the metric is the
share of right answers to 1,021 test questions::

    python tools/arena.py run configs/arena/daquar_smollm2.py \
        --work-dir work_dirs/daquar_smollm2

Data: ``configs/_base_/datasets/daquar_128.py``; weights:
``configs/arena/daquar/teacher_smollm2.py``.
"""

title = 'TransMambaLM from SmolLM2-135M, DAQUAR, 2 epochs'
metric = 'vqa/accuracy'
seeds = [0, 1, 2]
seed_keys = ['randomness.seed']

_path = 'configs/arena/daquar/{}_smollm2.py'
_distilled = dict(
    config=_path.format('distill'),
    needs={'model.teacher_ckpt': 'teacher'},
)

contestants = [
    dict(name='teacher', config=_path.format('teacher'), seeds=[0]),
    dict(_distilled, name='transmamba'),
    dict(
        name='subclone_only',
        config=_path.format('subclone'),
        needs={'custom_hooks.0.teacher_ckpt': 'teacher'},
    ),
    dict(name='scratch', config=_path.format('student')),
]
references = ['subclone_only', 'scratch']
