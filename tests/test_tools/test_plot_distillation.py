# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""tools/analysis_tools/plot_distillation.py, on the logs of a run."""

import pytest
from helpers import (
    run_tool_here,
    save_teacher,
    tiny_runner,
    tiny_student,
    tiny_teacher,
)

from transmamba_mm.arena.figures import draw_distillation
from transmamba_mm.arena.results import read_scalars
from transmamba_mm.distill import (
    DistillMonitor,
    GradientShareHook,
    TransMambaDistill,
)

TOOL = 'analysis_tools/plot_distillation'
METHODS = [
    dict(type='transmamba.AdaptiveBidirectional'),
    dict(type='transmamba.HiddenStates', channels='learned'),
]


def test_all_that_was_logged_is_drawn(tmp_path, monkeypatch, capsys):
    model = TransMambaDistill(
        architecture=tiny_student(),
        teacher=tiny_teacher(),
        distiller=dict(type='transmamba.MethodDistiller', methods=METHODS),
        teacher_ckpt=save_teacher(tmp_path / 'teacher.pth'),
    )
    tiny_runner(
        tmp_path / 'run',
        model,
        num=16,
        visualizer=dict(
            type='UniversalVisualizer',
            vis_backends=[dict(type='LocalVisBackend')],
        ),
        custom_hooks=[
            DistillMonitor(interval=1),
            GradientShareHook(interval=2),
        ],
    ).train()
    capsys.readouterr()
    run_tool_here(monkeypatch, TOOL, tmp_path / 'run')
    names = [
        'gradient_share',
        'loss_hidden_errors',
        'loss_transmamba_similarities',
        'loss_transmamba_weights',
    ]
    paths = [tmp_path / 'run' / f'{name}.png' for name in names]
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    assert all(path.stat().st_size > 1000 for path in paths)

    scalars = read_scalars(tmp_path / 'run')
    figures = draw_distillation(scalars)
    panels = figures['loss_transmamba_similarities'].axes
    assert [axes.get_title() for axes in panels] == [
        'snake horizontal',
        'snake horizontal reverse',
        'snake vertical',
        'snake vertical reverse',
    ]
    line = panels[2].get_lines()[1]
    key = 'loss_transmamba/similarities/snake_vertical/layer01'
    drawn = list(zip(*line.get_data()))
    assert drawn == scalars[key] and len(drawn) == 4
    shares = figures['gradient_share'].axes
    titles = [axes.get_title() for axes in shares]
    assert titles == ['all', 'head', 'mixers', 'rest']
    assert len(shares[0].get_lines()) == 3


def test_a_folder_without_logs(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_tool_here(monkeypatch, TOOL, tmp_path)
    assert 'is no folder of a run' in capsys.readouterr().err
