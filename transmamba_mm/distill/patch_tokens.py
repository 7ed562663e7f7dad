# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The recorder of a teacher's patch tokens."""

import math
import re
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

from transmamba_mm.contract import (
    Student,
    Teacher,
    TeacherError,
    TokenRecord,
    teacher_at,
)
from transmamba_mm.contract.sites import LAYERS, TOKENS, Captured
from transmamba_mm.contract.taps import Grid
from transmamba_mm.registry import TASK_UTILS

from .recorders import LayerwiseOutputsRecorder

# What is watched beside the modules of a pattern.
_IMAGES, _SITE = 'the images', 'site '


@TASK_UTILS.register_module()
class PatchTokensRecorder(LayerwiseOutputsRecorder):
    r"""Records a teacher's patch tokens, class tokens cut off.

    The record is a list of (B, L, C), one per layer; by default it has one
    entry, the teacher's last layer after its final norm. The teacher is a
    Transformer, or a Mamba of this package, which tells where its class
    tokens stand. In configs ``type='transmamba.PatchTokens'``.

    Args:
        source (str, optional): Regular expression of the modules, for
            teachers that are none of
            :data:`~transmamba_mm.contract.FAMILIES`. Where it matches the
            layers and the final norm after them, the norm replaces the last
            layer, whose output it normalises. Maps (B, H, W, C) and
            (B, C, H, W) become tokens. Defaults to None: the layers that the
            teacher's family tells of.
        num_extra_tokens (int, optional): Leading tokens to drop. Defaults to
            None, as many as the teacher's family tells of.
        layers (str): ``'last'`` or ``'all'``, without a ``source``. Defaults
            to ``'last'``.
        backbone (str, optional): Name of the teacher's module, for models
            that hold several. Defaults to None, the only one.

    Raises:
        ValueError: If ``layers`` is unknown, nothing matches,
            ``num_extra_tokens`` is not what a Mamba says, or, when it is
            read, if the number of class tokens is unknown or an output holds
            no tokens.
    """

    def __init__(
        self,
        source: Optional[str] = None,
        num_extra_tokens: Optional[int] = None,
        layers: str = 'last',
        backbone: Optional[str] = None,
    ) -> None:
        super().__init__(source or 'patch tokens')
        if layers not in ('last', 'all'):
            raise ValueError(f"layers must be 'last' or 'all', got {layers!r}")
        self.num_extra_tokens = num_extra_tokens
        self.backbone = backbone
        self._site = LAYERS if layers == 'all' else TOKENS
        self._by_family = source is None
        self._side: Union[Student, Teacher, None] = None
        self._norm_replaces_last = False

    @property
    def grid(self) -> Grid:
        """tuple[int, ...]: Of the last layer recorded; (L,) if unknown."""
        return self.data_buffer[-1][-1].grid

    def get_record_data(
        self, record_idx: int = 0, data_idx: Optional[int] = None
    ) -> Any:
        """The tokens (B, L, C) of all layers, or of one."""
        record = super().get_record_data(record_idx, data_idx)
        if data_idx is None:
            return [layer.tokens for layer in record]
        return record.tokens

    def prepare_from_model(self, model: Optional[nn.Module] = None) -> None:
        """Finds the modules and the class tokens."""
        if self._by_family:
            self._side = self._find_side(*teacher_at(model, self.backbone))
            self._modules = self._side.modules_of(self._site)
            return
        super().prepare_from_model(model)
        names = list(self._modules)
        self._norm_replaces_last = _last_layer_and_norm(model, names)
        # One of several teachers runs by itself.
        one, place = teacher_at(model, self.backbone or names[0])
        try:
            place = place if self.backbone else None
            self._side = self._find_side(one, place)
            site = self._side.modules_of(TOKENS)
        except TeacherError:
            site = {}
        watched = {f'{_SITE}{key}': module for key, module in site.items()}
        self._modules.update({**watched, _IMAGES: one})

    def _find_side(
        self, model: nn.Module, backbone: Optional[str]
    ) -> Union[Student, Teacher]:
        try:
            mamba = Student(model, backbone)
        except TypeError:
            return Teacher(model, backbone)
        own = mamba.backbone.num_extra_tokens
        if self.num_extra_tokens not in (None, own):
            raise ValueError(
                f'num_extra_tokens={self.num_extra_tokens} of PatchTokens: '
                f'{type(mamba.backbone).__name__} has {own} class tokens, and '
                f'tells where they stand; leave it out'
            )
        return mamba

    def _collect(self, seen: dict[str, Captured]) -> list[TokenRecord]:
        if self._by_family:
            records = self._side.record(self._site, seen)
            if self._site == LAYERS:
                records[-1] = self._side.normalise(records[-1])
            if isinstance(self._side, Student):
                return [_patches(x.layer, x.tokens, x.grid) for x in records]
            return [self._cut_again(record) for record in records]
        inputs = seen.pop(_IMAGES).inputs
        site = {
            key.removeprefix(_SITE): seen.pop(key)
            for key in list(seen)
            if key.startswith(_SITE)
        }
        grid = None
        if site:
            grid = self._side.record(TOKENS, site)[-1].grid
        names = list(seen)
        if self._norm_replaces_last:
            del names[-2]
        return [
            self._tokens_of(layer, name, seen[name].output, inputs, grid)
            for layer, name in enumerate(names)
        ]

    def _cut_again(self, record: TokenRecord) -> TokenRecord:
        """A Transformer's patch tokens, by ``num_extra_tokens`` if given."""
        tokens, grid = record.tokens, record.grid
        surplus = record.classes.shape[1]
        if self.num_extra_tokens not in (None, surplus):
            tokens = torch.cat([record.classes, tokens], 1)
            tokens = tokens[:, self.num_extra_tokens :]
            grid = tokens.shape[1:2]
        return _patches(record.layer, tokens, grid)

    def _tokens_of(
        self,
        layer: int,
        name: str,
        output: Any,
        inputs: tuple,
        grid: Optional[Grid],
    ) -> TokenRecord:
        """Patch tokens in a module's output, whatever its shape."""
        several = output if isinstance(output, (tuple, list)) else [output]
        tensors = [each for each in several if isinstance(each, Tensor)]
        shapes = ', '.join(str(tuple(each.shape)) for each in tensors)
        gives = (
            f'PatchTokens: {name!r} gives {shapes or type(output).__name__}'
        )
        if len(tensors) != 1 or tensors[0].dim() not in (3, 4):
            raise ValueError(
                f'{gives}, which is neither tokens (B, L, C) nor a map '
                f'(B, H, W, C) or (B, C, H, W): name a module whose output '
                f'is, before tokens are pooled'
            )
        output = tensors[0]
        if output.dim() == 4:
            return _from_map(layer, output, inputs[0].shape[2:], gives)
        if isinstance(self._side, Student):
            output = self._side.backbone.split(output, grid)[1]
        else:
            extra = self.num_extra_tokens
            if extra is None and self._side is not None:
                extra = self._side.num_extra_tokens
            if extra is None:
                raise ValueError(
                    f'{gives}: cannot tell how many class tokens precede the '
                    f'patches: set num_extra_tokens of this recorder'
                )
            output = output[:, extra:]
        known = grid is not None and math.prod(grid) == output.shape[1]
        return _patches(layer, output, grid if known else output.shape[1:2])


