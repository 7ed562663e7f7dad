# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What is particular to trainings on texts and videos."""

from collections.abc import Mapping
from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from transmamba_mm.datasets import VideoTextDataset
from transmamba_mm.datasets.inspect import parts_of
from transmamba_mm.datasets.transforms import TokenizeText
from transmamba_mm.distill import TransMambaDistill
from transmamba_mm.distill.hooks import unwrapped
from transmamba_mm.models import (
    CLIPTextTower,
    CLIPTokenizer,
    VideoTextRetriever,
)
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


def check_tokens(datasets: Mapping[str, Any], model: nn.Module) -> None:
    """Refuses captions that a text tower of CLIP may not be able to read.

    Args:
        datasets (Mapping[str, Any]): By the name of what they are for.
        model (nn.Module): With all its towers.

    Raises:
        ValueError: If there may be longer texts than a tower takes, or
            tokens that it does not know; the first batches need not show it.
    """
    towers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, CLIPTextTower)
    }
    steps = [
        (data, step)
        for data, dataset in datasets.items()
        for part in parts_of(dataset)
        if isinstance(part, VideoTextDataset)
        for step in part.pipeline.transforms
        if isinstance(step, TokenizeText)
    ]
    for name, tower in towers.items():
        most = len(tower.positional_embedding)
        for data, step in steps:
            if step.max_words > most:
                raise ValueError(
                    f'{data} has captions of max_words={step.max_words} '
                    f'tokens, but {name} has context_length={most}: lower '
                    f'max_words of TokenizeText'
                )
            tokenizer = step.tokenizer
            if not isinstance(tokenizer, CLIPTokenizer):
                continue
            if tokenizer.vocab_size > tower.vocab_size:
                raise ValueError(
                    f'the tokenizer of {data} has {tokenizer.vocab_size} '
                    f'tokens, but {name} has vocab_size={tower.vocab_size}: '
                    f"take the vocabulary '{tokenizer.vocabulary}' and the "
                    f'tower of one model'
                )
