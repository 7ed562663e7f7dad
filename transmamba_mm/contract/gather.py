# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The batch of all processes, for losses that compare its members."""

from typing import Any

import torch
from mmengine.dist import all_gather, all_reduce, get_rank, is_distributed
from torch import Tensor


class _Gathered(torch.autograd.Function):
    """Rows of all processes; each gets the gradients of all for its own.

    PyTorch's own, ``torch.distributed.nn.functional``, is deprecated.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = len(rows)
        return torch.cat(all_gather(rows.contiguous()))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone()
        all_reduce(grad, op='sum')
        return grad[get_rank() * ctx.rows :][: ctx.rows]


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
    return _Gathered.apply(rows) if is_distributed() else rows
