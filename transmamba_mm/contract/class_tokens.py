# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Class tokens at any place of a token sequence."""

from collections.abc import Sequence

import torch
from torch import Tensor


def join_class_tokens(
    classes: Tensor, patches: Tensor, slots: Sequence[int]
) -> Tensor:
    """Puts class tokens among the patches.

    Args:
        classes (Tensor): (B, n, C).
        patches (Tensor): (B, M, C).
        slots (Sequence[int]): Where the n class tokens stand in the result,
            ascending.

    Returns:
        Tensor: (B, M + n, C).
    """
    pieces, start = [], 0
    for i, slot in enumerate(slots):
        pieces += [patches[:, start : slot - i], classes[:, i : i + 1]]
        start = slot - i
    pieces.append(patches[:, start:])
    return torch.cat(pieces, dim=1)


def split_class_tokens(
    tokens: Tensor, slots: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Undoes :func:`join_class_tokens`.

    Args:
        tokens (Tensor): (B, M + n, C).
        slots (Sequence[int]): Where the n class tokens stand, ascending.

    Returns:
        tuple[Tensor, Tensor]: Class tokens (B, n, C) and patches (B, M, C).
    """
    if not slots:
        return tokens[:, :0], tokens
    pieces, start = [], 0
    for slot in slots:
        pieces.append(tokens[:, start:slot])
        start = slot + 1
    pieces.append(tokens[:, start:])
    classes = torch.cat([tokens[:, slot : slot + 1] for slot in slots], dim=1)
    return classes, torch.cat(pieces, dim=1)
