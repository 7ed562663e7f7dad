# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Looks at a batch that leave no trace in a training."""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.runner import Runner
from torch import Tensor, nn


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


@contextmanager
def _untouched_buffers(model: nn.Module) -> Iterator[None]:
    """Restores what a forward pass may move, e.g. BatchNorm's statistics."""
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in saved:
            buffer.copy_(value)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restores random states and buffers, whatever is done meanwhile.

    Args:
        model (nn.Module): The model, not inside a data-parallel wrapper.
    """
    with _untouched_randomness(), _untouched_buffers(model):
        yield


def losses_of(
    runner: Runner, model: nn.Module, data_batch: Any
) -> dict[str, Tensor]:
    """What a step on this batch would give, without the step.

    Args:
        runner (Runner): The runner.
        model (nn.Module): Its model, not inside a data-parallel wrapper.
        data_batch (Any): As the dataloader gave it; stays as it is.

    Returns:
        dict[str, Tensor]: See ``mode='loss'`` of MMEngine's models.
    """
    # A preprocessor may write into the batch.
    batch = copy.deepcopy(data_batch)
    with runner.optim_wrapper.optim_context(runner.model):
        data = model.data_preprocessor(batch, True)
        return model._run_forward(data, mode='loss')
