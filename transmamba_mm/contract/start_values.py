# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Start values that can be drawn again, for models built on ``meta``."""

from abc import ABC, abstractmethod
from typing import Optional

from mmengine.model import BaseModule, PretrainedInit, update_init_info
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


class StrictPretrained(ABC):
    """Lets a ``BaseModule`` refuse ``Pretrained`` files that do not fit.

    MMEngine only warns. It stands in front of the other base classes.
    """

    @abstractmethod
    def load_pretrained(self, path: str, prefix: Optional[str]) -> None:
        """Loads a checkpoint, all of it or nothing.

        Args:
            path (str): Path or URL.
            prefix (str, optional): What the names of its tensors start with.

        Raises:
            CheckpointError: If it does not fit.
        """

    def init_weights(self) -> None:
        """Start values, then the files of a ``Pretrained`` one, strictly."""
        asked = self.init_cfg or []
        asked = list(asked) if isinstance(asked, (list, tuple)) else [asked]
        # A config that is none is reported by MMEngine.
        files = [
            cfg
            for cfg in asked
            if isinstance(cfg, dict)
            and cfg.get('type') in ('Pretrained', PretrainedInit)
            and 'checkpoint' in cfg
        ]
        if self.is_init or not files:
            super().init_weights()
            return
        kept = self.init_cfg
        self.init_cfg = [cfg for cfg in asked if cfg not in files]
        try:
            super().init_weights()
        finally:
            self.init_cfg = kept
        for cfg in files:
            self.load_pretrained(cfg['checkpoint'], cfg.get('prefix'))
            if hasattr(self, '_params_init_info'):
                update_init_info(self, f'loaded from {cfg["checkpoint"]}')
