# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Which of several CUDA backends is faster, measured once per problem size.

As ``torch.backends.cudnn.benchmark`` does for convolutions.
"""

from types import ModuleType

import torch

from .problem import ScanProblem

ROUNDS = 5

_winners = {}


def winner(
    modules: list[ModuleType], p: ScanProblem, keep: bool
) -> ModuleType:
    """Return the fastest backend for problems like this one.

    Args:
        modules: backends which serve it.  While a CUDA graph is captured,
            nothing can be measured and the first is taken.
        p: the problem.
        keep: whether the backward pass counts as well.
    """
    key = _key(modules, p, keep)
    if key not in _winners:
        # Streams and events are of the current device.
        with torch.cuda.device(p.u.device):
            if torch.cuda.is_current_stream_capturing():
                return modules[0]
            _winners[key] = min(modules, key=lambda x: _seconds(x, p, keep))
    return _winners[key]


def _key(modules, p: ScanProblem, keep: bool) -> tuple:
    shapes = tuple(
        None if x is None else (x.shape, x.dtype) for x in p.tensors
    )
    kind = p.orders is not None, p.reverse, p.by_step, p.merge
    names = tuple(x.__name__ for x in modules)
    return names, p.u.device, shapes, kind, keep


def _seconds(module: ModuleType, p: ScanProblem, keep: bool) -> float:
    """Time one pass, the fastest of some, after one to compile and tune."""
    needs = tuple(x is not None for x in p.tensors)
    times = []
    for _ in range(1 + ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        out, _, states = module.forward(p, keep)
        if keep:
            module.backward(p, states, out, needs)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return min(times[1:])
