# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A stack of Vim-tiny's blocks beside its own matrix products alone.

Run from the repository root, with the package installed or on PYTHONPATH::

    OMP_NUM_THREADS=1 python benchmarks/block_stack.py --json stack.json

A block normalises, projects, and in both directions convolves, projects to
the step sizes and weights, and scans, each direction with parameters of its
own; the sum is projected back and added to the input.  Candidates:

``stack``
    our operators, channels-last, direction and gate inside the kernels;
``matrix products``
    the same products forward and backward, and nothing else;
``matrix products, F.linear``
    these by PyTorch's function, where ours is another;
``flips, conv1d``
    the same scan, but flipped copies and PyTorch's convolution and norm in
    (B, D, L);
``torch backend``
    ``stack`` with the scan in PyTorch operations.

The last two are measured on a few blocks and scaled.  Times are medians of
CPU time, interleaved; ``--threads N`` gives wall time with N threads.
``--profile`` instead prints PyTorch's profile of one pass of ``stack``.
"""

import statistics
import time
from typing import Callable

import common
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transmamba_mm.models.layers.norm import RMSNorm
from transmamba_mm.ops import (
    causal_conv1d_silu,
    linear,
    scan_backends,
    selective_scan,
)

DIM, INNER, RANK, STATES, WIDTH = 192, 384, 12, 16, 4
DEPTH, BATCH, LENGTH = 24, 8, 197
BAR = 1.7


class Linear(nn.Linear):
    """``nn.Linear`` by our linear map."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in_features) to (..., out_features)."""
        return linear(x, self.weight, self.bias)


class Direction(nn.Module):
    """Parameters of one direction, and what is done with them."""

    def __init__(self):
        super().__init__()
        self.conv_weight = nn.Parameter(torch.randn(INNER, WIDTH) * 0.5)
        self.conv_bias = nn.Parameter(torch.zeros(INNER))
        self.x_proj = Linear(INNER, RANK + 2 * STATES, bias=False)
        self.dt_proj = Linear(RANK, INNER, bias=False)
        self.dt_bias = nn.Parameter(torch.full((INNER,), -4.0))
        A = torch.arange(1.0, STATES + 1).repeat(INNER, 1)
        self.A_log = nn.Parameter(A.log())
        self.D = nn.Parameter(torch.ones(INNER))

    def scan(self, u: Tensor, z: Tensor, reverse: bool, backend: str):
        """Scan tokens (B, L, INNER)."""
        sizes = [RANK, STATES, STATES]
        dt, B, C = self.x_proj(u).split(sizes, dim=-1)
        return selective_scan(
            *(u.mT, self.dt_proj(dt).mT, -self.A_log.exp(), B.mT, C.mT),
            *(self.D, z.mT, self.dt_bias, True),
            reverse=reverse,
            backend=backend,
        ).mT

    def forward(self, x: Tensor, z: Tensor, reverse: bool, backend: str):
        """Convolve and scan in one direction, copying nothing."""
        weight, bias = self.conv_weight, self.conv_bias
        u = causal_conv1d_silu(x, weight, bias, reverse)
        return self.scan(u, z, reverse, backend)

    def with_copies(self, x: Tensor, z: Tensor, backend: str) -> Tensor:
        """The same for tokens (B, INNER, L) that were flipped if need be."""
        padding = WIDTH - 1
        u = F.conv1d(
            *(x, self.conv_weight[:, None], self.conv_bias),
            padding=padding,
            groups=INNER,
        )
        u = F.silu(u[..., :-padding])
        sizes = [RANK, STATES, STATES]
        dt, B, C = self.x_proj(u.mT).split(sizes, dim=-1)
        delta = self.dt_proj(dt).mT.contiguous()
        return selective_scan(
            *(u, delta, -self.A_log.exp(), B.mT.contiguous()),
            *(C.mT.contiguous(), self.D, z, self.dt_bias, True),
            backend=backend,
        )


