# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""How much of a training on texts and videos is done."""

from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner

from transmamba_mm.distill import TransMambaDistill
from transmamba_mm.distill.hooks import unwrapped
from transmamba_mm.models import VideoTextRetriever
from transmamba_mm.registry import HOOKS

_KEY = 'captions_seen'


@HOOKS.register_module()
class CaptionsSeenHook(Hook):
    """Logs ``captions_seen``, those of all training steps so far.

    An epoch is each caption once in some works on retrieval and one caption
    of each video in others; this number compares them. Each step has one
    caption for each clip, so it is the number of clips, too. It counts
    repetitions, adds up all processes, and goes on when a run is resumed.
    Idle unless a ``VideoTextRetriever`` is trained.
    """

    def before_train(self, runner: Runner) -> None:
        """Looks at what is trained."""
        model = unwrapped(runner.model)
        if isinstance(model, TransMambaDistill):
            model = model.student
        self._counts = isinstance(model, VideoTextRetriever)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Adds a batch. Samplers give all processes as many samples."""
        if not self._counts:
            return
        hub = runner.message_hub
        seen = hub.get_info(_KEY, 0)
        seen += len(data_batch['data_samples']) * get_world_size()
        hub.update_info(_KEY, seen)
        hub.update_scalar(f'train/{_KEY}', seen)
