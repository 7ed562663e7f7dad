"""A student half as wide, which keeps the map to its teacher's width.

Run after ``deit_digits.py``::

    python tools/train.py \
        configs/quickstart/lifted-logits-kd_deit_pmamba-narrow_digits.py

Expect 80 to 82 % top-1 (five seeds); 74 to 80 % where the head is cut to the
student's width and soft logits alone teach.
"""

_base_ = [
    '../_base_/models/pmamba_narrow_digits.py',
    '../_base_/datasets/digits_16.py',
    '../_base_/schedules/digits_adamw_cosine.py',
    '../_base_/default_runtime.py',
    '../_base_/teachers/deit_digits.py',
    '../_base_/methods/lifted_tokens.py',
    '../_base_/methods/logits_kd.py',
]

model = dict(
    _delete_=True,
    type='transmamba.TransMambaDistill',
    architecture=_base_.model,
    teacher=_base_.teacher,
    teacher_ckpt='work_dirs/deit_digits/epoch_60.pth',
    distiller=dict(
        type='transmamba.MethodDistiller',
        methods=[_base_.lifted_tokens, _base_.logits_kd],
    ),
)
custom_hooks = [
    dict(type='transmamba.SubcloneInitializer', importance='magnitude')
]
default_hooks = dict(distill_monitor=dict(interval=5))
# 20 %: 259 labelled images, 25 or 26 of each digit.
train_dataloader = dict(dataset=dict(fraction=0.2))
