# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The backbones that are measured, and how a model is timed."""

import fnmatch
from typing import Callable

import common
import torch
from block_stack import interleaved_wall
from torch import Tensor, nn

from transmamba_mm.models.backbones import MambaBackbone

TINY = 'VisionMamba/tiny'
DEIT_TINY = 'deit_tiny_patch16_224'
MODES = ('inference', 'training')


def presets(globs: list[str]) -> dict[str, tuple[type, str]]:
    """Name -> (class, preset) of those whose name matches a pattern."""
    found = {
        f'{family.__name__}/{preset}': (family, preset)
        for family in MambaBackbone.families().values()
        for preset in family.ARCHS
    }
    return {
        name: value
        for name, value in found.items()
        if any(fnmatch.fnmatchcase(name, glob) for glob in globs)
    }


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class Case:
    """A model and its images.

    Args:
        model: the model; returns a tensor or a tuple of tensors.
        batch: number of images.
        side: their height and width.
    """

    def __init__(self, model: nn.Module, batch: int, side: int = 224):
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.images = torch.randn(batch, 3, side, side)

    def inference(self) -> Tensor:
        """Run without gradients."""
        self.model.eval()
        with torch.inference_mode():
            out = self.model(self.images)
        return out[-1] if isinstance(out, tuple) else out

    def training(self) -> None:
        """Run forward and backward."""
        self.model.train()
        out = self.model(self.images)
        out = out[-1] if isinstance(out, tuple) else out
        torch.autograd.grad(
            out, self.parameters, torch.ones_like(out), allow_unused=True
        )


def timed(
    functions: dict[str, Callable], args, slow_seconds: float = 1.5
) -> dict[str, float]:
    """Milliseconds of each, interleaved; see the module."""
    if args.threads > 1:
        return interleaved_wall(functions, args.rounds)
    slow_rounds = min(2, args.rounds)
    return common.interleaved(
        functions, args.rounds, slow_seconds, slow_rounds
    )
