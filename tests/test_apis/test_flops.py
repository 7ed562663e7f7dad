# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Counting operations: by our function, by MMEngine's analysis, by hand."""

import pytest
import torch
from helpers import CONFIGS, pmamba_cfg, run_tool_here
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from torch import nn
from vqa_cases import TINY

from transmamba_mm.apis import get_flops
from transmamba_mm.models import VisionMamba
from transmamba_mm.registry import MODELS


def vim(**kwargs):
    arch = dict(embed_dims=32, num_layers=2)
    return VisionMamba(arch, img_size=64, **kwargs)


def by_hand(net, tokens, dims=32, state=16, rank=2):
    """Multiply-accumulates of :func:`vim`."""
    inner = 2 * dims
    direction = inner * (rank + 2 * state) + rank * inner  # x_proj, dt_proj
    direction += 4 * inner  # convolution
    direction += inner * (9 * state + 2)  # scan, skip and gate
    layer = dims * 2 * inner + 2 * direction + inner * dims
    patches = tokens - net.num_extra_tokens
    return patches * 3 * 16 * 16 * dims + 2 * tokens * layer


def test_vim_by_hand():
    assert get_flops(vim(), (3, 64, 64)) == by_hand(vim(), 17)
    assert get_flops(vim(), (3, 32, 96)) == by_hand(vim(), 13)


def test_nothing_is_left_behind():
    net = vim(drop_path_rate=0.5).train()
    net.norm_f.eval()
    net.layers[0].requires_grad_(False)
    get_flops(net, (3, 64, 64))
    assert net.training
    assert net.layers[1].drop_path.training
    assert not net.norm_f.training
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize('kind', ['vim', 'plain'])
def test_mmengine_counts_the_same_but_for_norms(kind):
    size = 64 if kind == 'vim' else 16
    model = vim() if kind == 'vim' else MODELS.build(pmamba_cfg())
    model.eval()
    analysis = FlopAnalyzer(model, (torch.zeros(1, 3, size, size),))
    analysis.unsupported_ops_warnings(False)
    analysis.uncalled_modules_warnings(False)
    counts = analysis.by_operator()
    counts.pop('layer_norm', None)
    counts.pop('batch_norm', None)
    assert counts['selective_scan'] > 0
    # It hooks modules, so these convolutions run with their padding.
    padding = sum(
        conv.weight.numel() * conv.padding[0]
        for conv in model.modules()
        if isinstance(conv, nn.Conv1d)
    )
    expected = get_flops(model, (3, size, size)) + padding
    assert sum(counts.values()) == expected


def test_a_model_without_scans():
    assert get_flops(nn.Linear(3, 5), (7, 3)) == 7 * 3 * 5


def test_tool(monkeypatch, capsys):
    config = CONFIGS / 'quickstart' / 'transmamba_deit_pmamba_digits.py'
    tool = 'analysis_tools/get_flops'
    run_tool_here(monkeypatch, tool, config, '--shape', 16)
    lines = capsys.readouterr().out
    assert 'input       3x16x16' in lines
    assert 'parameters  199,658' in lines
    with pytest.raises(SystemExit):
        run_tool_here(monkeypatch, tool, config, '--shape', 1, 2, 3, 4)
    assert 'at most three numbers' in capsys.readouterr().err


CONFIG = """
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='transmamba.PlainMamba',
        arch=dict(embed_dims=8, num_layers=1),
        img_size=16,
        patch_size=4,
    ),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=8),
)
"""


@pytest.mark.parametrize('stem', ['conv', 'patch'])
def test_tool_reads_the_channels(tmp_path, monkeypatch, capsys, stem):
    config = tmp_path / 'grey.py'
    config.write_text(CONFIG)
    options = ['model.backbone.in_channels=1', f'model.backbone.stem={stem}']
    args = (config, '--shape', 16, '--cfg-options', *options)
    run_tool_here(monkeypatch, 'analysis_tools/get_flops', *args)
    assert 'input       1x16x16' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('--shape', '-5'), '--shape takes numbers from 1 on, got -5'),
        (('--shape', '32', '0'), '--shape takes numbers from 1 on, got 32 0'),
        (
            ('--cfg-options', 'model.backbone.arch=huge'),
            "unknown PlainMamba arch 'huge'",
        ),
        (
            ('--cfg-options', 'model.backbone.directions=up,'),
            "unknown scan order 'up'",
        ),
        (('--cfg-options', 'model.backbone.img=3'), "argument 'img'"),
    ],
)
def test_mistakes_of_the_tool(tmp_path, monkeypatch, capsys, args, message):
    config = tmp_path / 'config.py'
    config.write_text(CONFIG)
    with pytest.raises(SystemExit) as stop:
        run_tool_here(monkeypatch, 'analysis_tools/get_flops', config, *args)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_tool_counts_no_text(tmp_path, monkeypatch, capsys):
    config = tmp_path / 'llava.py'
    Config(dict(model=TINY)).dump(config)
    with pytest.raises(SystemExit):
        run_tool_here(monkeypatch, 'analysis_tools/get_flops', config)
    assert (
        'FLOPs of a TransLlava depend on its text' in capsys.readouterr().err
    )
