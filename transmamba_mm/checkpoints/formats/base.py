# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The record of a format, and the registry of all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

#: All formats by family.
FORMATS: dict[str, 'CheckpointFormat'] = {}

_BACKBONE = 'backbone.'


def _as_they_are(state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return state_dict


@dataclass(frozen=True)
class CheckpointFormat:
    """What is known about the checkpoints of a model family.

    Attributes:
        family (str): Name of the family; empty for a backbone that has no
            released checkpoints.
        names (tuple[str, ...]): How names of the released models and files
            start, in lower case.
        keys (tuple[str, ...]): Tensors that only checkpoints of this family
            have.
        layout (dict[str, Any]): Values of the backbone's ``layout`` that
            the released models have.
        mistaken_for (tuple[str, ...]): Families whose checkpoints have the
            same names and shapes.
        averaged (bool): Whether the reported accuracies are those of the
            averaged weights, which are then taken where a file has them.
        optional (str): Regular expression for the beginning of names of
            tensors that a pre-trained checkpoint need not have, or may have
            beyond the backbone's.
        to_classifier (Callable): Names an official state dict's tensors as
            an mmpretrain classifier's, under ``backbone.`` and ``head.fc.``.
    """

    family: str = ''
    names: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    layout: Mapping[str, Any] = field(default_factory=dict)
    mistaken_for: tuple[str, ...] = ()
    averaged: bool = False
    optional: str = r'norm_layer\d+\.'
    to_classifier: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = (
        _as_they_are
    )


def register(found: CheckpointFormat) -> CheckpointFormat:
    """Adds a format to :data:`FORMATS`.

    Args:
        found (CheckpointFormat): The format.

    Returns:
        CheckpointFormat: The same.

    Raises:
        KeyError: If its family has one.
    """
    if found.family in FORMATS:
        raise KeyError(f'family {found.family!r} has a format already')
    FORMATS[found.family] = found
    return found


def name_as_classifier(
    state_dict: Mapping[str, Tensor], renamed: Mapping[str, str]
) -> dict[str, Tensor]:
    """Names an official state dict's tensors as an mmpretrain classifier's.

    Args:
        state_dict (Mapping[str, Tensor]): The state dict.
        renamed (Mapping[str, str]): New beginnings of names by old ones;
            all other names get ``backbone.`` in front.

    Returns:
        dict[str, Tensor]: The same tensors under new names.
    """
    converted = {}
    for key, value in state_dict.items():
        for old, new in renamed.items():
            if key.startswith(old):
                converted[new + key[len(old) :]] = value
                break
        else:
            converted[f'{_BACKBONE}{key}'] = value
    return converted
