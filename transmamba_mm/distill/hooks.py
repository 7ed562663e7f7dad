# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Hooks of a distillation run: check it, keep its time, report it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from mmrazor.models.algorithms import SingleTeacherDistill
from torch import nn

from transmamba_mm.registry import HOOKS

from .algorithm import TransMambaDistill
from .losses import DistillLoss


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside a data-parallel wrapper, or the model itself."""
    return model.module if is_model_wrapper(model) else model


@contextmanager
def _untouched_randomness() -> Iterator[None]:
    """Restores all random states that a look at the data may advance."""
    python, numpy = random.getstate(), np.random.get_state()
    # All devices is the default, which warns where there are several.
    cuda = torch.cuda.is_available()
    with torch.random.fork_rng([torch.cuda.current_device()] if cuda else []):
        yield
    random.setstate(python)
    np.random.set_state(numpy)


@HOOKS.register_module()
class DistillMonitor(Hook):
    """Checks a distillation config on one sample, then logs similarities.

    Before the first iteration it runs one training sample through teacher,
    student and losses, so that sources, widths and token grids that do not
    fit are reported before any training. While training it writes, for every
    distillation loss that has them, the similarity and weight of each layer
    and direction to the visualizer, and a table to the log after each epoch.

    Args:
        interval (int): Iterations between visualizer entries. Defaults
            to 50.
    """

    priority = 'LOW'

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval

    def before_train(self, runner: Runner) -> None:
        """Runs one sample through all losses; changes nothing."""
        model = unwrapped(runner.model)
        if not isinstance(model, SingleTeacherDistill):
            return
        modes = {module: module.training for module in model.modules()}
        loader = runner.train_dataloader
        with _untouched_randomness(), torch.no_grad():
            batch = loader.collate_fn([loader.dataset[0]])
            nn.Module.eval(model)
            try:
                data = model.data_preprocessor(batch, False)
                with runner.optim_wrapper.optim_context(runner.model):
                    model(**data, mode='loss')
            finally:
                for module, mode in modes.items():
                    module.training = mode

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Writes similarities and weights to the visualizer."""
        if not self.every_n_train_iters(runner, self.interval):
            return
        scalars = {}
        for name, loss in self._losses(runner).items():
            for kind, by_direction in loss.layer_statistics().items():
                for direction, values in by_direction.items():
                    for layer, value in enumerate(values.tolist()):
                        key = f'{name}/{kind}/{direction}/layer{layer:02d}'
                        scalars[key] = value
        if scalars:
            runner.visualizer.add_scalars(scalars, step=runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Logs one table per loss."""
        for name, loss in self._losses(runner).items():
            for kind, by_direction in loss.layer_statistics().items():
                lines = [f'{name}: {kind} of layers 0, 1, ...']
                for direction, values in by_direction.items():
                    cells = ' '.join(f'{value:.3f}' for value in values)
                    lines.append(f'  {direction}: {cells}')
                runner.logger.info('\n'.join(lines))

    @staticmethod
    def _losses(runner: Runner) -> dict[str, DistillLoss]:
        """Distillation losses that publish statistics, by name."""
        model = unwrapped(runner.model)
        if not isinstance(model, SingleTeacherDistill):
            return {}
        return {
            name: loss
            for name, loss in model.distiller.distill_losses.items()
            if isinstance(loss, DistillLoss)
        }


@HOOKS.register_module()
class DistillScheduleHook(Hook):
    """Tells a distillation the time, and holds what must not train.

    Idle without a schedule. What does not train in the current phase has no
    gradient when the optimizer steps: neither weight decay nor momentum moves
    it, and it adds nothing to the gradient norm that is clipped. It works the
    same in one process and in several.
    """

    # Before hooks that use the model, after the parameter scheduler.
    priority = 'ABOVE_NORMAL'

    def __init__(self) -> None:
        self._held: list[nn.Parameter] = []
        self._handles: list = []
        self._steps: list = []

    def before_train(self, runner: Runner) -> None:
        """Attaches itself to the optimizers, if there is a schedule."""
        if self._scheduled(runner) is None:
            return
        wrapper = runner.optim_wrapper
        wrappers = [wrapper]
        if isinstance(wrapper, OptimWrapperDict):
            wrappers = list(wrapper.values())
        self._steps = [
            each.optimizer.register_step_pre_hook(self._drop_gradients)
            for each in wrappers
        ]

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None
    ) -> None:
        """Sets the time, and what is held from now on."""
        model = self._scheduled(runner)
        if model is None:
            return
        model.schedule.progress = runner.iter / runner.max_iters
        held = model.held_parameters()
        if list(map(id, held)) == list(map(id, self._held)):
            return
        self._release()
        self._held = held
        # Zero, not None yet: data-parallel training waits for all gradients.
        self._handles = [
            parameter.register_hook(torch.zeros_like)
            for parameter in held
            if parameter.requires_grad
        ]

    def after_train(self, runner: Runner) -> None:
        """Lets go of everything."""
        self._release()
        for handle in self._steps:
            handle.remove()
        self._held, self._steps = [], []

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _drop_gradients(self, optimizer, args, kwargs) -> None:
        for parameter in self._held:
            parameter.grad = None

    @staticmethod
    def _scheduled(runner: Runner) -> Optional[TransMambaDistill]:
        """The model, if it has a schedule."""
        model = unwrapped(runner.model)
        if not isinstance(model, TransMambaDistill):
            return None
        return None if model.schedule.constant else model
