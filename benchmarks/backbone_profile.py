# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What Vim-tiny and DeiT-tiny spend their time on, by PyTorch's profiler."""

import collections

import backbone_peers
import common
import torch
from backbone_cases import DEIT_TINY, MODES, TINY, Case, presets

# The first pattern in the name of an operator tells its kind.
_KINDS = (
    ('selective_scan', 'scan'),
    ('causal_conv1d', 'convolution'),
    ('convolution', 'patch embedding'),
    ('_linear_pointwise', 'matrix products'),
    ('aten::mm', 'matrix products'),
    ('aten::bmm', 'matrix products'),
    ('aten::addmm', 'matrix products'),
    ('dot_product', 'attention'),
    ('norm', 'norms'),
    ('gelu', 'activation'),
    ('aten::copy_', 'copies and concatenations'),
    ('aten::cat', 'copies and concatenations'),
    ('aten::add', 'sums and products by element'),
    ('aten::mul', 'sums and products by element'),
)
_REST = 'rest (autograd, views, allocations)'
KINDS = (*dict.fromkeys(kind for _, kind in _KINDS), _REST)


def _kind(name: str) -> str:
    if name.startswith('autograd::'):
        return _REST
    return next((kind for part, kind in _KINDS if part in name), _REST)


def _profile(case: Case, mode: str) -> dict[str, float]:
    """Milliseconds of CPU time by kind."""
    run = getattr(case, mode)
    run()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU]
    ) as profiler:
        run()
    times = collections.defaultdict(float)
    for event in profiler.key_averages():
        times[_kind(event.key)] += event.self_cpu_time_total / 1e3
    return dict(times)


def measure(args) -> dict[str, dict[str, dict[str, float]]]:
    """Profile both; mode -> model -> kind -> ms."""
    (family, preset), *_ = presets([TINY]).values()
    models = {
        'Vim-tiny': family(preset),
        'DeiT-tiny': backbone_peers.deit(DEIT_TINY, 224, args.our_linear),
    }
    cases = {
        name: Case(model, args.batch)
        for name, model in models.items()
        if model is not None
    }
    return {
        mode: {name: _profile(case, mode) for name, case in cases.items()}
        for mode in MODES
    }


def print_table(results: dict[str, dict[str, dict[str, float]]]) -> None:
    columns = [
        (mode, name) for mode, models in results.items() for name in models
    ]
    common.print_markdown(
        'Milliseconds by kind of operator, with the profiler on',
        ['', *(f'{name}, {mode}' for mode, name in columns)],
        [
            (kind, *(results[mode][name].get(kind) for mode, name in columns))
            for kind in KINDS
        ],
    )