class Block(nn.Module):
    """Bidirectional block, "v2" of Vim."""

    def __init__(self):
        super().__init__()
        self.norm = RMSNorm(DIM)
        self.in_proj = Linear(DIM, 2 * INNER, bias=False)
        self.ways = nn.ModuleList([Direction(), Direction()])
        self.out_proj = Linear(INNER, DIM, bias=False)

    def forward(self, tokens: Tensor, backend: str) -> Tensor:
        """Maps (B, L, DIM) to the same."""
        x, z = self.in_proj(self.norm(tokens)).chunk(2, dim=-1)
        ahead, back = self.ways
        y = ahead(x, z, False, backend) + back(x, z, True, backend)
        return tokens + self.out_proj(y)

    def with_copies(self, tokens: Tensor, backend: str) -> Tensor:
        """The same by flipped copies and PyTorch's operators."""
        normed = F.rms_norm(tokens, (DIM,), self.norm.weight, self.norm.eps)
        x, z = self.in_proj(normed).mT.contiguous().chunk(2, dim=1)
        ahead, back = self.ways
        flipped = back.with_copies(x.flip(-1), z.flip(-1), backend)
        y = ahead.with_copies(x, z, backend) + flipped.flip(-1)
        return tokens + self.out_proj(y.mT)


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


class Case:
    """Blocks, and inputs of their parts.

    Args:
        depth: number of blocks.
        batch: number of images.
    """

    def __init__(self, depth: int, batch: int):
        torch.manual_seed(0)
        self.depth = depth
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.x, self.dout = (torch.randn(batch, LENGTH, DIM) for _ in range(2))
        # One set of activations per kind of product.
        self.products = []
        for block in self.blocks:
            layers = [block.in_proj, block.out_proj]
            for way in block.ways:
                layers += [way.x_proj, way.dt_proj]
            self.products += layers
        sizes = {(p.in_features, p.out_features) for p in self.products}
        self.activations = {
            (i, o): (leaf(batch, LENGTH, i), torch.randn(batch, LENGTH, o))
            for i, o in sizes
        }

    def stack(self, backend: str, count: int, copies: bool = False):
        """Return a function which runs ``count`` blocks.

        Args:
            backend: scan backend.
            count: number of blocks.
            copies: whether by ``with_copies``.  Default False.

        Returns:
            Callable: run(backward: bool).
        """
        blocks = self.blocks[:count]
        parameters = list(blocks.parameters())

        def run(backward: bool) -> Tensor:
            tokens = self.x
            with torch.set_grad_enabled(backward):
                for block in blocks:
                    call = block.with_copies if copies else block
                    tokens = call(tokens, backend)
            if backward:
                torch.autograd.grad(tokens, parameters, self.dout)
            return tokens

        return run

    def matrix_products(self, backward: bool, function=None) -> None:
        """Run every product of the stack, nothing else.

        Args:
            backward: whether with gradients.
            function: linear map.  Default None: the layers' own.
        """
        for layer in self.products:
            x, dout = self.activations[layer.in_features, layer.out_features]
            with torch.set_grad_enabled(backward):
                out = function(x, layer.weight) if function else layer(x)
            if backward:
                torch.autograd.grad(out, (x, layer.weight), dout)

    def parts(self, backend: str) -> dict[str, tuple[Callable, int]]:
        """Name -> (run(backward), how often it is in the stack)."""
        batch, way = len(self.x), self.blocks[0].ways[0]
        norm = self.blocks[0].norm
        tokens = leaf(batch, LENGTH, DIM)
        # x and z are halves of one tensor, B and C slices of another.
        x, z = (
            t.detach().requires_grad_()
            for t in torch.randn(batch, LENGTH, 2 * INNER).chunk(2, -1)
        )
        _, B, C = (
            t.detach().requires_grad_()
            for t in torch.randn(batch, LENGTH, RANK + 2 * STATES).split(
                [RANK, STATES, STATES], -1
            )
        )
        u, delta = (leaf(batch, LENGTH, INNER) for _ in range(2))
        A = (-way.A_log.exp()).detach().requires_grad_()
        inner, outer = (torch.randn(batch, LENGTH, d) for d in (INNER, DIM))

        def part(function: Callable, inputs: list[Tensor], dout: Tensor):
            def run(backward: bool) -> None:
                with torch.set_grad_enabled(backward):
                    out = function(*inputs)
                if backward:
                    torch.autograd.grad(out, inputs, dout)

            return run

        def scan(u, delta, A, B, C, D, z, bias):
            return selective_scan(
                *(u.mT, delta.mT, A, B.mT, C.mT, D, z.mT, bias, True),
                backend=backend,
            ).mT

        scan_inputs = [u, delta, A, B, C, way.D, z, way.dt_bias]
        conv_inputs = [x, way.conv_weight, way.conv_bias]
        return {
            'scans': (part(scan, scan_inputs, inner), 2 * self.depth),
            'convolutions': (
                part(causal_conv1d_silu, conv_inputs, inner),
                2 * self.depth,
            ),
            'norms': (
                part(lambda t, _: norm(t), [tokens, norm.weight], outer),
                self.depth,
            ),
        }


