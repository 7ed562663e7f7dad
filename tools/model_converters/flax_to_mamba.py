# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Gives the Mamba blocks of a Flax model the names of ``mamba_ssm``.

The result serves ``SubcloneInitializer(ssm_from=...)``. The file is an
``.npz`` whose names are paths joined by ``__``; a block has ``A_log``, ``D``,
``Conv_0`` and ``Dense_0`` to ``Dense_3`` (in, x, dt and out projection), as
the character tagger of the PyPI package typeseg has::

    pip download --no-deps typeseg && unzip typeseg-*.whl
    python tools/model_converters/flax_to_mamba.py \
        typeseg/data/mamba_al.npz mamba.pth

Mamba's ``x_proj`` has no bias. Its part for the step size goes into the bias
of ``dt_proj``, which is exact; its parts for B and C are dropped. Where the
Flax convolution is centred, a causal one sees the same window later.
"""

import argparse
import re
from pathlib import Path

import numpy as np
import torch

from transmamba_mm.checkpoints import CheckpointError, write_weights
from transmamba_mm.utils import cli

MODULES = dict(
    Conv_0='conv1d',
    Dense_0='in_proj',
    Dense_1='x_proj',
    Dense_2='dt_proj',
    Dense_3='out_proj',
)
PARAMETER = re.compile(
    rf'\w+_(\d+)__(A_log|D|(?:{"|".join(MODULES)})__(?:kernel|bias))'
)


def convert(path: str) -> dict[str, torch.Tensor]:
    """Reads the Mamba blocks of a Flax model.

    Args:
        path (str): Path of its ``.npz``.

    Returns:
        dict[str, Tensor]: Weights of all mixers under ``mamba_ssm``'s names.

    Raises:
        CheckpointError: If the file cannot be read, or there is no Mamba
            block in it.
    """
    state = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except Exception as error:  # a file can make NumPy raise anything
        raise CheckpointError(f"'{path}' is no .npz: {error}") from error
    for name, array in arrays.items():
        match = PARAMETER.fullmatch(name)
        if match is None:
            continue
        layer, rest = match.groups()
        module, _, leaf = rest.partition('__')
        # Flax: (in, out) and (window, 1, channels).
        value = torch.from_numpy(array.T if leaf == 'kernel' else array)
        leaf = leaf.replace('kernel', 'weight')
        rest = f'{MODULES[module]}.{leaf}' if leaf else module
        state[f'layers.{layer}.mixer.{rest}'] = value.float().contiguous()
    if not any(name.endswith('.A_log') for name in state):
        raise CheckpointError(
            f'{path} has no Mamba block: no name ends with __A_log; it starts '
            f'with {list(arrays)[:3]}'
        )
    for name in [name for name in state if name.endswith('x_proj.bias')]:
        bias, dt_proj = state.pop(name), name.replace('x_proj', 'dt_proj')
        weight = state[dt_proj.replace('bias', 'weight')]
        state[dt_proj] = state[dt_proj] + weight @ bias[: weight.shape[1]]
    return state


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('file', help='.npz of the Flax model')
    parser.add_argument('out', help='file to write')
    args = parser.parse_args()
    out = Path(args.out)
    state = convert(args.file)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_weights(str(out), state, meta={})
    print(f'written to {out}')


if __name__ == '__main__':
    cli.run_main(main)