def _patches(layer: int, tokens: Tensor, grid: Grid) -> TokenRecord:
    return TokenRecord(layer, tokens, tuple(grid), tokens[:, :0])


def _from_map(
    layer: int, output: Tensor, size: tuple[int, int], gives: str
) -> TokenRecord:
    """Tokens of a map, whose sides are to each other as the image's are."""
    height, width = size
    if 1 in (output.shape[1:3].numel(), output.shape[2:].numel()):
        raise ValueError(
            f'{gives}, a single token: name a module whose output is not '
            f'pooled yet'
        )
    found = []
    for grid, tokens in (
        (output.shape[1:3], output.flatten(1, 2)),
        (output.shape[2:], output.flatten(2).mT),
    ):
        apart = abs(grid[0] * width - grid[1] * height)
        if apart < max(height, width):  # less than one token
            found.append(_patches(layer, tokens, grid))
    if len(found) != 1:
        raise ValueError(
            f'{gives} of images {height}x{width}: cannot tell whether this is '
            f'a map (B, H, W, C) or (B, C, H, W); name a module whose output '
            f'is (B, L, C)'
        )
    return found[0]


def _last_layer_and_norm(model: nn.Module, names: list[str]) -> bool:
    """Whether the names end with the last layer and the norm after it."""
    stems = [re.sub(r'\d+', '#', name) for name in names]
    if len(set(stems)) != 2 or stems.count(stems[-1]) != 1:
        return False
    parent, _, index = names[-2].rpartition('.')
    *_, last = (
        name for name, _ in model.get_submodule(parent).named_children()
    )
    return index == last and index.isdigit()
