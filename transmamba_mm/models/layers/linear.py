# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Linear maps and convolutions which other tools may replace or watch.

Quantisation, adapters and pruning put a module in the place of an
``nn.Linear``, by its exact type, or attach hooks to it. A mixer that reads
``weight`` instead of calling the module would pass them by.
"""

from typing import Optional

from torch import Tensor, nn


def is_plain(module: nn.Module, kind: type) -> bool:
    """Whether the parameters of a module stand for it.

    Args:
        module (nn.Module): What may have been replaced.
        kind (type): What it was.

    Returns:
        bool: False if it is of another type, or something is attached.
    """
    return (
        type(module) is kind
        and 'forward' not in vars(module)
        and not module._forward_pre_hooks
        and not module._forward_hooks
        and not module._backward_pre_hooks
        and not module._backward_hooks
    )


def bias_of(module: nn.Module, x: Tensor) -> Optional[Tensor]:
    """What a linear map, or what replaced it, adds.

    Args:
        module (nn.Module): The map.
        x (Tensor): (..., in_features), an input of it.

    Returns:
        Tensor: (out_features,), or None.
    """
    if isinstance(module, nn.Linear):
        return module.bias
    return module(x.new_zeros(1, x.shape[-1]))[0]
