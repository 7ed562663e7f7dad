# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Builders of tiny models and runs that several tests share."""

import contextlib
import copy
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / 'tools'
CONFIGS = ROOT / 'configs'

TINY_CLASSES = 3
TINY_SIZE = 16  # pixels; patches of 4, so the grid is 4x4
TINY_GRID = (4, 4)

#: PlainMamba's four directions.
SNAKES = (
    'snake_horizontal',
    'snake_horizontal_reverse',
    'snake_vertical',
    'snake_vertical_reverse',
)


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
    """Writes random weights of a teacher, head included; returns path."""
    from transmamba_mm.registry import MODELS

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        teacher = MODELS.build(config or tiny_teacher())
        # mmpretrain starts with a head of zeros, which would teach nothing.
        for parameter in teacher.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    torch.save(teacher.state_dict(), path)
    return str(path)


def tiny_batch(num: int = 4, seed: int = 0) -> tuple:
    """Normalised images (num, 3, 16, 16) and their annotations."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num, 3, TINY_SIZE, TINY_SIZE, generator=generator)
    samples = [DataSample().set_gt_label(i % TINY_CLASSES) for i in range(num)]
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


class ForkedTool:
    """``tools/<tool>.py`` in forks of a server that has imported us already.

    A fork of this process itself could not compute gradients once it has.

    Args:
        cwd (Path): Where it runs.
        tool (str): Its name.
        args: Its arguments.
        ranks (int): Processes of a distributed run. Defaults to 0: one, of
            which no launcher knows.
    """

    def __init__(self, cwd, tool: str, *args, ranks: int = 0) -> None:
        self._log = Path(cwd, f'{uuid.uuid4().hex}.log')
        context = multiprocessing.get_context('forkserver')
        shared = dict(
            WORLD_SIZE=str(ranks),
            MASTER_ADDR='127.0.0.1',
            MASTER_PORT=str(_free_port()),
        )
        self.processes = []
        for rank in range(ranks) if ranks else [0]:
            own = dict(shared, RANK=str(rank)) if ranks else {}
            env = {**os.environ, **own}
            env['LOCAL_RANK'] = str(rank)
            target = (cwd, self._log, env, tool, *map(str, args))
            self.processes.append(context.Process(target=_run, args=target))
            self.processes[-1].start()

    def wait(self, fails: bool = False, timeout: int = 300) -> str:
        """Waits for its end, good or bad as it must be; returns its output."""
        try:
            for process in self.processes:
                process.join(timeout)
        finally:
            self.kill()
        output = self._log.read_text()
        failed = any(process.exitcode for process in self.processes)
        assert failed == fails, output[-4000:]
        return output

    def kill(self) -> None:
        """Kills it, its own workers included."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.join()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def _run(cwd, log, env: dict, tool: str, *args) -> None:
    os.setsid()
    os.chdir(cwd)
    os.environ.update(env)
    with open(log, 'a', buffering=1) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        sys.stdout = sys.stderr = output
        sys.argv = [tool, *args]
        runpy.run_path(str(TOOLS / f'{tool}.py'), run_name='__main__')


def own_name() -> str:
    """An option that keeps runs in one process and second apart."""
    return f'experiment_name=run-{uuid.uuid4().hex}'


def run_tool_here(monkeypatch, tool: str, *args) -> None:
    """Runs ``tools/<tool>.py`` in this process, to save the imports."""
    monkeypatch.setattr(sys, 'argv', [tool, *map(str, args)])
    monkeypatch.setenv('LOCAL_RANK', '0')
    runpy.run_path(str(TOOLS / f'{tool}.py'), run_name='__main__')


def vit_cfg(
    dims=16,
    depth=2,
    heads=2,
    ffn=32,
    classes=3,
    img_size=16,
    patch_size=4,
    **backbone,
) -> dict:
    """Config of a ViT classifier of any size, a teacher."""
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(
            type='VisionTransformer',
            arch=dict(
                embed_dims=dims,
                num_layers=depth,
                num_heads=heads,
                feedforward_channels=ffn,
            ),
            img_size=img_size,
            patch_size=patch_size,
            **backbone,
        ),
        head=dict(
            type='VisionTransformerClsHead',
            num_classes=classes,
            in_channels=dims,
        ),
    )


