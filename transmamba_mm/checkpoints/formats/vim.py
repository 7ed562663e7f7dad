# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Vim (arXiv 2401.09417, github.com/hustvl/Vim)."""

from collections.abc import Mapping

from torch import Tensor

from .base import CheckpointFormat, name_as_classifier, register


def to_classifier(
    state_dict: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Names an official checkpoint's tensors as an mmpretrain classifier's.

    The classifier is an ``ImageClassifier`` of a ``VisionMamba`` and a
    ``LinearClsHead``.

    Args:
        state_dict (Mapping[str, Tensor]): The tensors of an official file.

    Returns:
        dict[str, Tensor]: The same tensors under ``backbone.`` and
        ``head.fc.``.
    """
    return name_as_classifier(state_dict, {'head.': 'head.fc.'})


VIM = register(
    CheckpointFormat(
        family='vim',
        names=('vim_',),
        layout=dict(class_token='middle', divide_out=True),
        mistaken_for=('videomamba',),
        to_classifier=to_classifier,
    )
)
