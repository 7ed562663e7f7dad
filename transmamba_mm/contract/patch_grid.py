# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The patch grid of a teacher, where only its tensors are at hand.

16 positions may be 4x4 or 2x8, which no tensor tells. So the patch embeddings
of mmpretrain and timm note their grid in the ``_metadata`` of state dicts,
which files keep.
"""

import functools
import sys
from collections.abc import Mapping
from typing import Any, Optional

from mmcv.cnn.bricks.transformer import PatchEmbed
from mmpretrain.models import TIMMBackbone, TimmClassifier
from torch import nn

from .records import Grid

_NOTE = 'transmamba_patch_grid'


def noted_grid(state_dict: Mapping[str, Any], name: str) -> Optional[Grid]:
    """The grid that a patch embedding has noted in a state dict.

    Args:
        state_dict (Mapping[str, Any]): The state dict.
        name (str): Full name of the patch embedding.

    Returns:
        tuple[int, int] | None: (h, w), None if there is no note.
    """
    metadata = getattr(state_dict, '_metadata', None) or {}
    grid = metadata.get(name, {}).get(_NOTE)
    return None if grid is None else tuple(grid)


def _note_grids(kind: type[nn.Module], attribute: str) -> None:
    """Makes modules of a class note the grid that an attribute holds."""
    save = kind._save_to_state_dict

    @functools.wraps(save)
    def save_with_grid(
        module: nn.Module, destination: Any, prefix: str, keep_vars: bool
    ) -> None:
        save(module, destination, prefix, keep_vars)
        metadata = getattr(destination, '_metadata', {})
        grid = getattr(module, attribute)
        if prefix[:-1] in metadata and grid is not None:
            metadata[prefix[:-1]][_NOTE] = list(grid)

    kind._save_to_state_dict = save_with_grid


@functools.cache
def _note_grids_of_timm() -> None:
    from timm.layers import PatchEmbed

    _note_grids(PatchEmbed, 'grid_size')


def _note_when_built(kind: type[nn.Module]) -> None:
    """Has timm's grids noted from when its first model is built on."""
    build = kind.__init__

    @functools.wraps(build)
    def build_noting(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        _note_grids_of_timm()

    kind.__init__ = build_noting


_note_grids(PatchEmbed, 'init_out_size')
# timm is optional, and not imported in vain.
if 'timm.layers' in sys.modules:
    _note_grids_of_timm()
for _kind in (TimmClassifier, TIMMBackbone):
    _note_when_built(_kind)
