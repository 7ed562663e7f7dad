# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Checkpoints that a tool is given."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from transmamba_mm.checkpoints import CheckpointError
from transmamba_mm.checkpoints.files import lookup
from transmamba_mm.datasets.inspect import check_trained
from transmamba_mm.engine.finite import non_finite

from .mistakes import UsageError


def check_loading(runner: Runner, strict: bool) -> None:
    """Makes the runner refuse a checkpoint that it cannot use, in one line.

    Args:
        runner (Runner): The runner, modified in place.
        strict (bool): Whether all of the model has to be in the file, and
            all of the file in the model. MMEngine only prints what is not.
            Something has to be at any rate.
    """
    load, resume = runner.load_checkpoint, runner.resume

    def versions() -> list[int]:
        # Counts what has been written to a tensor in place.
        return [tensor._version for tensor in runner.model.parameters()]

    def checked(filename: str, *args, **kwargs) -> dict:
        before = versions()
        try:
            content = load(filename, *args, **{'strict': strict, **kwargs})
            if before and versions() == before:
                raise ValueError(
                    f"checkpoint '{filename}' holds nothing of this model"
                )
            for name in non_finite(dict(runner.model.named_parameters())):
                raise CheckpointError(
                    f"checkpoint '{filename}' is no good: {name} is not finite"
                )
            if strict:  # for testing
                meta = lookup(content, 'meta') or {}
                trained = lookup(meta, 'dataset_meta') or {}
                check_trained(trained, runner.test_dataloader.dataset)
            return content
        except CheckpointError:
            raise
        except ValueError as error:  # of a model that says what does not fit
            raise UsageError(str(error)) from error
        except RuntimeError as error:
            if not str(error).startswith('The model and loaded state dict'):
                raise
            raise UsageError(
                f"'{filename}' is of another model. {error}"
            ) from error

    def resumed(filename: str, *args, **kwargs) -> None:
        loaded = None

        def noted(*args, **kwargs) -> dict:
            nonlocal loaded
            loaded = checked(*args, **kwargs)
            # MMEngine would go on with whatever it finds.
            meta = loaded['meta']
            meta['epoch'], meta['iter'] = int(meta['epoch']), int(meta['iter'])
            if min(meta['epoch'], meta['iter']) < 0:
                raise ValueError('it has trained for less than nothing')
            _check_schedulers(runner.param_schedulers, loaded)
            _check_optimizer(runner.optim_wrapper, loaded['optimizer'])
            return loaded

        runner.load_checkpoint = noted
        try:
            resume(filename, *args, **kwargs)
        except (UsageError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:
            if loaded is None:
                raise
            # Whatever a state that is not complete makes MMEngine raise.
            raise UsageError(
                f"'{filename}' holds no training state of this config "
                f'({type(error).__name__}: {error}): to start from its '
                f'weights, use load_from=FILE instead of --resume'
            ) from error
        finally:
            runner.load_checkpoint = checked

    runner.load_checkpoint, runner.resume = checked, resumed


def _check_schedulers(own: Any, content: Mapping) -> None:
    """Refuses states that schedulers would take over, and fail with later."""
    states = {k: s.state_dict() for k, s in _numbered(own)}
    found = dict(_numbered(content.get('param_schedulers')))
    if states.keys() != found.keys():
        raise ValueError(
            f'it is of {len(found)} schedulers, and there are {len(states)}'
        )
    for place, state in states.items():
        if wrong := state.keys() ^ dict(found[place]).keys():
            raise ValueError(
                f'{min(wrong)} is not in both states of scheduler {place}'
            )
        for key, value in found[place].items():
            _check_kind(f'{key} of scheduler {place}', value, state[key])


def _numbered(schedulers: Any) -> Iterator[tuple[str, Any]]:
    """Schedulers, or their states, of one optimizer or of several."""
    if isinstance(schedulers, Mapping):
        for name, each in schedulers.items():
            for place, scheduler in _numbered(each):
                yield f'{name}.{place}', scheduler
    else:
        for i, scheduler in enumerate(schedulers or ()):
            yield str(i), scheduler


def _check_optimizer(wrapper: Any, found: Mapping) -> None:
    """Refuses settings and values that steps would fail with later."""
    if not isinstance(wrapper, OptimWrapper):  # of several optimizers
        return
    for i, group in enumerate(found['param_groups']):
        for key, value in wrapper.optimizer.defaults.items():
            if key in group:
                _check_kind(f'{key} of group {i}', group[key], value)
    for i, state in found['state'].items():
        for key, value in state.items():
            if not isinstance(value, (torch.Tensor, float, int, type(None))):
                raise ValueError(f'{key} of parameter {i} is {value!r:.40}')


def _check_kind(name: str, value: Any, own: Any) -> None:
    same = _kind(value) == _kind(own)
    # A switch that this config sets and that of the checkpoint did not.
    unset = value is None and (isinstance(own, bool) or 'eta_min' in name)
    if not (same or unset or own is None):
        raise ValueError(
            f'{name} is {value!r:.40}, and should be like {own!r:.40}'
        )


def _kind(value: Any) -> Any:
    """Whether values may stand for each other."""
    if isinstance(value, (list, tuple)):
        return frozenset(map(_kind, value))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return 'NaN' if math.isnan(value) else 'a number'
    # Names are the config's.
    return value if isinstance(value, str) else type(value)
