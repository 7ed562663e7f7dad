# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Where a language model that answers questions is read.

Methods of distillation know such a model by its :class:`AnswerReader`,
whatever sees the images and makes the prompts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn

#: Label of a token, or of an image, that no loss reads; PyTorch's.
IGNORED = -100


@dataclass(frozen=True)
class Answers:
    """The answers of a batch, and what they are predicted from.

    Attributes:
        tokens (Tensor): What the head reads (M, C), in front of each token
            of an answer.
        labels (Tensor): LongTensor (M,), the tokens of the answers.
        head (Callable): Scores (..., V) of tokens (..., C).
    """

    tokens: Tensor
    labels: Tensor
    head: Callable[[Tensor], Tensor]

    def score(self, tokens: Tensor) -> Tensor:
        """Logits (..., V) of some of the tokens, in float32 at least."""
        logits = self.head(tokens)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @property
    def logits(self) -> Tensor:
        """Tensor: Those of all tokens (M, V)."""
        return self.score(self.tokens)


class AnswerReader(nn.Module):
    """Picks the answers out of sequences; runs once in a pass.

    Args:
        spelling (tuple[int, ...]): Ids of :data:`CONVERSATION`. Models in
            which they are equal read the same tokens.
    """

    #: Turns that tell tokenizers and prompts apart.
    CONVERSATION = (
        ('<image>\nWhich 2 colours? Tell me, in 10 words!', 'Red; a_b "É" 42'),
        ('Why is that?', 'Because.'),
    )

    def __init__(self, spelling: tuple[int, ...]) -> None:
        super().__init__()
        self.spelling = spelling

    def forward(
        self,
        tokens: Tensor,
        labels: Tensor,
        head: Callable[[Tensor], Tensor],
    ) -> Answers:
        """Picks them.

        Args:
            tokens (Tensor): What the head reads (B, L, C).
            labels (Tensor): Ids of the answers (B, L), elsewhere -100.
            head (Callable): Scores of tokens.

        Returns:
            Answers: Of all sequences, one after the other.
        """
        # What a token is read from stands before it.
        read = labels[:, 1:] != IGNORED
        return Answers(tokens[:, :-1][read], labels[:, 1:][read], head)


def answer_reader(model: nn.Module) -> Optional[AnswerReader]:
    """The reader of a model; None if it does not answer questions."""
    found = (x for x in model.modules() if isinstance(x, AnswerReader))
    return next(found, None)
