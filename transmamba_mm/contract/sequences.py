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
