# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Differentiation beyond a backward pass: ``torch.func`` and forward mode.

An ``autograd.Function`` that serves these takes 40 us more at every call than
one that does not, and has a tangent only if someone derives it.  So an
operator asks here, and where one of them is at work takes another way, which
PyTorch can differentiate: its formula.
"""

from typing import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad


def active() -> bool:
    """Whether a transform of ``torch.func`` or forward mode is at work."""
    return in_torch_func() or in_forward_mode()


def in_torch_func() -> bool:
    """Whether a transform of ``torch.func`` is at work."""
    return torch._C._are_functorch_transforms_active()


def in_forward_mode() -> bool:
    """Whether tensors may have tangents, here or in ``torch.func.jvp``."""
    return forward_ad._current_level >= 0


def gradients(
    formula: Callable, tensors: tuple, needs: tuple, grad_out: Tensor
) -> tuple:
    """Return gradients that have gradients themselves.

    For the backward pass of an operator under ``create_graph=True``.

    Args:
        formula: the operator in PyTorch operations, a function of the
            tensors.
        tensors: its arguments, or None for those not given.
        needs: whether each needs a gradient.
        grad_out: gradient of its result.

    Returns:
        tuple: gradients, None where not needed.
    """
    # Views, as one argument may have been computed from another.
    views = [None if x is None else x.view_as(x) for x in tensors]
    asked = [x for x, need in zip(views, needs) if need]
    grads = iter(
        torch.autograd.grad(
            formula(*views), asked, grad_out, create_graph=True
        )
    )
    return tuple(next(grads) if need else None for need in needs)
