# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Class activation maps show each patch where it is."""

import mmcv
import numpy as np
import pytest
import torch
from helpers import build, pmamba_cfg, run_tool_here

from transmamba_mm.apis import cam_reshape, cam_target_layers


def classifier(kind, width=16, **backbone):
    backbone['type'] = f'transmamba.{kind}'
    head = dict(type='LinearClsHead', num_classes=3, in_channels=width)
    config = dict(type='mmpretrain.ImageClassifier', backbone=backbone)
    return dict(config, head=head)


def vim(place='middle'):
    arch = dict(embed_dims=16, num_layers=2)
    sizes = dict(img_size=16, patch_size=4, stride=4)
    return classifier('VisionMamba', arch=arch, class_token=place, **sizes)


def vmamba():
    arch = dict(embed_dims=8, depths=(1, 1, 1, 1), patch_embed='v1')
    return classifier('VMamba', 64, arch=arch)


PLACES = {'middle': [12], 'head': [0], 'double': [0, 25], 'none': []}


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('grid', [(4, 6), (3, 8)])
def test_each_token_is_drawn_on_its_patch(place, grid):
    config = vim(place)
    config['backbone']['out_type'] = 'avg_featmap'
    model = build(config)
    reshape = cam_reshape(model)
    with torch.no_grad():
        model(torch.zeros(1, 3, *(4 * side for side in grid)))
    total = 24 + len(PLACES[place])
    tokens = torch.full((2, total, 5), -1.0)
    patches = [i for i in range(total) if i not in PLACES[place]]
    tokens[:, patches] = torch.arange(24.0).view(24, 1)
    maps = reshape(tokens)
    assert maps.shape == (2, 5, *grid)
    assert maps[1, 3].equal(torch.arange(24.0).view(grid))


@pytest.mark.parametrize('config', [vim(), vmamba(), pmamba_cfg()])
def test_gradients_reach_the_default_layer(config):
    model = build(config)
    reshape, (layer,) = cam_reshape(model), cam_target_layers(model)
    kept = []
    layer.register_forward_hook(lambda m, i, output: kept.append(output))
    size = 64 if 'VMamba' in config['backbone']['type'] else 16

    scores = model(torch.randn(1, 3, size, size))
    (gradient,) = torch.autograd.grad(scores[0, 1], kept[0])
    maps = reshape(gradient)
    side = {16: 4, 64: 2}[size]
    assert maps.shape[2:] == (side, side)
    assert maps.abs().sum(1).gt(0).all()


def test_what_is_no_token_of_a_block_is_refused():
    model = build(vim())
    reshape = cam_reshape(model)
    with torch.no_grad():
        model(torch.zeros(1, 3, 16, 16))
    maps = torch.zeros(1, 8, 4, 4)
    assert reshape(maps) is maps
    for wrong in (torch.zeros(1, 16, 4), torch.zeros(1, 16)):
        with pytest.raises(ValueError, match='choose a block or its norm'):
            reshape(wrong)


def test_mmpretrains_tool_draws_it(tmp_path, monkeypatch):
    pytest.importorskip('pytorch_grad_cam')
    config = tmp_path / 'vim.py'
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    dataset = dict(type='CustomDataset', pipeline=pipeline)
    config.write_text(
        f'model = {vim()}\n'
        f'test_dataloader = dict(dataset={dataset})\n'
        "default_scope = 'mmpretrain'\n"
    )
    model, image = build(vim()), np.zeros((16, 16, 3), np.uint8)
    image[:8, 8:] = 255
    torch.save(model.state_dict(), tmp_path / 'vim.pth')
    mmcv.imwrite(image, str(tmp_path / 'image.png'))
    names = ['image.png', 'vim.py', 'vim.pth']
    files = [str(tmp_path / name) for name in names]
    saved = tmp_path / 'cam.png'
    args = ['--method', 'GradCAM', '--save-path', str(saved)]
    run_tool_here(monkeypatch, 'visualization/vis_cam', *files, *args)
    assert mmcv.imread(str(saved)).shape == (16, 16, 3)
