# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What mmpretrain's visualization tools have to be told of our models."""

import importlib.util
from pathlib import Path
from types import ModuleType

import mmpretrain
from torch import Tensor, nn

from transmamba_mm.contract import GridStudent


def mmpretrain_tool(name: str) -> ModuleType:
    """One of mmpretrain's visualization scripts, as a module.

    Args:
        name (str): Its name, e.g. ``'vis_cam'``.

    Raises:
        ImportError: If a package that it needs is not installed.
    """
    folder = Path(mmpretrain.__file__).parent / '.mim/tools/visualization'
    spec = importlib.util.spec_from_file_location(name, folder / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class PatchMaps:
    """Turns tokens into maps, the ``reshape_transform`` of ``grad-cam``.

    The student says where its class tokens stand, its blocks on which grid
    they work. The images need not be square.

    Args:
        backbone (GridStudent): The student, which runs before tokens come.
    """

    def __init__(self, backbone: GridStudent) -> None:
        self._backbone = backbone
        self._grids: dict[int, tuple[int, ...]] = {}
        for block in backbone.blocks():
            block.register_forward_pre_hook(self._note)

    def _note(self, block: nn.Module, inputs: tuple) -> None:
        tokens, grid = inputs[:2]
        self._grids[tokens.shape[1]] = tuple(grid)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Turns what a layer gave, or its gradient, into maps.

        Args:
            tokens (Tensor): (B, L, C), class tokens included, or maps.

        Returns:
            Tensor: (B, C, h, w).

        Raises:
            ValueError: If these are not the tokens of a block.
        """
        if tokens.dim() == 4:
            return tokens
        grid = self._grids.get(tokens.shape[1]) if tokens.dim() == 3 else None
        if grid is None:
            raise ValueError(
                f'a target layer gives {tuple(tokens.shape)}, which are no '
                f'tokens of a block, {sorted(self._grids)} of them: choose '
                f'a block or one of its norms by --target-layers'
            )
        _, patches = self._backbone.split(tokens, grid)
        return patches.mT.unflatten(2, grid)


def cam_layer(backbone: GridStudent) -> nn.Module:
    """The last layer at which every patch still moves the result.

    A class token learns of the patches in the last mixer, so where it is what
    the head reads this is the block before.

    Args:
        backbone (GridStudent): The student.
    """
    blocks = backbone.blocks()
    return blocks[-2 if backbone.num_extra_tokens and len(blocks) > 1 else -1]
