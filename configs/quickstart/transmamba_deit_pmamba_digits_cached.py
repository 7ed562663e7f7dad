"""TransMamba with a teacher that runs once for each image.

Run after ``deit_digits.py``. Every image has five augmentations, one for each
epoch in turn. What the teacher gives for them is written the first time they
come, 17 kB for hidden states and logits of an image, and read from then on: a
second run, of another seed or learning rate too, never runs the teacher.
"""

_base_ = './transmamba_deit_pmamba_digits.py'

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='transmamba.SeededAugment',
        num_views=5,
        dataset=_base_.train_dataloader.dataset,
    )
)
custom_hooks = [
    *_base_.custom_hooks,
    dict(
        type='transmamba.TeacherCacheHook',
        folder='work_dirs/deit_digits/teacher_cache',
    ),
]
