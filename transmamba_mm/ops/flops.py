# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Telling PyTorch's FLOP counter about operators it does not know."""

from typing import Callable

from torch.utils.flop_counter import flop_registry, register_flop_formula


def register_flops(operator) -> Callable:
    """Return a decorator for the FLOP formula of an operator.

    It is ``register_flop_formula``, which up to PyTorch 2.5 files a formula
    where the counter does not look for it.

    Args:
        operator: an ``OpOverloadPacket``, e.g. ``torch.ops.namespace.name``.
    """

    def register(formula: Callable) -> Callable:
        flop_registry[operator] = register_flop_formula(operator)(formula)
        return formula

    return register
