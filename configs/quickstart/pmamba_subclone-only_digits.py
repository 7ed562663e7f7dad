_base_ = './pmamba_scratch_digits.py'

custom_hooks = [
    dict(
        type='transmamba.SubcloneInitializer',
        teacher_ckpt='work_dirs/deit_digits/epoch_60.pth',
    ),
]