def pmamba_cfg(
    dims=16,
    depth=2,
    classes=3,
    img_size=16,
    patch_size=4,
    stem='patch',
    ffn_ratio=2,
    mixer=None,
    **backbone,
) -> dict:
    """Config of a PlainMamba classifier of any size, a student.

    By default it is as wide and deep as :func:`vit_cfg`, with ``expand=1``,
    so every tensor outside the SSM has a counterpart.
    """
    mixer_cfg = dict(d_state=4, expand=1, conv_size=3)
    mixer_cfg.update(mixer or {})
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(
            type='transmamba.PlainMamba',
            arch=dict(embed_dims=dims, num_layers=depth),
            img_size=img_size,
            patch_size=patch_size,
            stem=stem,
            ffn_ratio=ffn_ratio,
            mixer_cfg=mixer_cfg,
            **backbone,
        ),
        head=dict(type='LinearClsHead', num_classes=classes, in_channels=dims),
    )


@torch.no_grad()
def randomise(model, seed: int = 0) -> None:
    """Adds noise to every parameter, those that start constant included."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.add_(0.1 * noise.to(parameter))


def build(config: dict, seed: int = 0) -> torch.nn.Module:
    """Builds a model in eval mode, no two parameters of which are equal."""
    from transmamba_mm.registry import MODELS

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MODELS.build(copy.deepcopy(config))
    randomise(model, seed)
    return model.eval()


def snapshot(model) -> dict:
    """A copy of the state dict that training cannot change."""
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


class TinyPictures(torch.utils.data.Dataset):
    """Packed random pictures, as a pipeline would give them."""

    def __init__(self, num: int = 8) -> None:
        generator = torch.Generator().manual_seed(3)
        shape = (num, 3, TINY_SIZE, TINY_SIZE)
        self.images = torch.randint(256, shape, generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        sample = DataSample().set_gt_label(index % TINY_CLASSES)
        return dict(inputs=self.images[index].byte(), data_samples=sample)


def tiny_runner(work_dir, model, max_epochs: int = 1, num: int = 8, **kwargs):
    """A Runner that trains ``model`` on :class:`TinyPictures` with SGD."""
    from mmengine.dataset import pseudo_collate
    from mmengine.runner import Runner

    settings = dict(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=torch.utils.data.DataLoader(
            TinyPictures(num), batch_size=4, collate_fn=pseudo_collate
        ),
        train_cfg=dict(by_epoch=True, max_epochs=max_epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05)),
        default_scope='mmpretrain',
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(type='transmamba.SafeCheckpointHook'),
        ),
        randomness=dict(seed=0),
        experiment_name=f'tiny-{uuid.uuid4().hex}',
    )
    settings.update(kwargs)
    return Runner(**settings)


def plan_from(teacher, student, **kwargs) -> tuple:
    """Plans a subcloning; returns the plan and its entries by name."""
    from transmamba_mm.contract import read_teacher
    from transmamba_mm.transfer import Subcloner

    kwargs.setdefault('importance', 'first')
    weights = read_teacher(teacher.state_dict())
    plan = Subcloner(student, weights, **kwargs).plan()
    return plan, {e.name.removeprefix('backbone.'): e for e in plan.entries}


def assert_distillation_learns(student: dict, tmp_path) -> None:
    """Two steps of SGD from a tiny ViT lower the loss, all parameters learn.

    Args:
        student (dict): Config of a classifier of ``TINY_SIZE`` images.
        tmp_path (Path): Folder for the teacher's checkpoint.
    """
    from transmamba_mm.distill import TransMambaDistill

    model = TransMambaDistill(
        architecture=student,
        teacher=tiny_teacher(),
        distiller=tiny_distiller(),
        teacher_ckpt=save_teacher(tmp_path / 'teacher.pth'),
    )
    model.init_weights()
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    inputs, samples = tiny_batch()
    logged = []
    for _ in range(2):
        losses = model(inputs, samples, mode='loss')
        total, log = model.parse_losses(losses)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        logged.append(log)
    assert {'student.loss', 'distill.loss_tm'} <= set(logged[0])
    assert logged[1]['loss'] < logged[0]['loss']
    for name, parameter in model.student.named_parameters():
        assert parameter.isfinite().all(), name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def assert_trains_on_one_batch(cfg) -> None:
    """One step of a config, whose model has been made small."""
    cfg.model.data_preprocessor = cfg.data_preprocessor
    model = MODELS.build(cfg.model)
    model.init_weights()
    std = model.head.fc.weight.std().item()
    assert std == pytest.approx(0.02, rel=0.1)
    model.train()
    batch = dict(
        inputs=[torch.randint(0, 256, (3, 64, 64)) for _ in range(2)],
        data_samples=[DataSample().set_gt_label(i) for i in range(2)],
    )
    data = model.data_preprocessor(batch, training=True)
    total, _ = model.parse_losses(model(**data, mode='loss'))
    total.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), key
