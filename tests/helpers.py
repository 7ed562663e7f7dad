# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Builders of tiny models and runs that several tests share."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import torch
from mmpretrain.structures import DataSample

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / 'tools'
CONFIGS = ROOT / 'configs'

TINY_CLASSES = 3
TINY_SIZE = 16  # pixels; patches of 4, so the grid is 4x4
TINY_GRID = (4, 4)


def tiny_teacher(**backbone) -> dict:
    """Config of a ViT classifier, width 16, depth 3, grid 4x4."""
    settings = dict(
        type='VisionTransformer',
        arch=dict(
            embed_dims=16,
            num_layers=3,
            num_heads=2,
            feedforward_channels=24,
        ),
        img_size=TINY_SIZE,
        patch_size=4,
    )
    settings.update(backbone)
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=settings,
        head=dict(
            type='VisionTransformerClsHead',
            num_classes=TINY_CLASSES,
            in_channels=16,
        ),
    )


def tiny_student(**backbone) -> dict:
    """Config of a PlainMamba classifier, width 12, depth 2, grid 4x4."""
    settings = dict(
        type='transmamba.PlainMamba',
        arch=dict(embed_dims=12, num_layers=2),
        img_size=TINY_SIZE,
        patch_size=4,
        stem='patch',
        ffn_ratio=2,
        mixer_cfg=dict(d_state=4, expand=2, conv_size=3),
        init_cfg=[],
    )
    settings.update(backbone)
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=settings,
        head=dict(
            type='LinearClsHead',
            num_classes=TINY_CLASSES,
            in_channels=settings['arch']['embed_dims'],
        ),
    )


def tiny_distiller(**loss) -> dict:
    """Config of the distiller of ``configs/_base_``."""
    return dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(taps=dict(type='transmamba.DirectionTaps')),
        teacher_recorders=dict(tokens=dict(type='transmamba.PatchTokens')),
        connectors=dict(
            calibration=dict(type='transmamba.FeatureCalibration')
        ),
        distill_losses=dict(
            loss_tm=dict(
                type='transmamba.AdaptiveBidirectionalDistill', **loss
            )
        ),
        loss_forward_mappings=dict(
            loss_tm=dict(
                student=dict(
                    recorder='taps', from_student=True, connector='calibration'
                ),
                teacher=dict(recorder='tokens', from_student=False),
            )
        ),
    )


def save_teacher(path, config=None, seed: int = 7) -> str:
    """Writes the weights of a freshly initialised teacher; returns path."""
    from transmamba_mm.registry import MODELS

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        teacher = MODELS.build(config or tiny_teacher())
        teacher.init_weights()
    torch.save(teacher.state_dict(), path)
    return str(path)


def tiny_batch(num: int = 4, seed: int = 0) -> tuple:
    """Normalised images (num, 3, 16, 16) and their annotations."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num, 3, TINY_SIZE, TINY_SIZE, generator=generator)
    samples = [
        DataSample().set_gt_label(i % TINY_CLASSES) for i in range(num)
    ]
    return images, samples


def tool_env() -> dict:
    """Environment for a tool in a process of its own."""
    env = dict(os.environ, OMP_NUM_THREADS='1')
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR'):
        env.pop(name, None)
    return env


def start_tool(cwd, *command, **kwargs) -> subprocess.Popen:
    """Starts ``python *command`` in ``cwd``, its output joined."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=tool_env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kwargs,
    )


def run_tool_here(monkeypatch, tool: str, *args) -> None:
    """Runs ``tools/<tool>.py`` in this process, to save the imports."""
    monkeypatch.setattr(sys, 'argv', [tool, *map(str, args)])
    monkeypatch.setenv('LOCAL_RANK', '0')
    runpy.run_path(str(TOOLS / f'{tool}.py'), run_name='__main__')
