# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""VideoMamba (arXiv 2403.06977, github.com/OpenGVLab/VideoMamba)."""

from collections.abc import Mapping

from torch import Tensor

from .base import CheckpointFormat, name_as_classifier, register


def to_classifier(
    state_dict: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Names an official checkpoint's tensors as an mmpretrain classifier's.

    The classifier is an ``ImageClassifier`` of a ``VideoMamba`` and a
    ``LinearClsHead``. CLIP decoders of the retrieval variant are named as if
    a ``ClipDecoders``, which reads what ``VideoMamba.encode`` returns, were
    the ``neck``. Of a whole retrieval model the vision encoder is taken.

    Args:
        state_dict (Mapping[str, Tensor]): The tensors of an official file.

    Returns:
        dict[str, Tensor]: The same tensors under ``backbone.``,
        ``head.fc.`` and ``neck.``.
    """
    encoder = 'vision_encoder.'
    if any(key.startswith(encoder) for key in state_dict):
        state_dict = {
            key[len(encoder) :]: value
            for key, value in state_dict.items()
            if key.startswith(encoder)
        }
    return name_as_classifier(
        state_dict,
        {
            'head.': 'head.fc.',
            'norm.': 'backbone.norm_f.',
            'clip_decoder.': 'neck.clip_decoder.',
        },
    )


VIDEO_MAMBA = register(
    CheckpointFormat(
        family='videomamba',
        names=('videomamba_',),
        keys=('temporal_pos_embedding',),
        layout=dict(class_token='head', divide_out=False),
        mistaken_for=('vim',),
        optional=r'(norm_layer\d+|pool_norm)\.',
        to_classifier=to_classifier,
    )
)
