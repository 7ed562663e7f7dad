# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Selective scan: our backends beside a loop and a parallel scan.

Run from the repository root, with the package installed or on PYTHONPATH::

    OMP_NUM_THREADS=1 python benchmarks/scan.py --json scan.json

Candidates: every available backend of ``transmamba_mm.ops`` (not the test
oracle); ``ref``, a loop over time steps on precomputed (B, D, L, N) tensors,
as mamba-ssm's ``selective_scan_ref`` is; and ``mambapy``, the parallel scan
of the PyPI package of that name, if it is installed (``pip install
mambapy``).  The loop's backward pass is O(L^2): it is left out where L > 256.
Times are CPU time on one thread; ratios are to our default backend.
"""

import common
import torch
import torch.nn.functional as F

from transmamba_mm.ops import scan_backends, selected_backend, selective_scan

try:
    from mambapy.pscan import pscan
except ImportError:
    pscan = None

# (B, D, L, N): Vim and PlainMamba, a training loop on small images, a long
# sequence, VMamba's first stage.
SHAPES = [
    (8, 384, 197, 16),
    (64, 256, 64, 16),
    (256, 128, 16, 8),
    (2, 384, 1024, 16),
    (2, 384, 3136, 1),
]
QUICK_SHAPES = [(2, 64, 50, 16), (2, 64, 196, 1)]
LONGEST_LOOP_BACKWARD = 256


def ref(u, delta, A, B, C, D, delta_bias):
    """Loop over steps of precomputed tensors, then stack the outputs."""
    dt = F.softplus(delta + delta_bias[:, None])
    decay = torch.exp(torch.einsum('bdl,dn->bdln', dt, A))
    x = torch.einsum('bdl,bnl,bdl->bdln', dt, B, u)
    h = A.new_zeros(u.shape[0], *A.shape)
    outputs = []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + x[:, :, t]
        outputs.append(torch.einsum('bdn,bn->bd', h, C[:, :, t]))
    return torch.stack(outputs, dim=2) + u * D[:, None]


def parallel(u, delta, A, B, C, D, delta_bias):
    """Compute all states at once by mambapy's scan."""
    u, delta, B, C = (x.transpose(1, 2) for x in (u, delta, B, C))
    dt = F.softplus(delta + delta_bias)
    decay = torch.exp(dt.unsqueeze(-1) * A)
    states = pscan(decay, (dt * u).unsqueeze(-1) * B.unsqueeze(2))
    y = (states @ C.unsqueeze(-1)).squeeze(3) + D * u
    return y.transpose(1, 2)


def make_inputs(shape):
    """Inputs of a Mamba block at initialisation, stored channels-last."""
    B, D, L, N = shape
    torch.manual_seed(0)

    def tokens(channels):
        return torch.randn(B, L, channels).transpose(1, 2)

    inputs = (
        tokens(D),
        tokens(D) * 0.1,
        -torch.arange(1.0, N + 1).repeat(D, 1),
        tokens(N),
        tokens(N),
        torch.ones(D),
        torch.full((D,), -4.0),
    )
    return [x.detach().requires_grad_() for x in inputs]


def candidates():
    """Name -> function of the inputs; our default backend first."""

    def ours(name):
        def scan(u, delta, A, B, C, D, delta_bias):
            return selective_scan(
                u, delta, A, B, C, D, None, delta_bias, True, backend=name
            )

        return scan

    names = [n for n, status in scan_backends().items() if status.available]
    names.remove('reference')
    names.sort(key=lambda n: n != selected_backend())
    found = {name: ours(name) for name in names}
    found['ref'] = ref
    if pscan is None:
        print('mambapy is not installed: that row is left out')
    else:
        found['mambapy'] = parallel
    return found


def main():
    args = common.parse_args(__doc__)
    torch.set_num_threads(1)
    print(common.environment())
    scans = candidates()
    base = selected_backend()
    rounds = 3 if args.quick else 9
    results = []
    for shape in QUICK_SHAPES if args.quick else SHAPES:
        inputs = make_inputs(shape)
        dout = torch.randn(shape[:3])

        def forward(scan, inputs=inputs):
            with torch.no_grad():
                return scan(*inputs)

        def both(scan, inputs=inputs, dout=dout):
            torch.autograd.grad(scan(*inputs), inputs, dout)

        trainable = {
            k: v
            for k, v in scans.items()
            if v is not ref or shape[2] <= LONGEST_LOOP_BACKWARD
        }
        want = forward(ref)
        for name, scan in scans.items():
            error = (forward(scan) - want).abs().max() / want.abs().max()
            assert error < 1e-5, f'{name} is wrong at {shape}: {error}'
        row = {
            'shape': shape,
            'forward_ms': common.interleaved(
                {k: lambda v=v: forward(v) for k, v in scans.items()}, rounds
            ),
            'forward_backward_ms': common.interleaved(
                {k: lambda v=v: both(v) for k, v in trainable.items()}, rounds
            ),
        }
        memory = {
            k: common.extra_peak_mb(lambda v=v: both(v))
            for k, v in trainable.items()
            if v is not ref
        }
        if None not in memory.values():
            row['forward_backward_peak_mib'] = memory
        results.append(row)
        for key, figures in list(row.items())[1:]:
            unit = key.rpartition('_')[2]
            title = f'(B, D, L, N) = {shape}: {key}'
            common.print_table(title, figures, base, unit)
    common.write_json(args.json, {'scan': results})


if __name__ == '__main__':
    main()