def interleaved_wall(functions: dict, rounds: int) -> dict[str, float]:
    """Median wall times in ms, after one warm-up."""
    times = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {k: statistics.median(v[1:]) for k, v in times.items()}


def measure(case: Case, backend: str, args) -> dict[str, dict[str, float]]:
    """Time all candidates; mode -> name -> ms for the whole stack."""
    few = min(2, case.depth)
    scale = case.depth / few
    runs = {
        'stack': (case.stack(backend, case.depth), 1),
        'matrix products': (case.matrix_products, 1),
        'matrix products, F.linear': (
            lambda backward: case.matrix_products(backward, F.linear),
            1,
        ),
        **case.parts(backend),
        'flips, conv1d': (case.stack(backend, few, True), scale),
    }
    if backend != 'torch':
        runs['torch backend'] = (case.stack('torch', few), scale)
    want = case.stack(backend, few)(False)
    for name in ('flips, conv1d', 'torch backend'):
        if name in runs:
            error = (runs[name][0](False) - want).abs().max()
            assert error < 1e-4 * want.abs().max(), f'{name}: {error}'
    timer = common.interleaved if args.threads == 1 else interleaved_wall
    figures = {}
    for mode in ('forward', 'forward+backward'):
        backward = mode != 'forward'
        times = timer(
            {
                name: lambda run=run, backward=backward: run(backward)
                for name, (run, _) in runs.items()
            },
            rounds=args.rounds,
        )
        figures[mode] = {
            name: ms * runs[name][1] for name, ms in times.items()
        }
    return figures


def report(figures: dict[str, dict[str, float]]) -> dict:
    """Print the tables and the bar; return the ratio."""
    modes = list(figures)
    parts = ('matrix products', 'scans', 'convolutions', 'norms')
    wholes = [name for name in figures['forward'] if name not in parts[1:]]
    common.print_markdown(
        'The stack, and ratios to its matrix products',
        ['', *(x for mode in modes for x in (f'{mode}, ms', 'ratio'))],
        [
            (
                name,
                *(
                    x
                    for times in figures.values()
                    for x in (
                        times[name],
                        times[name] / times['matrix products'],
                    )
                ),
            )
            for name in wholes
        ],
    )
    lines = [
        (name, *(100 * figures[m][name] / figures[m]['stack'] for m in modes))
        for name in parts
    ]
    rest = [100 - sum(line[i + 1] for line in lines) for i in range(2)]
    common.print_markdown(
        'Parts measured alone, per cent of the stack',
        ['', *modes],
        [*lines, ('rest (additions, joining gradients, autograd)', *rest)],
    )
    both = figures['forward+backward']
    ratios = {
        name: both['stack'] / both[name]
        for name in ('matrix products, F.linear', 'matrix products')
    }
    common.print_markdown(
        'Bars',
        ['bar', 'required', 'measured', ''],
        [
            (
                f'stack / {name}, forward+backward',
                f'<= {BAR}',
                ratio,
                'pass' if ratio <= BAR else 'FAIL',
            )
            for name, ratio in ratios.items()
        ],
    )
    return {**figures, 'ratios': ratios}


def profile(case: Case, backend: str) -> None:
    """Print which operators a forward and backward pass spends time in."""
    run = case.stack(backend, case.depth)
    run(True)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU]
    ) as profiler:
        run(True)
    events = profiler.key_averages()
    print(events.table(sort_by='self_cpu_time_total', row_limit=25))


def main() -> None:
    """Print the tables."""
    parser = common.make_parser(__doc__)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--rounds', type=int, help='default 7, quick: 2')
    parser.add_argument('--profile', action='store_true')
    args = parser.parse_args()
    args.rounds = args.rounds or (2 if args.quick else 7)
    torch.set_num_threads(args.threads)
    print(common.environment())
    status = scan_backends().get('cpu')
    backend = 'cpu' if status and status.available else 'torch'
    print(f'scan backend: {backend}')
    case = Case(2, 2) if args.quick else Case(DEPTH, BATCH)
    if args.profile:
        profile(case, backend)
        return
    results = report(measure(case, backend, args))
    common.write_json(args.json, {'block_stack': results})


if __name__ == '__main__':
    main()
