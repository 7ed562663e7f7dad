# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Weight decay by role, and no optimizer group per parameter."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Optional

from mmengine.logging import MMLogger, print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import nn
from torch.optim import Optimizer

from transmamba_mm.contract import FAMILIES, MambaStudent
from transmamba_mm.contract.roles import UNDECAYED, split_role
from transmamba_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS

# Entries of a group that are not options: what it holds, and the note of its
# origin that mmpretrain's layer-wise decay leaves.
_NOT_OPTIONS = ('params', 'param_name')
_BY_SHAPE = dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class MergedGroupsOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's default constructor, with fewer decays and fewer groups.

    Norms, biases and all other vectors have no weight decay unless
    ``norm_decay_mult``, ``bias_decay_mult`` or ``flat_decay_mult`` says so.
    Nor have parameters of any shape that play a role in
    :data:`~transmamba_mm.contract.roles.UNDECAYED`, in all students and
    known Transformers of a model. As in MMEngine, nothing else counts for
    what a key of ``custom_keys`` matches.

    With a ``paramwise_cfg`` MMEngine makes a group of every parameter, and an
    optimizer steps through its groups one by one, so that none of its
    operations on many tensors ever gets more than one. Here parameters with
    equal options share a group; what is computed is the same.

    It resumes runs that MMEngine's default constructor has started with the
    same decays, unless learning rates differ between groups. As a first base
    it does the same to constructors that extend the default one:
    ``class Both(MergedGroupsOptimWrapperConstructor,
    LearningRateDecayOptimWrapperConstructor)``.

    Args:
        optim_wrapper_cfg (dict): As in MMEngine.
        paramwise_cfg (dict, optional): As in MMEngine, and
            ``role_decay_mult``: multiples of the weight decay for these
            roles by their short names, e.g. ``dict(A=1.0)``. Defaults to
            None.

    Raises:
        ValueError: If ``role_decay_mult`` has another name.
    """

    def __init__(
        self, optim_wrapper_cfg: dict, paramwise_cfg: Optional[dict] = None
    ) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        known = UNDECAYED.values()
        for role in self.paramwise_cfg.get('role_decay_mult', {}):
            if role not in known:
                raise ValueError(
                    f'role_decay_mult knows no {role}, but {", ".join(known)}'
                )
        if self.base_wd is not None:
            self.paramwise_cfg = {**_BY_SHAPE, **self.paramwise_cfg}

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer and its wrapper.

        Args:
            model (nn.Module): The model to be optimized.

        Returns:
            OptimWrapper: The wrapper of the optimizer.

        Raises:
            ValueError: If the weight decay is not stated, and not 0.
        """
        self._members: list[list[int]] = []
        wrapper = super().__call__(model)
        optimizer, before = wrapper.optimizer, sum(map(len, self._members))
        if self.base_wd is None and optimizer.defaults.get('weight_decay'):
            raise ValueError(
                f'state optim_wrapper.optimizer.weight_decay: the default of '
                f'{type(optimizer).__name__} would decay every parameter'
            )
        if before == len(self._members):
            return wrapper
        # One that shards its state reads it before any hook could.
        if type(optimizer).load_state_dict is Optimizer.load_state_dict:
            optimizer.register_load_state_dict_pre_hook(
                partial(_merge_saved_groups, self._members)
            )
        return wrapper

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        **kwargs,
    ) -> None:
        """Add all parameters of a module, in as few groups as possible.

        Args:
            params (list[dict]): The groups so far, modified in place.
            module (nn.Module): The module whose parameters to add.
            prefix (str): Its name; empty for the model itself. Defaults to
                ''.
            **kwargs: What the parent hands on to a module's children.
        """
        if prefix:  # part of the recursion over modules
            super().add_params(params, module, prefix=prefix, **kwargs)
            return
        with _no_line_per_parameter():
            super().add_params(params, module, prefix=prefix, **kwargs)
        if self.base_wd is not None:
            self._decay_by_role(params, module)
        self._merge(params)
        defaults = dict(lr=self.base_lr, weight_decay=self.base_wd)
        _report(params, defaults, module)

    def _merge(self, params: list[dict]) -> None:
        """Lets parameters with equal options share a group, in place."""
        every = [id(p) for group in params for p in group['params']]
        if len(every) != len(set(every)):
            # PyTorch refuses a parameter in two groups, but would update one
            # twice that is in the same group twice.
            return
        self._members = _equal_groups(params)
        params[:] = [_merged(params, members) for members in self._members]

    def _decay_by_role(self, params: list[dict], model: nn.Module) -> None:
        """Multiplies the decay of all parameters whose role says so."""
        wanted = self.paramwise_cfg.get('role_decay_mult', {})
        keys = self.paramwise_cfg.get('custom_keys', {})
        roles = _undecayed(model)
        names = {p: name for name, p in model.named_parameters()}
        for group in params:
            (parameter,) = group['params']
            name, role = names[parameter], roles.get(parameter)
            # MMEngine writes a dot in front of the model's own parameters.
            full = name if '.' in name else f'.{name}'
            by_shape = parameter.ndim == 1 and role not in wanted
            if not role or by_shape or any(key in full for key in keys):
                continue
            # Checkpoints have a group of these, as `custom_keys` makes it.
            mult = wanted.get(role, 0.0)
            group.update(weight_decay=self.base_wd * mult, decay_mult=mult)


