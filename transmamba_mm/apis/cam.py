# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Class activation maps of Mambas.

``reshape_transform`` of pytorch-grad-cam, and of mmpretrain's ``vis_cam.py``,
cuts class tokens in front and takes the grid for square; Vim's class token
stands in the middle.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from transmamba_mm.contract import GridStudent, find_student


def cam_reshape(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Makes the ``reshape_transform`` for class activation maps of a model.

    Args:
        model (nn.Module): A model that holds one backbone of this package,
            of images.

    Returns:
        Callable[[Tensor], Tensor]: Maps tokens (B, L, C) of the pass that ran
        last to (B, C, h, w), without the class tokens. Maps are returned as
        they are.

    Raises:
        TypeError: If the model holds no such backbone, or several.
    """
    backbone: GridStudent = find_student(model)
    grids: dict[int, tuple[int, ...]] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        grids[inputs[0].shape[1]] = tuple(inputs[1])

    for block in backbone.blocks():
        block.register_forward_pre_hook(note)

    def reshape(tokens: Tensor) -> Tensor:
        if tokens.dim() == 4:
            return tokens
        if tokens.dim() != 3 or tokens.shape[1] not in grids:
            raise ValueError(
                f'a target layer gives {tuple(tokens.shape)}, which are no '
                f'tokens (B, L, C) of a block: choose a block or its norm'
            )
        grid = grids[tokens.shape[1]]
        return backbone.split(tokens, grid)[1].mT.unflatten(2, grid)

    return reshape


def cam_target_layers(model: nn.Module) -> list[nn.Module]:
    """The layer to look at by default: what the last mixer reads.

    Behind it the tokens no longer meet, so that patches would have no part in
    the scores of a class token.

    Args:
        model (nn.Module): See :func:`cam_reshape`.

    Returns:
        list[nn.Module]: One norm.
    """
    return [find_student(model).blocks()[-1].norm]
