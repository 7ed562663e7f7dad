# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Start values that can be drawn again, for models built on ``meta``."""

from typing import Optional

from mmengine.model import BaseModule
from torch import nn


def draw_start_values(module: nn.Module) -> None:
    """Draws all parameters and buffers as the constructors did.

    By PyTorch's convention, ``reset_parameters`` of each module, its parts
    first. With the same random state this gives the same values.

    Args:
        module (nn.Module): What to draw.
    """
    module.apply(_reset)


def _reset(module: nn.Module) -> None:
    reset = getattr(module, 'reset_parameters', None)
    if reset is not None:
        reset()


class FreshStart(BaseModule):
    """A module whose ``init_weights`` draws all of its values.

    So it can be built on ``meta`` and given memory by ``to_empty``, as FSDP
    does. Only what was loaded into it is not drawn anew. Then follows
    ``init_cfg``.

    Args:
        init_cfg (dict | list[dict], optional): mmengine initialisation.
    """

    def __init__(self, init_cfg: Optional[dict] = None) -> None:
        super().__init__(init_cfg)
        self._was_loaded = False
        self._register_load_state_dict_pre_hook(self._note_load)

    def _note_load(self, state_dict: dict, prefix: str, *args) -> None:
        loaded = any(key.startswith(prefix) for key in state_dict)
        self._was_loaded = self._was_loaded or loaded

    def init_weights(self) -> None:
        """Draws start values."""
        if not self.is_init and not self._was_loaded:
            draw_start_values(self)
        super().init_weights()
