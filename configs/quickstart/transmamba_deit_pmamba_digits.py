_base_ = [
    './pmamba_scratch_digits.py',
    '../_base_/models/deit_digits.py',
    '../_base_/distillers/transmamba.py',
]

model = dict(
    _delete_=True,
    type='transmamba.TransMambaDistill',
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt='work_dirs/deit_digits/epoch_60.pth',
    alpha=0.5,
    distiller=_base_.distiller,
)
custom_hooks = [dict(type='transmamba.SubcloneInitializer')]
