# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Tiny language models in float64, and batches for them."""

import torch
from torch import Tensor

from transmamba_mm.models import TransMambaLM

VOCAB = 23


def tiny_lm(seed: int = 0, **settings) -> TransMambaLM:
    """Width 16, depth 2; all of its parameters are drawn."""
    torch.manual_seed(seed)
    arch = dict(embed_dims=16, num_layers=2, vocab_size=VOCAB, ffn_dims=24)
    arch.update(settings.pop('arch', {}))
    model = TransMambaLM(arch, **settings).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def ids(batch: int, length: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (batch, length), generator=generator)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
