# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Dropping tokens of a sequence that starts with a class token."""

import torch
from torch import Tensor


def keep_tokens(tokens: Tensor, mask: Tensor) -> Tensor:
    """Drops the masked tokens; the others keep their order.

    Args:
        tokens (Tensor): (B, 1 + M, C), the class token first.
        mask (Tensor): Bool (B, 1 + M), True for tokens to drop.

    Returns:
        Tensor: (B, 1 + N, C), with N tokens kept besides the class token.

    Raises:
        ValueError: If the mask has another shape or type, drops the class
            token or every patch, or not as many tokens in each row.
    """
    if mask.dtype != torch.bool or mask.shape != tokens.shape[:2]:
        raise ValueError(
            f'mask must be bool {tuple(tokens.shape[:2])}, one entry per '
            f'token with the class token first, got {mask.dtype} '
            f'{tuple(mask.shape)}'
        )
    if mask[:, 0].any():
        raise ValueError(
            'mask drops the class token, which is the first: set '
            'mask[:, 0] = False'
        )
    dropped = mask.sum(dim=1)
    if (dropped != dropped[0]).any():
        raise ValueError(
            f'mask must drop as many tokens in each row, got '
            f'{dropped.tolist()}'
        )
    if dropped[0] == tokens.shape[1] - 1:
        raise ValueError('mask drops every patch: keep at least one')
    return tokens[~mask].unflatten(0, (len(tokens), -1))
