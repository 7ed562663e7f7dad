# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Weights that a model's ``init_cfg`` asks for, and those of a whole model."""

from collections.abc import Iterator, Mapping
from typing import Optional

from mmengine.model import BaseModule, PretrainedInit
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor, nn

from .files import CheckpointError, strip_prefix
from .weights import read_state_dict


def pretrained_parts(model: nn.Module) -> Iterator[tuple[str, dict]]:
    """Parts of a model that ask for a checkpoint, the innermost first.

    Args:
        model (nn.Module): The model.

    Yields:
        tuple[str, dict]: A module's name, ``''`` for the model itself, and
        its ``init_cfg`` of type ``Pretrained``, be it one of a list. MMEngine
        applies them in this order.
    """
    for name, module in reversed(list(model.named_modules())):
        found = module.init_cfg if isinstance(module, BaseModule) else None
        for cfg in [found] if isinstance(found, Mapping) else found or ():
            kind = cfg['type']
            if isinstance(kind, str):
                kind = WEIGHT_INITIALIZERS.get(kind)
            if kind is PretrainedInit:
                yield name, cfg


def read_declared(
    model: nn.Module,
) -> tuple[Optional[dict[str, Tensor]], str]:
    """Reads the checkpoints that a model's ``init_cfg``s name.

    Args:
        model (nn.Module): The model.

    Returns:
        tuple[dict[str, Tensor] | None, str]: The tensors by the model's
        names, None if no checkpoint is named, and the files for messages.

    Raises:
        CheckpointError: If a file cannot be read, or has no tensor of the
            ``prefix`` that is asked for.
    """
    result, files = {}, []
    for name, cfg in pretrained_parts(model):
        path, prefix = cfg['checkpoint'], cfg.get('prefix')
        state = read_state_dict(path)
        if prefix:
            part = strip_prefix(state, f'{prefix.rstrip(".")}.')
            if not part:
                raise CheckpointError(
                    f"checkpoint '{path}' has no tensor with the prefix "
                    f'{prefix!r} that init_cfg asks for; its tensors are '
                    f'{", ".join(list(state)[:3])}, ...'
                )
            state = part
        state = fit_names(state, model.get_submodule(name))
        place = f'{name}.' if name else ''
        result.update((place + key, value) for key, value in state.items())
        files.append(path)
    return result or None, ', '.join(dict.fromkeys(files))


def fit_names(
    state_dict: Mapping[str, Tensor], model: nn.Module
) -> Mapping[str, Tensor]:
    """Drops what stands in front of all names, if the model has it not.

    Args:
        state_dict (Mapping[str, Tensor]): A state dict.
        model (nn.Module): The model it is for.

    Returns:
        Mapping[str, Tensor]: The tensors; under the same names if none of
        them is the model's in either way.
    """
    own, fitted = model.state_dict().keys(), state_dict
    while not own & fitted.keys():
        front = next(iter(fitted), '').partition('.')[0] + '.'
        if not fitted or not all(key.startswith(front) for key in fitted):
            return state_dict
        fitted = strip_prefix(fitted, front)
    return fitted
