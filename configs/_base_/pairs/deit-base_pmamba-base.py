"""DeiT-B of ImageNet-1k teaches PMamba-B; a method adds the distiller."""

_base_ = ['../models/pmamba_base.py', '../teachers/deit_base.py']

model = dict(
    _delete_=True,
    type='transmamba.TransMambaDistill',
    architecture=_base_.model,
    teacher=_base_.teacher,
    teacher_ckpt=_base_.teacher_weights,
)
# Stage one.
custom_hooks = [dict(type='transmamba.SubcloneInitializer')]
