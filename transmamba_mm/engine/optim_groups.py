# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Parameter-wise options without an optimizer group per parameter."""

from functools import partial

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import nn
from torch.optim import Optimizer

from transmamba_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS

# Entries of a group that are not options: what it holds, and the note of its
# origin that mmpretrain's layer-wise decay leaves.
_NOT_OPTIONS = ('params', 'param_name')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class MergedGroupsOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's default constructor, with equal groups merged.

    With a ``paramwise_cfg`` MMEngine makes a group of every parameter, and an
    optimizer steps through its groups one by one, so that none of its
    operations on many tensors ever gets more than one. Here parameters with
    equal options share a group; what is computed is the same.

    It takes the same arguments, and resumes runs that MMEngine's default
    constructor has started, unless learning rates differ between groups. As
    a first base it does the same to constructors that extend the default
    one: ``class Both(MergedGroupsOptimWrapperConstructor,
    LearningRateDecayOptimWrapperConstructor)``.

    Example:
        >>> optim_wrapper = dict(
        ...     optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.05),
        ...     constructor='transmamba.MergedGroupsOptimWrapperConstructor',
        ...     paramwise_cfg=dict(norm_decay_mult=0.0),
        ... )
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer and its wrapper.

        Args:
            model (nn.Module): The model to be optimized.

        Returns:
            OptimWrapper: The wrapper of the optimizer.
        """
        self._members: list[list[int]] = []
        wrapper = super().__call__(model)
        optimizer, before = wrapper.optimizer, sum(map(len, self._members))
        if before == len(self._members):
            return wrapper
        print_log(
            f'{before} groups of parameters merged into {len(self._members)}',
            logger='current',
        )
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
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:
            return  # part of the recursion over modules
        every = [id(p) for group in params for p in group['params']]
        if len(every) != len(set(every)):
            # PyTorch refuses a parameter in two groups, but would update one
            # twice that is in the same group twice.
            return
        self._members = _equal_groups(params)
        params[:] = [_merged(params, members) for members in self._members]


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
        f'be merged: {reason}. Resume the run with the constructor that it '
        'was started with, '
        'optim_wrapper.constructor=DefaultOptimWrapperConstructor'
    )