def _undecayed(model: nn.Module) -> dict[nn.Parameter, str]:
    """What plays a role that weight decay spares, and its short name."""
    played: dict[nn.Parameter, str] = {}
    for module in model.modules():
        if isinstance(module, MambaStudent):
            parameters = dict(module.named_parameters())
            for name, role in module.param_roles().items():
                played[parameters[name]] = split_role(role)[1]
    parameters = dict(model.named_parameters())
    for family in FAMILIES.values():
        tokens = dict.fromkeys(family.extra_tokens, 'cls_token')
        for found in family.find(parameters):
            for name, role in {**family.outer, **tokens}.items():
                if found.prefix + name in parameters:
                    played[parameters[found.prefix + name]] = role
    return {p: UNDECAYED[r] for p, r in played.items() if r in UNDECAYED}


@contextmanager
def _no_line_per_parameter() -> Iterator[None]:
    """Keeps MMEngine's lines about each parameter out of the log."""

    def wanted(record: logging.LogRecord) -> bool:
        line = record.getMessage()
        return not (
            line.startswith('paramwise_options -- ')
            or line.endswith('is skipped since its requires_grad=False')
        )

    logger = MMLogger.get_current_instance()
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def _report(groups: list[dict], defaults: dict, model: nn.Module) -> None:
    """Logs a line per group, and one for what does not train."""
    names = {p: name for name, p in model.named_parameters()}
    frozen = Counter(
        name.partition('.')[0]
        for p, name in names.items()
        if not p.requires_grad
    )
    lines = []
    for index, group in enumerate(groups):
        options = {**defaults, **_options(group)}.items()
        described = ', '.join(f'{k}={v}' for k, v in options)
        params = group['params']
        lines.append(
            f'optimizer group {index} ({described}): {len(params)} '
            f'parameters, from {names[params[0]]} on'
        )
    if frozen:
        parts = ', '.join(f'{num} of {part}' for part, num in frozen.items())
        lines.append(f'parameters that do not train: {parts}')
    for line in lines:
        print_log(line, logger='current')


def _options(group: dict) -> dict:
    return {k: v for k, v in group.items() if k not in _NOT_OPTIONS}


def _equal_groups(groups: list[dict]) -> list[list[int]]:
    """Indices of groups with equal options, in order of appearance."""
    found: list[tuple[dict, list[int]]] = []
    for index, group in enumerate(groups):
        options = _options(group)
        for known, members in found:
            if known == options:
                members.append(index)
                break
        else:
            found.append((options, [index]))
    return [members for _, members in found]


def _merged(groups: list[dict], members: list[int]) -> dict:
    params = [p for index in members for p in groups[index]['params']]
    return {'params': params, **_options(groups[members[0]])}


def _merge_saved_groups(
    members: list[list[int]], optimizer: Optimizer, state_dict: dict
) -> dict:
    """Merge the groups of a state that the parent's constructor made.

    The states of the parameters keep their numbers; only the groups, which
    list these numbers, are brought into the order of ours.

    Args:
        members (list[list[int]]): For each of our groups the parent's.
        optimizer (Optimizer): The optimizer which loads the state.
        state_dict (dict): The state, not modified.

    Returns:
        dict: The state with our groups, or the same if it is another's.

    Raises:
        ValueError: If our groups cannot express what the state's did.
    """
    saved = state_dict['param_groups']
    if len(saved) != sum(map(len, members)):
        return state_dict
    initial = [
        {k: v for k, v in group.items() if k.startswith('initial_')}
        for group in saved
    ]
    if any(values != initial[0] for values in initial):
        # Schedulers keep a list of their own with a value per group, which
        # they will load next, and which nobody can merge here.
        _refuse('its learning rates differ between groups')
    if any(
        _options(saved[index]) != _options(saved[same[0]])
        for same in members
        for index in same
    ):
        _refuse('the config groups them otherwise than its config did')
    groups = [_merged(saved, same) for same in members]
    return {**state_dict, 'param_groups': groups}


def _refuse(reason: str) -> None:
    raise ValueError(
        'the checkpoint has an optimizer group per parameter, and they cannot '
        f'be merged: {reason}. Resume the run with the config that it wrote '
        'into its work_dir and '
        'optim_wrapper.constructor=DefaultOptimWrapperConstructor'
    )
