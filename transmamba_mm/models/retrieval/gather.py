# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The contrastive loss over the batches of all processes."""

import torch
import torch.nn.functional as F
from mmengine.dist import is_distributed
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from transmamba_mm.contract.records import scores


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, in their order, with all gradients.

    Args:
        rows (Tensor): (B, D), as many in each process.

    Returns:
        Tensor: (processes x B, D). What any process computes of a row sends
        its gradient back to where the row is from.
    """
    if not is_distributed():
        return rows
    return torch.cat(all_gather(rows.contiguous()))


def contrastive_loss(texts: Tensor, videos: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross entropy of matching texts and videos (CLIP).

    Every process computes the loss of the whole batch. The gradients of all,
    which data-parallel training averages, are then those of one process with
    all of the batch.

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
