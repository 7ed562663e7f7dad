# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Our linear map beside PyTorch's, forward and backward.

Run from the repository root, with the package installed::

    OMP_NUM_THREADS=1 python benchmarks/linear.py

Where PyTorch's own product is the faster one, ours calls it, and the ratio is
one. Times are CPU time on one thread.
"""

import common
import torch
import torch.nn.functional as F

from transmamba_mm.ops import linear

# (rows, in_features, out_features): PlainMamba's projections, a calibration
# MLP, x_proj and dt_proj.
SHAPES = [
    (1568, 192, 768),
    (6272, 384, 192),
    (6272, 192, 192),
    (1568, 384, 44),
    (1568, 12, 384),
]


def main() -> None:
    """Prints one table per shape."""
    args = common.parse_args(__doc__)
    torch.set_num_threads(1)
    results = {}
    for rows, inner, outer in SHAPES[:2] if args.quick else SHAPES:
        x = torch.randn(rows, inner, requires_grad=True)
        weight = torch.randn(outer, inner, requires_grad=True)
        grad = torch.randn(rows, outer)
        figures = common.interleaved(
            {
                name: lambda f=f, x=x, w=weight, g=grad: (
                    torch.autograd.backward(f(x, w), g)
                )
                for name, f in dict(ours=linear, pytorch=F.linear).items()
            }
        )
        title = f'{rows} x {inner} -> {outer}'
        common.print_table(title, figures, 'ours', 'ms')
        results[title] = figures
    common.write_json(args.json, results)


if __name__ == '__main__':
    main()
