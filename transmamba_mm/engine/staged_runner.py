# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""MMEngine's runner for large models, with stage one in its place."""

from typing import Any

from mmengine.runner import FlexibleRunner
from torch import nn

from transmamba_mm.registry import RUNNERS
from transmamba_mm.transfer import SubcloneInitializer


@RUNNERS.register_module()
class StagedRunner(FlexibleRunner):
    """A ``FlexibleRunner`` that subclones before it shares the model.

    MMEngine's own calls ``before_run`` when the strategy has cut the weights
    into pieces, or copied or cast them, and checkpoints are loaded: too late
    for :class:`~transmamba_mm.transfer.SubcloneInitializer`. As the default
    runner does, this one builds the model at once.

    Args:
        *args: Of MMEngine's ``FlexibleRunner``.
        **kwargs: Likewise.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model = self.strategy.build_model(self.model)

    def train(self) -> nn.Module:
        """See ``FlexibleRunner.train``."""
        self._train_loop = self.build_train_loop(self._train_loop)
        for hook in self.hooks:
            if isinstance(hook, SubcloneInitializer):
                hook.before_run(self)
        return super().train()
