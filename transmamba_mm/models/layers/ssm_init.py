# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Start values that all selective state space models share."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def decay_rates(d_inner: int, d_state: int) -> Tensor:
    """``A_log`` of ``A = -(1, 2, ..., N)`` in every channel.

    Args:
        d_inner (int): Channels.
        d_state (int): State size N.

    Returns:
        Tensor: (d_inner, d_state).
    """
    rates = torch.arange(1.0, d_state + 1).log()
    return rates.repeat(d_inner, 1)


def init_step_sizes(
    dt_proj: nn.Linear,
    dt_min: float = 1e-3,
    dt_max: float = 0.1,
    dt_floor: float = 1e-4,
) -> None:
    """Draws the step sizes of a fresh model log-uniformly.

    Args:
        dt_proj (nn.Linear): From ``dt_rank`` to ``d_inner``, with a bias,
            which softplus turns into step sizes.
        dt_min (float): Lower end. Defaults to 1e-3.
        dt_max (float): Upper end. Defaults to 0.1.
        dt_floor (float): No step size starts below it. Defaults to 1e-4.
    """
    bound = dt_proj.in_features**-0.5
    nn.init.uniform_(dt_proj.weight, -bound, bound)
    bias = step_size_bias((dt_proj.out_features,), dt_min, dt_max, dt_floor)
    with torch.no_grad():
        dt_proj.bias.copy_(bias)


def step_size_bias(
    shape: Sequence[int],
    dt_min: float = 1e-3,
    dt_max: float = 0.1,
    dt_floor: float = 1e-4,
) -> Tensor:
    """Draws what softplus turns into log-uniform step sizes.

    Args:
        shape (Sequence[int]): Shape of the result.
        dt_min (float): Lower end. Defaults to 1e-3.
        dt_max (float): Upper end. Defaults to 0.1.
        dt_floor (float): No step size starts below it. Defaults to 1e-4.

    Returns:
        Tensor: A bias of the shape asked for.

    Raises:
        ValueError: If there is no step size between the ends.
    """
    if not 0 < dt_min <= dt_max:
        raise ValueError(
            f'dt_min must be above 0 and at most dt_max, got {dt_min} and '
            f'{dt_max}'
        )
    span = math.log(dt_max) - math.log(dt_min)
    dt = torch.exp(torch.rand(*shape) * span + math.log(dt_min))
    dt.clamp_(min=dt_floor)
    # The inverse of softplus, so that the first steps are `dt`.
    return dt + torch.log(-torch.expm1(-dt))
