# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Golden files of the raw operator."""

import torch
from golden_files import assert_close

from transmamba_mm.ops import selective_scan

OUT_TOLERANCE = 1e-6
GRAD_TOLERANCE = 5e-6


def run_selective_scan(golden):
    inputs = {
        name: torch.tensor(value) for name, value in golden.group('in').items()
    }
    dout = inputs.pop('dout')
    for value in inputs.values():
        value.requires_grad_()
    softplus = golden.config.get('softplus', True)
    out, last = selective_scan(
        **inputs, delta_softplus=softplus, return_last_state=True
    )
    out.backward(dout)
    expected = golden.group('f64')
    assert_close(out, expected['out'], OUT_TOLERANCE, 'out')
    assert_close(last, expected['last_state'], OUT_TOLERANCE, 'last_state')
    for name, value in inputs.items():
        assert_close(
            value.grad, expected[f'grad_{name}'], GRAD_TOLERANCE, name
        )


RUNNERS = {'selective_scan': run_selective_scan}
