"""The paper's stage two: every layer and scan direction, the last tokens.

Adaptive bidirectional distillation (TransMamba, arXiv 2502.15130, Eq. 4 to
11). Directions, scan orders, layers and widths are read from the pair.
"""

transmamba = dict(
    type='transmamba.AdaptiveBidirectional', tau=0.1, teacher_layers='last'
)
