# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Parts of the scan benchmark beside the scan in one direction.

Each function prints a table and returns its figures; ``scan.py`` calls them.
"""

from typing import Callable

import common
import peers
import torch
import torch.nn.functional as F

from transmamba_mm.models.layers.norm import RMSNorm
from transmamba_mm.ops import (
    causal_conv1d_silu,
    multi_scan,
    reorder,
    selective_scan,
)

# (B, D, side, N): VMamba's first two stages at 224 pixels, and many states.
ORDERED = [(2, 192, 56, 1), (2, 384, 28, 1), (2, 192, 28, 16)]
QUICK_ORDERED = [(2, 192, 28, 1)]
REVERSE = (False, False, True, True)


def time_both(
    functions: dict[str, Callable], arguments: dict[str, tuple], rounds: int
) -> dict[str, dict[str, float]]:
    """Time candidates forward, and forward and backward.

    Args:
        functions: name -> function of the inputs.
        arguments: name -> (inputs, gradient of the output).
        rounds: see :func:`common.interleaved`.

    Returns:
        dict: ``'forward'`` and ``'forward+backward'`` -> name -> ms.
    """

    def one(name: str, backward: bool) -> Callable[[], object]:
        inputs, dout = arguments[name]
        if backward:
            return lambda: peers.forward_backward(
                functions[name], inputs, dout
            )
        return lambda: peers.forward(functions[name], inputs)

    return {
        mode: common.interleaved(
            {name: one(name, backward) for name in functions}, rounds
        )
        for mode, backward in (('forward', False), ('forward+backward', True))
    }


def print_both(title: str, figures: dict[str, dict[str, float]]) -> None:
    """Print the times and their ratios to the first candidate."""
    forward, both = figures['forward'], figures['forward+backward']
    base = next(iter(forward))
    common.print_markdown(
        title,
        ['', 'forward, ms', 'ratio', 'forward+backward, ms', 'ratio'],
        [
            (
                name,
                forward[name],
                forward[name] / forward[base],
                both[name],
                both[name] / both[base],
            )
            for name in forward
        ],
    )


def ordered(backend: str, quick: bool, rounds: int) -> dict[str, dict]:
    """Four directions over an image: orders in the kernel, or copies.

    The step sizes and weights come to each in the order in which it wants
    them, as their projections commute with permutations.  What the copies
    cost is the images', as in VMamba's ``cross_scan`` and ``cross_merge``;
    their scan is the same kernel's, with four groups of channels.
    """
    results = {}
    for B, D, side, N in QUICK_ORDERED if quick else ORDERED:
        L = side * side
        torch.manual_seed(0)
        raster = torch.arange(L, dtype=torch.int32)
        columns = raster.view(side, side).t().flatten()
        orders = torch.stack([raster, columns, raster, columns])
        u = torch.randn(B, D, L)
        delta = torch.randn(B, 4, D, L) * 0.1
        weights = [torch.randn(B, 4, N, L) for _ in range(2)]
        A = -torch.arange(1.0, N + 1).repeat(4, D, 1)
        skip, bias = torch.ones(4, D), torch.full((4, D), -4.0)

        def by_step(x, side=side):
            both = x.unflatten(-1, (side, side))
            both = torch.stack(
                [both[:, 0], both[:, 1].mT, both[:, 2], both[:, 3].mT], 1
            ).flatten(3)
            return torch.cat([both[:, :2], both[:, 2:].flip(-1)], dim=1)

        def last(x):
            return x.mT.contiguous().mT  # channels-last storage

        def in_kernel(u, delta, A, B, C, D, bias, orders=orders):
            return multi_scan(
                *(u, delta, A, B, C, D, None, bias, True),
                orders=orders,
                reverse=REVERSE,
                merge='sum',
                backend=backend,
            )

        def copies(u, delta, A, B, C, D, bias, side=side):
            images = peers.cross_scan(u, side).flatten(1, 2)
            y = selective_scan(
                *(images, delta.flatten(1, 2), A.flatten(0, 1), B, C),
                *(D.flatten(), None, bias.flatten(), True),
                backend=backend,
            )
            return peers.cross_merge(y.unflatten(1, (4, -1)), side)

        def copies_last(u, delta, A, B, C, D, bias, side=side):
            # The same copies of channels-last tokens: whole rows move.
            image = u.mT.unflatten(1, (side, side))
            columns = image.transpose(1, 2).flatten(1, 2)
            both = torch.cat([u.mT, columns], dim=2)
            images = torch.cat([both, both.flip(1)], dim=2).mT
            y = selective_scan(
                *(images, delta, A.flatten(0, 1), B, C),
                *(D.flatten(), None, bias.flatten(), True),
                backend=backend,
            ).mT
            width = y.shape[2] // 2
            both = y[..., :width] + y[..., width:].flip(1)
            rows, columns = both.chunk(2, dim=2)
            columns = columns.unflatten(1, (side, side)).transpose(1, 2)
            return (rows + columns.flatten(1, 2)).mT

        steps = by_step(delta)
        step_weights = [by_step(x) for x in weights]
        sets = {
            'orders': (
                *(last(u), last(delta), A),
                *(last(x.flatten(1, 2)).unflatten(1, (4, N)) for x in weights),
            ),
            'copies': (u, steps, A, *step_weights),
            'copies, channels-last': (
                *(last(u), last(steps.flatten(1, 2)), A),
                *(
                    last(x.flatten(1, 2)).unflatten(1, (4, N))
                    for x in step_weights
                ),
            ),
        }
        dout = torch.randn(B, D, L)
        arguments = {
            name: (
                [x.detach().requires_grad_() for x in (*tensors, skip, bias)],
                dout if name == 'copies' else last(dout),
            )
            for name, tensors in sets.items()
        }
        functions = {
            'orders': in_kernel,
            'copies': copies,
            'copies, channels-last': copies_last,
        }
        _check_equal(functions, arguments)
        figures = time_both(functions, arguments, rounds)
        name = f'{B}, {D}, {side}x{side}, {N}'
        print_both(f'Four directions, (B, D, L, N) = ({name})', figures)
        results[name] = figures
    return results


def _check_equal(functions: dict, arguments: dict) -> None:
    outs = {k: peers.forward(f, arguments[k][0]) for k, f in functions.items()}
    base = next(iter(outs.values()))
    for name, out in outs.items():
        error = (out.reshape(base.shape) - base).abs().max() / base.abs().max()
        assert error < 1e-5, f'{name} is wrong: {error}'


def conv(quick: bool, rounds: int) -> dict[str, dict]:
    """Causal depth-wise convolution and SiLU, each in its own layout."""
    B, D, L, width = 2 if quick else 8, 384, 197, 4
    torch.manual_seed(0)
    x, dout = torch.randn(B, L, D), torch.randn(B, L, D)
    weight, bias = torch.randn(D, width), torch.randn(D)

    def pytorch(x, weight, bias):
        y = F.conv1d(x, weight[:, None], bias, padding=width - 1, groups=D)
        return F.silu(y[..., :L])

    def leaves(*tensors):
        return [t.detach().clone().requires_grad_() for t in tensors]

    arguments = {
        'causal_conv1d_silu': (leaves(x, weight, bias), dout),
        'conv1d + silu': (
            leaves(x.mT.contiguous(), weight, bias),
            dout.mT.contiguous(),
        ),
    }
    functions = {
        'causal_conv1d_silu': causal_conv1d_silu,
        'conv1d + silu': pytorch,
    }
    figures = time_both(functions, arguments, rounds)
    print_both(f'Convolution, ({B}, {D}, {L}), width {width}', figures)
    return figures


def norm(quick: bool, rounds: int) -> dict[str, dict]:
    """RMSNorm beside PyTorch's, and its layer norm."""
    shape = (2 if quick else 8, 197, 192)
    torch.manual_seed(0)
    ours = RMSNorm(shape[-1])
    functions = {
        'RMSNorm': lambda x, weight: torch.func.functional_call(
            ours, {'weight': weight}, (x,)
        ),
        'F.rms_norm': lambda x, w: F.rms_norm(x, w.shape, w, 1e-5),
        'F.layer_norm': lambda x, w: F.layer_norm(x, w.shape, w, None, 1e-5),
    }
    inputs = [torch.randn(shape), torch.ones(shape[-1])]
    inputs = [x.requires_grad_() for x in inputs]
    dout = torch.randn(shape)
    figures = time_both(
        functions, dict.fromkeys(functions, (inputs, dout)), rounds
    )
    print_both(f'Normalisation of {shape}', figures)
    return figures


