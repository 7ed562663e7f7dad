"""LLaVA on LLaMA-3.2-3B teaches a 600 M Mamba; a method adds the distiller."""

_base_ = [
    '../models/llava_transmamba_600m.py',
    '../teachers/llava_llama3_2_3b.py',
]

model = dict(
    _delete_=True,
    type='transmamba.TransMambaDistill',
    architecture=_base_.model,
    teacher=_base_.teacher,
)
# Stage one. The widths of the projectors differ, so that is fresh.
custom_hooks = [
    dict(
        type='transmamba.SubcloneInitializer',
        # What the teacher was tuned from tells which channels change least.
        reference_ckpt='checkpoints/Llama-3.2-3B',
        ssm_from='checkpoints/falcon-mamba-7b',
        conv_init='normal',
        copies=dict(vision_encoder='vision_encoder'),
    )
]
