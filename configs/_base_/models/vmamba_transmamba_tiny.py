"""Student: VMamba-T of the paper's Table 1, 224 pixels, 1000 classes.

The table's 15 layers and 40.5 M parameters fit VMamba's second version with
2-2-9-2 blocks, 16 states and mixers twice as wide as the tokens; other
readings are presets of ``VMamba``, too (``transmamba-tiny-*``).
"""

_base_ = './classifier_224.py'

model = dict(
    backbone=dict(type='transmamba.VMamba', arch='transmamba-tiny'),
    head=dict(
        in_channels=768,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
    ),
)
