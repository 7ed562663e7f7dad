"""The student: a TransMambaLM of 600 M parameters in the place of the LLaMA.

Vision tower, tokenizer and prompt are the teacher's.
"""

model = dict(
    type='transmamba.TransLlava',
    vision_encoder=dict(
        type='transmamba.CLIPVisionTower',
        arch='ViT-L/14',
        img_size=336,
        out_layer=-2,
    ),
    projector=dict(type='transmamba.MLPProjector', in_channels=1024),
    lang_encoder=dict(
        type='transmamba.TransMambaLM',
        arch='600m',
        # As Falcon Mamba, of which the scans are.
        mixer_cfg=dict(norm_bc_dt=1e-6),
        with_cp=True,
    ),
    tokenizer=dict(
        type='transmamba.CausalTokenizer', path='checkpoints/Llama-3.2-3B'
    ),
    prompt_tmpl='USER: {question} ASSISTANT: {answer}',
    max_length=2048,
)
