# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
import pytest
import torch
from mmpretrain.models import TimmClassifier
from torch import nn

pytest.importorskip('timm')


def classifier():
    return TimmClassifier(
        model_name='vit_tiny_patch16_224',
        img_size=32,
        embed_dim=12,
        depth=1,
        num_heads=2,
        num_classes=3,
    )


def test_as_a_root_and_as_a_part():
    """What was saved loads, with names that leave ``model.`` out."""
    torch.manual_seed(0)
    alone, part = classifier(), nn.ModuleDict(dict(a=classifier()))
    parts = part.state_dict()
    assert set(parts) == {f'a.{name}' for name in alone.state_dict()}
    assert not any('.model.' in name for name in parts)
    # Versions and notes, of the same modules.
    modules = [name for name in alone.state_dict()._metadata if name]
    assert {f'a.{name}' for name in modules} < set(parts._metadata)
    assert 'patch_embed' in modules
    other = nn.ModuleDict(dict(a=classifier()))
    other.load_state_dict(parts)
    alone.load_state_dict(other.a.state_dict())
    for wanted, found in zip(part.parameters(), alone.parameters()):
        assert torch.equal(wanted, found)
