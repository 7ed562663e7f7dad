# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What is known of the tokens of a batch of sequences."""

from dataclasses import dataclass
from typing import Optional

from torch import Tensor


@dataclass(frozen=True)
class TokenMasks:
    """Which tokens of sequences are what; the third input of a block.

    Attributes:
        valid (Tensor, optional): Bool (B, L), False on padding. Defaults to
            None: there is none.
        image (Tensor, optional): Bool (B, L), True on image tokens. Defaults
            to None: there is none.
        question (Tensor, optional): Bool (B, L), True on tokens of the
            instruction. Defaults to None: it is not known which.
    """

    valid: Optional[Tensor] = None
    image: Optional[Tensor] = None
    question: Optional[Tensor] = None


def valid_of(inputs: tuple) -> Optional[Tensor]:
    """Which tokens (B, L) are no padding, by what a block or mixer read.

    Args:
        inputs (tuple): Tokens, grid and maybe :class:`TokenMasks`.

    Returns:
        Tensor | None: Bool (B, L); None for all.
    """
    return inputs[2].valid if len(inputs) > 2 and inputs[2] else None


def flat_logits(logits: Tensor, valid: Optional[Tensor]) -> Tensor:
    """Scores (M, V) of the tokens that are no padding.

    Args:
        logits (Tensor): (B, L, V).
        valid (Tensor, optional): Bool (B, L). Defaults to None, all.

    Returns:
        Tensor: (M, V).
    """
    return logits.flatten(0, 1) if valid is None else logits[valid]
