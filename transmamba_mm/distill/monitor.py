# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Watches a distillation run: checks it before, reports it during."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from transmamba_mm.registry import HOOKS


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
        model = self._model(runner)
        if getattr(model, 'distiller', None) is None:
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
            for kind in ('similarities', 'weights'):
                for direction, values in getattr(loss, kind).items():
                    for layer, value in enumerate(values.tolist()):
                        key = f'{name}/{kind}/{direction}/layer{layer:02d}'
                        scalars[key] = value
        if scalars:
            runner.visualizer.add_scalars(scalars, step=runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Logs one table per loss."""
        for name, loss in self._losses(runner).items():
            lines = [f'{name}: similarity (weight) of layers 0, 1, ...']
            for direction, values in loss.similarities.items():
                weights = loss.weights[direction].tolist()
                cells = ' '.join(
                    f'{s:.3f} ({w:.2f})'
                    for s, w in zip(values.tolist(), weights)
                )
                lines.append(f'  {direction}: {cells}')
            if len(lines) > 1:
                runner.logger.info('\n'.join(lines))

    @staticmethod
    def _model(runner: Runner) -> nn.Module:
        model = runner.model
        return model.module if is_model_wrapper(model) else model

    def _losses(self, runner: Runner) -> dict[str, nn.Module]:
        """Distillation losses that publish similarities, by name."""
        distiller = getattr(self._model(runner), 'distiller', None)
        losses = getattr(distiller, 'distill_losses', {})
        return {
            name: loss
            for name, loss in losses.items()
            if hasattr(loss, 'similarities')
        }