def permute(quick: bool, rounds: int) -> dict[str, dict]:
    """Tokens in another order: whole rows, or an index on the last axis."""
    B, D, L = 2 if quick else 8, 384, 197
    torch.manual_seed(0)
    order = torch.randperm(L)
    x = torch.randn(B, L, D)
    functions = {
        'reorder (B, L, D)': lambda x: reorder(x, order),
        'x[:, order] (B, L, D)': lambda x: x[:, order],
        'x[..., order] (B, D, L)': lambda x: x[..., order],
    }
    arguments = {}
    for name in functions:
        tokens = x if 'L, D' in name else x.mT.contiguous()
        tokens = tokens.clone().requires_grad_()
        arguments[name] = ([tokens], torch.ones_like(tokens))
    figures = time_both(functions, arguments, rounds)
    print_both(f'Reordering ({B}, {D}, {L})', figures)
    return figures


def lengths(backend: str, quick: bool, rounds: int) -> dict[str, list[float]]:
    """Time per token at several lengths, with as many tokens each time.

    Memory is kept between the runs: getting it anew costs a third of the
    time at this size, or nothing, as chance has it.
    """
    common.keep_memory()
    tokens, D, N = (8192, 64, 16) if quick else (65536, 192, 16)
    scan, cases = peers.our_scan(backend), {}
    steps = [L for L in (256, 1024, 4096, 16384, 65536) if tokens >= L]
    for L in steps:
        inputs = peers.scan_inputs((tokens // L, D, L, N))
        cases[str(L)] = (inputs, torch.randn(tokens // L, L, D).mT)
    figures = time_both(dict.fromkeys(cases, scan), cases, rounds)
    found = {
        mode: [1e6 * ms[str(L)] / tokens for L in steps]
        for mode, ms in figures.items()
    }
    common.print_markdown(
        f'Time per token, D={D}, N={N}, {tokens} tokens in all',
        ['L', *(f'{mode}, ns' for mode in found)],
        zip(steps, *found.values()),
    )
    return {'L': steps, **found}
