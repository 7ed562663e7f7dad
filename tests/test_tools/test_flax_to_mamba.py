# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""tools/model_converters/flax_to_mamba.py from the command line."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import build, run_tool_here, vit_cfg

from transmamba_mm.checkpoints import read_state_dict
from transmamba_mm.contract import read_teacher
from transmamba_mm.transfer import Subcloner
from transmamba_mm.transfer.ssm import build_ssm_source

TOOL = 'model_converters/flax_to_mamba'
DIMS, STATE, RANK, WINDOW = 16, 4, 2, 4
SHAPES = {
    'Dense_0': (DIMS, 2 * DIMS),
    'Dense_1': (DIMS, RANK + 2 * STATE),
    'Dense_2': (RANK, DIMS),
    'Dense_3': (DIMS, DIMS),
    'Conv_0': (WINDOW, 1, DIMS),
}


@pytest.fixture
def flax():
    """A tagger of two blocks, named as typeseg's file is."""
    random = np.random.default_rng(0)

    def draw(*shape):
        return 0.5 * random.standard_normal(shape).astype(np.float32)

    arrays = {
        'Embed_0__embedding': draw(5, DIMS),
        'Dense_0__kernel': draw(DIMS, 3),
        'Dense_0__bias': draw(3),
        'LayerNorm_0__scale': draw(DIMS),
    }
    for i in range(2):
        block = f'CheckpointMambaBlock1D_{i}__'
        arrays[f'{block}A_log'] = draw(DIMS, STATE)
        arrays[f'{block}D'] = draw(DIMS)
        arrays[f'{block}LayerNorm_0__scale'] = draw(DIMS)
        for name, shape in SHAPES.items():
            arrays[f'{block}{name}__kernel'] = draw(*shape)
            arrays[f'{block}{name}__bias'] = draw(shape[-1])
        # What cannot be kept: a bias of B and C.
        arrays[f'{block}Dense_1__bias'][RANK:] = 0
    return arrays


def run(arrays, block, x):
    """The block's mixer by Flax's formulas, with a causal convolution."""
    w = {
        name.removeprefix(block): torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith(block)
    }

    def dense(i, value):
        return value @ w[f'Dense_{i}__kernel'] + w[f'Dense_{i}__bias']

    u, gate = dense(0, x).chunk(2, dim=-1)
    padded = F.pad(u, (0, 0, WINDOW - 1, 0))
    kernel = w['Conv_0__kernel'][:, 0]
    u = sum(padded[:, j : j + x.shape[1]] * kernel[j] for j in range(WINDOW))
    u = F.silu(u + w['Conv_0__bias'])
    dt, B, C = dense(1, u).split([RANK, STATE, STATE], dim=-1)
    dt = F.softplus(dense(2, dt))
    A = -w['A_log'].exp()

    def scan(*sequences):
        state, out = torch.zeros(len(x), DIMS, STATE), []
        for u, dt, B, C in zip(*(value.unbind(1) for value in sequences)):
            step = (u * dt).unsqueeze(2) * B.unsqueeze(1)
            state = (dt.unsqueeze(2) * A).exp() * state + step
            out.append((state * C.unsqueeze(1)).sum(2) + u * w['D'])
        return torch.stack(out, dim=1)

    both = (u, dt, B, C)
    y = scan(*both) + scan(*(value.flip(1) for value in both)).flip(1)
    return dense(3, y * F.silu(gate))


def student():
    return build(
        dict(
            type='transmamba.VisionMamba',
            arch=dict(embed_dims=DIMS, num_layers=2),
            img_size=16,
            patch_size=4,
            mixer_cfg=dict(
                bimamba_type='v1',
                d_state=STATE,
                dt_rank=RANK,
                expand=1,
                bias=True,
            ),
        )
    )


def test_mixers_of_a_student_become_the_blocks(flax, tmp_path, monkeypatch):
    np.savez(tmp_path / 'tagger.npz', **flax)
    out = tmp_path / 'mamba.pth'
    run_tool_here(monkeypatch, TOOL, tmp_path / 'tagger.npz', out)
    model, teacher = student(), build(vit_cfg(dims=DIMS), 1)
    source = build_ssm_source(str(out), read_state_dict(str(out)))
    weights = read_teacher(teacher.state_dict())
    plan = Subcloner(model, weights, ssm=source).plan()
    plan.apply(model)
    rules = {e.name: e.rule for e in plan.entries if '.mixer.' in e.name}
    assert {rule for name, rule in rules.items() if 'out' not in name} == {
        'ssm'
    }
    x = torch.randn(2, 9, DIMS)
    for i in range(2):
        block, mixer = f'CheckpointMambaBlock1D_{i}__', model.layers[i].mixer
        # The output projection is the teacher's.
        for leaf, kept in (('kernel', 'weight'), ('bias', 'bias')):
            array = mixer.out_proj.get_parameter(kept).detach().numpy().T
            flax[f'{block}Dense_3__{leaf}'] = array.copy()
        expected = run(flax, block, x)
        with torch.no_grad():
            torch.testing.assert_close(
                mixer(x, (3, 3)), expected, rtol=1e-4, atol=1e-4
            )


def _other(path):
    np.savez(path, Conv_0__kernel=np.zeros((3, 4, 5)))


@pytest.mark.parametrize(
    ('write', 'said'),
    [
        (_other, 'no Mamba block'),
        (lambda path: path.write_bytes(b'PK\3\4'), 'is no .npz'),
        (lambda path: path.write_bytes(b''), 'is no .npz'),
        (lambda path: None, 'No such file'),
    ],
)
def test_a_file_of_something_else_is_refused(
    tmp_path, monkeypatch, capsys, write, said
):
    write(tmp_path / 'unet.npz')
    with pytest.raises(SystemExit, match='2'):
        run_tool_here(
            monkeypatch, TOOL, tmp_path / 'unet.npz', tmp_path / 'out.pth'
        )
    assert said in capsys.readouterr().err
