# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Maps of tokens by the contract, and mmpretrain's tools on our models."""

import importlib.util

import pytest
import torch
from helpers import build, pmamba_cfg, run_tool_here, snapshot, vit_cfg
from mmengine.config import Config
from PIL import Image

from transmamba_mm.apis.visualization import PatchMaps, cam_layer
from transmamba_mm.models import PlainMamba, VisionMamba, VMamba

SMALL = dict(embed_dims=8, num_layers=2)
VIM = dict(patch_size=4, img_size=16)


def vim(class_token):
    return lambda: VisionMamba(SMALL, class_token=class_token, **VIM)


@pytest.mark.parametrize(
    ('make', 'classes'),
    [
        (vim('middle'), [12]),
        (vim('head'), [0]),
        (vim('double'), [0, 25]),
        (lambda: PlainMamba(SMALL, stem='patch', **VIM), []),
        (lambda: VMamba(dict(embed_dims=8, depths=(1, 1))), []),
    ],
)
def test_maps_hold_each_patch_at_its_place(make, classes):
    """On images that are not square, with class tokens anywhere."""
    net, grids = make().eval(), {}
    maps = PatchMaps(net)
    for block in net.blocks():
        block.register_forward_hook(
            lambda _, inputs, out: grids.update({out: inputs[1]})
        )
    net(torch.randn(2, 3, 16, 24))
    for tokens, grid in grids.items():
        got = maps(tokens)
        keep = [i for i in range(tokens.shape[1]) if i not in classes]
        assert got.shape == (2, tokens.shape[2], *grid)
        for row in range(grid[0]):
            for column in range(grid[1]):
                token = tokens[:, keep[row * grid[1] + column]]
                assert torch.equal(got[:, :, row, column], token)
        assert maps(got) is got
    with pytest.raises(ValueError, match='no tokens of a block'):
        maps(torch.zeros(2, 7, 8))


@pytest.mark.parametrize('make', [vim('middle'), lambda: PlainMamba(SMALL)])
def test_every_patch_of_the_layer_moves_the_result(make):
    net, seen = make().eval(), []
    maps = PatchMaps(net)
    cam_layer(net).register_forward_hook(lambda *args: seen.append(args[2]))
    loss = net(torch.randn(1, 3, 32, 32))[-1].square().sum()
    (gradient,) = torch.autograd.grad(loss, seen[-1])
    assert maps(gradient).abs().sum(1).all()


CONFIG = """
custom_imports = dict(imports=['transmamba_mm'], allow_failed_imports=False)
default_scope = 'mmpretrain'
log_level = 'INFO'
data_preprocessor = dict(num_classes=3, mean=[128] * 3, std=[64] * 3)
test_dataloader = dict(
    batch_size=4, num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset', data_prefix='data',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Twelve pictures, a student's config and a distillation's, weights."""
    pixels = torch.randint(256, (12, 16, 16, 3), dtype=torch.uint8).numpy()
    for i, picture in enumerate(pixels):
        place = tmp_path / 'data' / 'abc'[i % 3] / f'{i}.png'
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place)
    student = pmamba_cfg()
    pair = dict(
        type='transmamba.TransMambaDistill',
        architecture=student,
        teacher=vit_cfg(),
        distiller=dict(
            type='transmamba.MethodDistiller',
            methods=[dict(type='transmamba.LogitsKD')],
        ),
    )
    head = Config.fromstring(CONFIG, '.py')
    for name, model in (('student', student), ('pair', pair)):
        Config(dict(head, model=model)).dump(tmp_path / f'{name}.py')
        model = build(dict(model, data_preprocessor=head.data_preprocessor))
        torch.save(dict(state_dict=snapshot(model)), tmp_path / f'{name}.pth')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize('name', ['student', 'pair'])
def test_tsne(folder, monkeypatch, name):
    run_tool_here(
        *(monkeypatch, 'analysis_tools/vis_tsne', f'{name}.py'),
        *('--checkpoint', f'{name}.pth', '--work-dir', 'out'),
        *('--perplexity', 3, '--n-iter', 250, '--vis-stage', 'backbone'),
        *('--device', 'cpu'),
    )
    (picture,) = folder.glob('out/tsne_*/*.png')
    assert picture.stat().st_size > 1000


@pytest.mark.parametrize('name', ['student', 'pair'])
def test_cam(folder, monkeypatch, capsys, name):
    args = (monkeypatch, 'analysis_tools/vis_cam', 'data/a/0.png')
    args += (f'{name}.py', f'{name}.pth', '--save-path', 'cam.png')
    if importlib.util.find_spec('pytorch_grad_cam') is None:
        with pytest.raises(SystemExit):
            run_tool_here(*args)
        (line,) = capsys.readouterr().err.splitlines()
        assert 'pip install "grad-cam' in line
        return
    run_tool_here(*args, '--target-category', 1)
    assert Image.open('cam.png').size == (16, 16)
