# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Mistakes of the user, in one line each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Optional

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn

from transmamba_mm.checkpoints import CheckpointError
from transmamba_mm.checks import UnreadableFileError
from transmamba_mm.compat import UntrustedFileError
from transmamba_mm.engine.explain import explain
from transmamba_mm.engine.finite import NonFiniteError
from transmamba_mm.engine.precheck import PreCheckError


class UsageError(Exception):
    """A mistake of the user, to be shown without a traceback."""


@contextmanager
def explained(
    cfg: Config,
    what: str = '',
    traced: Callable[[Exception], bool] = lambda error: False,
    model: Optional[nn.Module] = None,
) -> Iterator[None]:
    """Makes one line of errors: the setting that they come from, and why.

    With ``log_level = 'DEBUG'`` in the config errors keep their traceback.

    Args:
        cfg (Config): What is built or run.
        what (str): What the line begins with. Defaults to none.
        traced (Callable): Whether an error keeps its traceback. Defaults to
            none.
        model (nn.Module, optional): The model that runs. Defaults to None.

    Raises:
        UsageError: For any other error.
    """
    try:
        yield
    except (UsageError, CheckpointError, UntrustedFileError):
        raise
    except Exception as error:
        if traced(error) or cfg.get('log_level') == 'DEBUG':
            raise
        text = explain(error, cfg, model)
        raise UsageError(f'{what}: {text}' if what else text) from error


class _Started(Hook):
    """Knows whether a step of the optimizer is done."""

    priority = 'LOWEST'  # the first step with all that hooks do

    def __init__(self) -> None:
        self.started = False

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        wrapper = runner.optim_wrapper
        several = isinstance(wrapper, OptimWrapperDict)
        # With gradient accumulation a step takes several iterations.
        self.started = self.started or any(
            # DeepSpeed counts by itself.
            not isinstance(each, OptimWrapper) or each.should_update()
            for each in (wrapper.values() if several else [wrapper])
        )


def train(runner: Runner) -> None:
    """Trains. What goes wrong until the first step is done is the config's.

    Args:
        runner (Runner): The runner.

    Raises:
        UsageError: For what goes wrong until then, and later for losses,
            labels, images and videos that cannot be trained on.
    """
    hook = _Started()
    runner.register_hook(hook)

    def traced(error: Exception) -> bool:
        return hook.started and not isinstance(
            error, (NonFiniteError, PreCheckError, UnreadableFileError)
        )

    with explained(runner.cfg, traced=traced, model=runner.model):
        runner.train()
