# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The batch of all processes, for losses that compare its members."""

import torch
from mmengine.dist import is_distributed
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, in their order, with all gradients.

    A loss of the gathered batch is the same in every process. The gradients
    of all, which data-parallel training averages, are then those of one
    process with all of the batch.

    Args:
        rows (Tensor): (B, D), as many in each process.

    Returns:
        Tensor: (processes x B, D). What any process computes of a row sends
        its gradient back to where the row is from.
    """
    if not is_distributed():
        return rows
    return torch.cat(all_gather(rows.contiguous()))
