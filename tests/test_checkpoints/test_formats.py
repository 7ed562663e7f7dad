# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A format is one record, registered once, that loading asks for all."""

import dataclasses

import pytest
import torch
from helpers import tiny_student

from transmamba_mm.checkpoints import FORMATS, CheckpointError
from transmamba_mm.checkpoints.formats import CheckpointFormat, register
from transmamba_mm.models import MambaBackbone
from transmamba_mm.models.backbones import PlainMamba
from transmamba_mm.registry import MODELS


@pytest.fixture
def toy():
    """A family of its own, whose files prefix everything with 'net.'."""
    found = register(
        CheckpointFormat(
            family='toy',
            to_classifier=lambda state: {
                f'backbone.{key[4:]}': x for key, x in state.items()
            },
        )
    )
    yield found
    del FORMATS['toy']


def test_every_backbone_has_its_format():
    families = MambaBackbone.families()
    assert set(FORMATS) == {'plainmamba', 'vim', 'videomamba', 'vmamba'}
    for name, found in FORMATS.items():
        assert families[name].FORMAT is found and found.family == name


def test_a_format_cannot_be_changed_or_registered_twice(toy):
    with pytest.raises(dataclasses.FrozenInstanceError):
        toy.family = 'other'
    with pytest.raises(KeyError, match='toy'):
        register(CheckpointFormat(family='toy'))


def test_a_new_format_needs_nothing_else(toy, tmp_path):
    @MODELS.register_module(force=True)
    class ToyMamba(PlainMamba):
        FORMAT = toy

    try:
        config = tiny_student(type='transmamba.ToyMamba')
        model = MODELS.build(config)
        official = {
            f'net.{key}': torch.randn_like(value)
            for key, value in model.backbone.state_dict().items()
        }
        path = str(tmp_path / 'toy.pth')
        torch.save(official, path)
        config['backbone']['init_cfg'] = dict(
            type='Pretrained', checkpoint=path
        )
        model = MODELS.build(config)
        model.init_weights()
        for key, value in model.backbone.state_dict().items():
            assert torch.equal(value, official[f'net.{key}']), key
        assert model.backbone.layout['family'] == 'toy'
        other = MODELS.build(tiny_student())
        with pytest.raises(CheckpointError, match="family is 'toy' there"):
            other.load_state_dict(model.state_dict())
    finally:
        MODELS._module_dict.pop('ToyMamba', None)


def test_positions_are_resized_once():
    """From a grid of as many tokens, which a second time would change."""
    wide = MODELS.build(tiny_student(img_size=(8, 32)))
    torch.nn.init.normal_(wide.backbone.pos_embed)
    square = MODELS.build(tiny_student())
    wanted = square.backbone._resize_positions(
        wide.backbone.pos_embed, (2, 8), (4, 4)
    )
    state = wide.state_dict()
    before = {key: x.clone() for key, x in state.items()}
    square.load_state_dict(state)
    assert torch.equal(square.backbone.pos_embed, wanted)
    # What was given is left as it was, and may be loaded again.
    assert all(torch.equal(state[key], x) for key, x in before.items())
