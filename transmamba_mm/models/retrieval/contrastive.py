# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The contrastive loss over the batches of all processes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba_mm.contract.gather import gathered
from transmamba_mm.contract.records import scores


def contrastive_loss(texts: Tensor, videos: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross entropy of matching texts and videos (CLIP).

    It is that of the batch of all processes, see
    :func:`~transmamba_mm.contract.gather.gathered`.

    Args:
        texts (Tensor): Embeddings (B, D) of this process.
        videos (Tensor): Those of the matching videos.
        scale (Tensor): Inverse temperature.

    Returns:
        Tensor: Scalar, the mean of both directions.
    """
    logits = scores(gathered(texts), gathered(videos), scale)
    targets = torch.arange(len(logits), device=logits.device)
    return 0.5 * (
        F.cross_entropy(logits, targets) + F.cross_entropy(logits.mT, targets)
    )
