# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Checkpoints of VideoMamba: official names, other sizes, of images."""

import json

import pytest
import torch
import torch.nn.functional as F
from backbone_cases import CLOSE, GOLDEN
from helpers import build
from mmpretrain.registry import MODELS
from video_mamba_cases import (
    STEPS,
    backbone,
    classifier,
    image_backbone,
    videos,
)

from transmamba_mm.checkpoints.formats import VIDEO_MAMBA

# ------------------------------------------------------- official names


@pytest.mark.parametrize(
    ('name', 'arch', 'dims', 'classes', 'frames', 'entries'),
    [
        ('image/videomamba_tiny', 'tiny', 192, 1000, None, 415),
        ('video/videomamba_middle', 'middle', 576, 400, 8, 552),
    ],
)
def test_state_dict_is_the_official_one(
    name, arch, dims, classes, frames, entries
):
    text = (GOLDEN / 'state_keys_videomamba.json').read_text()
    official = json.loads(text)[name]
    expected = {}
    for key, shape in official['keys'].items():
        for i in range(official['depth']) if '{i}' in key else [0]:
            expected[key.replace('{i}', str(i))] = shape
    assert len(expected) == entries
    with torch.device('meta'):
        config = classifier(arch, classes, dims, num_frames=frames)
        model = MODELS.build(config)
    state = {k: list(v.shape) for k, v in model.state_dict().items()}
    assert state == VIDEO_MAMBA.to_classifier(expected)


def test_state_dict_of_a_retrieval_model():
    names = ['cls_token', 'norm.weight', 'pool_norm.bias']
    names += ['clip_decoder.1.head.weight', 'layers.0.norm.weight']
    expected = [
        'backbone.cls_token',
        'backbone.norm_f.weight',
        'backbone.pool_norm.bias',
        'neck.clip_decoder.1.head.weight',
        'backbone.layers.0.norm.weight',
    ]
    alone = dict.fromkeys(names)
    assert list(VIDEO_MAMBA.to_classifier(alone)) == expected
    whole = {f'vision_encoder.{name}': None for name in names}
    whole |= {'text_encoder.norm.weight': None, 'temp': None}
    found = VIDEO_MAMBA.to_classifier(whole)
    assert list(found) == expected


# -------------------------------------------------------------- loading


@pytest.mark.parametrize('size', [24, (16, 24), 8])
@pytest.mark.parametrize('frames', [2, 4, 9])
def test_loading_resizes_both_position_embeddings(size, frames):
    source = backbone(seed=1)
    net = backbone(img_size=size, num_frames=frames)
    net.load_state_dict(source.state_dict(), strict=True)
    assert net.pos_embed[:, :1].equal(source.pos_embed[:, :1])
    maps = source.pos_embed[:, 1:].mT.unflatten(2, (4, 4))
    maps = F.interpolate(maps, net.patch_embed.init_out_size, mode='bicubic')
    expected = maps.flatten(2).mT
    torch.testing.assert_close(net.pos_embed[:, 1:], expected, **CLOSE)
    expected = source.temporal_pos_embedding
    if frames != STEPS:
        expected = F.interpolate(expected.mT, frames, mode='linear').mT
    assert net.temporal_pos_embedding.equal(expected)
    # The same as stretching at run time.
    x = videos(frames, *net.patch_embed.init_out_size)
    x = x.repeat_interleave(4, 3).repeat_interleave(4, 4)
    torch.testing.assert_close(net(x)[0], source(x)[0], **CLOSE)


@pytest.mark.parametrize('tubelet', [1, 2, 3])
def test_image_checkpoints_are_inflated(tubelet, capsys):
    image = image_backbone(seed=1)
    net = backbone(num_frames=6, tubelet_size=tubelet)
    with torch.no_grad():
        net.temporal_pos_embedding.zero_()
    net.load_state_dict(image.state_dict(), strict=True)
    assert net.temporal_pos_embedding.eq(0).all()
    frame = torch.randn(2, 3, 16, 16)
    still = frame.unsqueeze(2).repeat(1, 1, 6, 1, 1)
    tokens, grid = net.patch_embed(still)
    expected, _ = image.patch_embed(frame)
    expected = expected.repeat(1, 6 // tubelet, 1)
    torch.testing.assert_close(tokens, expected, **CLOSE)
    assert grid == (6 // tubelet, 4, 4)
    # Each tubelet looks at its middle frame.
    moving = torch.randn_like(still)
    tokens, _ = net.patch_embed(moving)
    middle = moving[:, :, tubelet // 2 :: tubelet]
    expected = [image.patch_embed(f)[0] for f in middle.unbind(2)]
    torch.testing.assert_close(tokens, torch.cat(expected, 1), **CLOSE)
    # One frame is an image, but for the temporal embedding of zeros.
    single = still[:, :, :tubelet]
    torch.testing.assert_close(net(single)[0], image(frame)[0], **CLOSE)


def test_inflation_of_a_larger_image_model_in_a_classifier():
    image = classifier(dict(embed_dims=12, num_layers=1), 5, 12, img_size=64)
    video = classifier(
        dict(embed_dims=12, num_layers=1), 5, 12, img_size=48, num_frames=2
    )
    source, model = build(image), build(video)
    model.load_state_dict(source.state_dict(), strict=True)
    assert model.backbone.pos_embed.shape[1] == 10
    assert model.head.fc.weight.equal(source.head.fc.weight)


def test_a_video_checkpoint_without_its_temporal_embedding_is_an_error():
    state = backbone().state_dict()
    del state['temporal_pos_embedding']
    with pytest.raises(RuntimeError, match='temporal_pos_embedding'):
        backbone().load_state_dict(state)
