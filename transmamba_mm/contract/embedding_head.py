# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The part of a retrieval model that others may read its embeddings from."""

from abc import abstractmethod
from typing import Optional

from mmengine.model import BaseModule
from torch import Tensor, nn

from .records import Embeddings


class EmbeddingHead(BaseModule):
    """Brings texts and videos into one space; runs once in a pass.

    Methods of distillation know a retrieval model by it, whatever its towers
    are.
    """

    @abstractmethod
    def forward(
        self, texts: Tensor, features: Tensor, mask: Tensor
    ) -> Embeddings:
        """Embeddings of what the towers give.

        Args:
            texts (Tensor): Of each text (N, C).
            features (Tensor): Of each frame (B, T, C'), or of the whole
                video (B, 1, C').
            mask (Tensor): Bool (B, T), True for frames that are no padding.

        Returns:
            Embeddings: All of length 1.
        """


def embedding_head(model: nn.Module) -> Optional[EmbeddingHead]:
    """The embedding head of a model; None if it is no retrieval model."""
    found = (x for x in model.modules() if isinstance(x, EmbeddingHead))
    return next(found, None)
