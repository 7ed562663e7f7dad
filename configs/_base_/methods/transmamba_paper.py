"""Stage two as the paper has it: every layer and scan direction, last tokens.

Adaptive bidirectional distillation (TransMamba, arXiv 2502.15130, Eq. 4 to
11). Directions, scan orders, layers and widths are read from the pair. Values
of the model, see ``transmamba.py``.
"""

transmamba_paper = dict(
    # The paper prints neither alpha nor tau.
    alpha=0.5,
    distiller=dict(
        type='transmamba.MethodDistiller',
        methods=[
            dict(
                type='transmamba.AdaptiveBidirectional',
                tau=0.1,
                teacher_layers='last',
            )
        ],
        phases=[],
    ),
)
