# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Hooks of a distillation run: check it, keep its time, report it."""

from typing import Optional

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmrazor.models.algorithms import SingleTeacherDistill
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from transmamba_mm.registry import HOOKS

from .algorithm import TransMambaDistill
from .losses import DistillLoss
from .schedule import DTensor
from .untouched import losses_of, untouched

# How names in the log start that a distillation may leave out for a time.
_LOGGED = ('distill.', 'student.')


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside a data-parallel wrapper, or the model itself."""
    return model.module if is_model_wrapper(model) else model


def refuse_sharded(model: nn.Module, hook: str) -> None:
    """Refuses a model whose weights are shared among processes.

    Args:
        model (nn.Module): The model.
        hook (str): What cannot do with a share of them.

    Raises:
        ValueError: If they are.
    """
    if any(isinstance(x, DTensor) for x in model.parameters()):
        raise ValueError(
            f'{hook} needs whole weights, and FullyShardStrategy shares them '
            f'among processes: leave one of the two out'
        )


@HOOKS.register_module()
class DistillMonitor(Hook):
    """Checks losses that set in later, then logs similarities.

    The first step of a training shows whether sources, widths and token grids
    of a distillation fit, except those of losses that do not count yet. So
    before it, where there is a schedule, the first batch goes once through
    each stretch of the training, just as a step then would. That changes
    nothing: neither the batch nor the model nor random numbers.

    While training it writes, for every distillation loss that counts and has
    them, the similarity and weight of each layer and direction to the
    visualizer, and a table to the log after each epoch.

    Args:
        interval (int): Iterations between visualizer entries. Defaults
            to 50.
    """

    # After the hook that sets the time.
    priority = 'LOW'

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval
        self._checked = False

    def before_train(self, runner: Runner) -> None:
        """Starts anew."""
        self._checked = False

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None
    ) -> None:
        """Sends the first batch through all losses; changes nothing."""
        model = unwrapped(runner.model)
        if self._checked or not isinstance(model, TransMambaDistill):
            return
        self._checked = True
        schedule = model.schedule
        if schedule.constant or schedule.progress is None:
            return  # the step does the same, or says who must keep the time
        now = schedule.progress
        with untouched(model):
            try:
                for moment in schedule.moments():
                    schedule.progress = moment
                    losses_of(runner, model, data_batch)
            finally:
                schedule.progress = now

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
                    for layer, value in values.items():
                        key = f'{name}/{kind}/{direction}/layer{layer:02d}'
                        scalars[key] = value.item()
        if scalars:
            runner.visualizer.add_scalars(scalars, step=runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Logs one table per loss."""
        for name, loss in self._losses(runner).items():
            for kind, by_direction in loss.layer_statistics().items():
                lines = [f'{name}: {kind} by layer']
                for direction, values in by_direction.items():
                    cells = ' '.join(
                        f'{layer}: {value:.3f}'
                        for layer, value in values.items()
                    )
                    lines.append(f'  {direction}: {cells}')
                runner.logger.info('\n'.join(lines))

    @staticmethod
    def _losses(runner: Runner) -> dict[str, DistillLoss]:
        """Losses that count and publish statistics, by name."""
        model = unwrapped(runner.model)
        if not isinstance(model, SingleTeacherDistill):
            return {}
        losses = dict(model.distiller.distill_losses.items())
        if isinstance(model, TransMambaDistill):
            losses = {name: losses[name] for name in model.active_losses()}
        return {
            name: loss
            for name, loss in losses.items()
            if isinstance(loss, DistillLoss)
        }


@HOOKS.register_module()
class DistillScheduleHook(Hook):
    """Tells a distillation the time, and holds what must not train.

    Idle without a schedule. What does not train in the current phase has no
    gradient when the optimizer steps: neither weight decay nor momentum moves
    it, and it adds nothing to the gradient norm that is clipped. It works the
    same in one process and in several. Losses that no longer count leave the
    log, where their last values would stay.

    The factor that a phase has for the learning rate is there while the
    optimizer steps; schedulers and the log see the rate without it.
    """

    # Before hooks that use the model or write the log.
    priority = 'ABOVE_NORMAL'

    def __init__(self) -> None:
        self._moment: Optional[tuple] = None
        self._held: list[nn.Parameter] = []
        self._handles: list = []
        self._rates: list[float] = []
        self._steps: list[RemovableHandle] = []

    def before_train(self, runner: Runner) -> None:
        """Attaches itself to the optimizer, if there is a schedule.

        Raises:
            ValueError: If the optimizer is none of PyTorch's.
        """
        if self._scheduled(runner) is None:
            return
        optimizer = runner.optim_wrapper.optimizer
        if not isinstance(optimizer, Optimizer):
            raise ValueError(
                f'a distillation with phases or losses that set in later '
                f"needs an optimizer of PyTorch's, not "
                f'{type(optimizer).__name__}: leave phases and schedules '
                f'out, or share the model by FullyShardStrategy'
            )
        self._steps = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None
    ) -> None:
        """Sets the time, and what is held from now on."""
        model = self._scheduled(runner)
        if model is None:
            return
        model.schedule.progress = runner.iter / runner.max_iters
        moment = model.schedule.now()[0], tuple(model.active_losses())
        if moment == self._moment:
            return
        self._release()
        self._moment, self._held = moment, model.held_parameters()
        self._drop_gradients()  # accumulated until now
        # Zero, not None yet: data-parallel training waits for all gradients.
        self._handles = [
            parameter.register_hook(torch.zeros_like)
            for parameter in self._held
            if parameter.requires_grad
        ]

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Takes what does not count any more out of the log."""
        if self._scheduled(runner) is None:
            return
        scalars = runner.message_hub.log_scalars
        for tag in list(scalars):
            name = tag.removeprefix('train/')
            if name.startswith(_LOGGED) and name not in outputs:
                scalars.pop(tag)

    def after_train(self, runner: Runner) -> None:
        """Lets go of everything."""
        self._release()
        for handle in self._steps:
            handle.remove()
        self._moment, self._held, self._steps = None, [], []

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _drop_gradients(self) -> None:
        for parameter in self._held:
            parameter.grad = None

    def _before_step(self, optimizer: Optimizer, *args) -> None:
        self._drop_gradients()
        phase, _ = self._moment
        self._rates = [group['lr'] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group['lr'] = phase.lr_mult * group['lr']

    def _after_step(self, optimizer: Optimizer, *args) -> None:
        for group, rate in zip(optimizer.param_groups, self._rates):
            group['lr'] = rate

    @staticmethod
    def _scheduled(runner: Runner) -> Optional[TransMambaDistill]:
        """The model, if it has a schedule."""
        model = unwrapped(runner.model)
        if not isinstance(model, TransMambaDistill):
            return None
        return None if model.schedule.constant else model
