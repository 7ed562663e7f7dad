# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""tools/model_converters/timm_to_classifier.py from the command line."""

import re

import pytest
import timm
import torch
from helpers import run_tool_here
from mmpretrain.registry import MODELS
from safetensors.torch import load_file, save_file
from timm.data import ImageNetInfo

TOOL = 'model_converters/timm_to_classifier'
NAME = 'vit_tiny_patch16_224'


@pytest.fixture(scope='module')
def released(tmp_path_factory):
    """A file as timm's model hub has them."""
    torch.manual_seed(0)
    model = timm.create_model(NAME)
    path = tmp_path_factory.mktemp('timm') / 'vit.safetensors'
    half = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(half, path)
    model.load_state_dict({k: v.float() for k, v in half.items()})
    return path, model.eval()


def convert(monkeypatch, tmp_path, source, *options):
    out = tmp_path / 'out.pth'
    run_tool_here(monkeypatch, TOOL, NAME, source, out, *options)
    return torch.load(out, weights_only=True)['state_dict']


def classifier(**kwargs):
    config = dict(type='TimmClassifier', model_name=NAME, **kwargs)
    return MODELS.build(config).eval()


def test_another_size_and_some_of_the_classes(released, tmp_path, monkeypatch):
    source, original = released
    known = ImageNetInfo().label_names()
    for index in (700, 3, 41):
        (tmp_path / 'train' / known[index]).mkdir(parents=True)
    state = convert(
        *(monkeypatch, tmp_path, source, '--img-size', 96),
        *('--classes', tmp_path / 'train'),
    )
    model = classifier(img_size=96, num_classes=3)
    model.load_state_dict(state)
    rows = original.head.weight[[3, 41, 700]]
    assert torch.equal(model.model.head.weight, rows)
    assert model.model.pos_embed.shape == (1, 37, 192)
    block = model.model.blocks[5].attn.qkv.weight
    assert torch.equal(block, original.blocks[5].attn.qkv.weight)


def test_the_same_size_and_all_classes(released, tmp_path, monkeypatch):
    source, original = released
    model = classifier(num_classes=1000)
    model.load_state_dict(convert(monkeypatch, tmp_path, source))
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model(images), original(images))


def test_a_class_that_is_none_of_imagenet(
    released, tmp_path, monkeypatch, capsys
):
    (tmp_path / 'train' / 'cats').mkdir(parents=True)
    with pytest.raises(SystemExit):
        convert(
            *(monkeypatch, tmp_path, released[0]),
            *('--classes', tmp_path / 'train'),
        )
    assert re.search(r"\['cats'\].*no classes", capsys.readouterr().err)


def test_safetensors(released, tmp_path, monkeypatch):
    out = tmp_path / 'out.safetensors'
    run_tool_here(monkeypatch, TOOL, NAME, released[0], out)
    wanted = convert(monkeypatch, tmp_path, released[0])
    found = load_file(out)
    assert found.keys() == wanted.keys()
    assert all(found[key].equal(wanted[key]) for key in wanted)
