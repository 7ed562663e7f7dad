# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Which layers are linear maps, of all that have the parameters of one."""

from torch import nn

_LIBRARIES = ('torch', 'mmcv', 'timm')


def is_linear(module: nn.Module) -> bool:
    """Whether a layer is a linear map and no more.

    What derives from ``nn.Linear`` may compute something else with the same
    parameters, as mmpretrain's ArcFace head does, which scores by cosines.

    Args:
        module (nn.Module): The layer.

    Returns:
        bool: Whether its ``forward`` is a library's ``Linear``'s.
    """
    owner = next(x for x in type(module).__mro__ if 'forward' in vars(x))
    library = owner.__module__.partition('.')[0]
    return isinstance(module, nn.Linear) and library in _LIBRARIES
