# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What the tests of several backbones share."""

import math
from pathlib import Path

import torch

GOLDEN = Path(__file__).parents[2] / 'data' / 'golden'

# float32 noise of one small forward pass, relative to values near one.
CLOSE = dict(rtol=1e-4, atol=1e-5)
# bfloat16 has eight bits of mantissa, float16 eleven; a few layers lose some.
HALF_RELATIVE = {torch.bfloat16: 0.1, torch.float16: 0.02}
# Two independent samples differ by at most this many standard errors.
SIGMAS = 5.0
# Extreme values of two samples, in standard deviations.
EXTREME_SIGMAS = 2.0


def images(*size, batch=2):
    return torch.randn(batch, 3, *size)


def count(module):
    return sum(p.numel() for p in module.parameters())


def assert_start_values(parameters, stats):
    """Fresh parameters are distributed as the official ones.

    Args:
        parameters (dict): Parameters by name.
        stats (dict): Shape, mean, standard deviation and extreme values of
            an official sample, by the same names.
    """
    for name, want in stats.items():
        value = parameters[name].detach()
        assert list(value.shape) == want['shape'], name
        std = want['std']
        if std == 0:
            assert value.eq(want['mean']).all(), name
            continue
        error = std / math.sqrt(value.numel())
        got = dict(
            mean=value.mean().item(),
            std=value.std().item(),
            min=value.min().item(),
            max=value.max().item(),
        )
        limits = dict(
            # Both are samples, hence the root of two.
            mean=SIGMAS * math.sqrt(2) * error,
            std=SIGMAS * error,
            min=EXTREME_SIGMAS * std,
            max=EXTREME_SIGMAS * std,
        )
        for key, limit in limits.items():
            assert abs(got[key] - want[key]) <= limit, (name, key, got, want)


def assert_layer_depths(net, depths, total):
    """Depths for layer-wise learning rates, of parameters by name."""
    for name, depth in depths.items():
        assert name in dict(net.named_parameters())
        assert net.get_layer_depth(name) == (depth, total)
        prefixed = net.get_layer_depth(f'backbone.{name}', 'backbone.')
        assert prefixed == (depth, total)
    outside = net.get_layer_depth('head.fc.weight', 'backbone.')
    assert outside == (total - 1, total)
