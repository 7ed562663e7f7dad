# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Patch tokens of teachers that are no ViT, and the grid they lie on."""

import pytest
import timm
import torch
from helpers import build, save_teacher, tiny_distiller, vit_cfg
from mmpretrain.structures import DataSample
from torch import nn

from transmamba_mm.distill import PatchTokensRecorder, TransMambaDistill


@torch.no_grad()
def recorded(model, images, **kwargs):
    recorder = PatchTokensRecorder(**kwargs)
    recorder.initialize(model)
    with recorder:
        model(images)
    return recorder.get_record_data(), recorder


@torch.no_grad()
def output_of(model, name, images):
    kept = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    )
    model(images)
    handle.remove()
    return kept[0]


# ------------------------------------------------------------------ maps


def timm_swin():
    sizes = dict(img_size=32, patch_size=4, embed_dim=16, window_size=2)
    sizes.update(depths=(1, 1), num_heads=(2, 2), num_classes=3)
    return timm.create_model('swin_tiny_patch4_window7_224', **sizes).eval()


def convnext():
    arch = dict(depths=[1, 1, 1, 1], channels=[12, 12, 20, 20])
    backbone = dict(type='ConvNeXt', arch=arch)
    return build(dict(type='mmpretrain.ImageClassifier', backbone=backbone))


def test_a_map_with_channels_last():
    model, images = timm_swin(), torch.randn(2, 3, 32, 32)
    (tokens,), recorder = recorded(model, images, source='norm')
    output = output_of(model, 'norm', images)
    assert output.shape == (2, 4, 4, 32)
    assert tokens.equal(output.reshape(2, 16, 32))
    assert recorder.grid == (4, 4)


@pytest.mark.parametrize('size', [(64, 64), (64, 128), (96, 64)])
def test_a_map_with_channels_first(size):
    model, images = convnext(), torch.randn(2, 3, *size)
    source = r'backbone\.stages\.\d'
    found, recorder = recorded(model, images, source=source)
    for stage, tokens in enumerate(found):
        output = output_of(model, f'backbone.stages.{stage}', images)
        assert tokens.equal(output.flatten(2).transpose(1, 2))
    assert recorder.grid == tuple(side // 32 for side in size)


class Gives(nn.Module):
    """A teacher whose module gives what it is told to."""

    def __init__(self, output):
        super().__init__()
        self.part = nn.Identity()
        self.output = output

    def forward(self, images):
        return self.part(self.output)


@pytest.mark.parametrize(
    ('output', 'message'),
    [
        (torch.zeros(2, 64), r"'part' gives \(2, 64\), which is neither"),
        (torch.zeros(2, 3, 4, 4, 4), r'\(2, 3, 4, 4, 4\), which is neither'),
        (
            (torch.zeros(2, 8, 4, 4), torch.zeros(2, 8, 2, 2)),
            r'\(2, 8, 4, 4\), \(2, 8, 2, 2\), which is neither',
        ),
        (None, 'NoneType, which is neither'),
        (torch.zeros(2, 4, 4, 4), r'\(2, 4, 4, 4\) of images 16x16: cannot'),
        (torch.zeros(2, 9, 5, 3), r'\(2, 9, 5, 3\) of images 16x16: cannot'),
        (torch.zeros(2, 8, 1, 1), r'\(2, 8, 1, 1\), a single token'),
        (torch.zeros(2, 17, 8), 'set num_extra_tokens'),
    ],
)
def test_what_holds_no_tokens_is_named_with_its_shape(output, message):
    with pytest.raises(ValueError, match=message):
        recorded(Gives(output), torch.zeros(2, 3, 16, 16), source='part')


def test_a_tuple_of_one_tensor_is_that_tensor():
    given = torch.randn(2, 8, 4, 4)
    (tokens,), _ = recorded(
        Gives((given, (4, 4))), torch.zeros(2, 3, 16, 16), source='part'
    )
    assert tokens.equal(given.flatten(2).mT)


# ------------------------------------------------------ a Mamba teaches


def vim(**kwargs):
    arch = dict(embed_dims=16, num_layers=2)
    backbone = dict(type='transmamba.VisionMamba', arch=arch, img_size=16)
    backbone.update(patch_size=4, stride=4, **kwargs)
    head = dict(type='LinearClsHead', num_classes=3, in_channels=16)
    config = dict(backbone=backbone, head=head)
    return build(dict(config, type='mmpretrain.ImageClassifier'))


PLACES = {'middle': [8], 'head': [0], 'double': [0, 17]}


@pytest.mark.parametrize('place', PLACES)
def test_class_tokens_of_a_mamba_are_cut_where_they_stand(place):
    model, images = vim(class_token=place), torch.randn(2, 3, 16, 16)
    keep = [i for i in range(17 + (place == 'double'))]
    keep = [i for i in keep if i not in PLACES[place]]
    stream = [output_of(model, f'backbone.layers.{i}', images) for i in (0, 1)]
    wanted = [x[:, keep] for x in stream]
    source = r'backbone\.layers\.\d'
    for tokens, expected in zip(
        recorded(model, images, source=source)[0], wanted, strict=True
    ):
        assert tokens.equal(expected)
    wanted[-1] = model.backbone.normalise(wanted[-1])
    (last,), recorder = recorded(model, images)
    torch.testing.assert_close(last, wanted[-1])
    assert recorder.grid == (4, 4)
    every, _ = recorded(model, images, layers='all')
    for tokens, expected in zip(every, wanted, strict=True):
        torch.testing.assert_close(tokens, expected)


def test_a_mamba_knows_its_class_tokens_better():
    with pytest.raises(ValueError, match='VisionMamba has 1 class tokens'):
        recorded(vim(), torch.zeros(1, 3, 16, 16), num_extra_tokens=0)


# -------------------------------------------- the grid that is aligned to


def vmamba():
    arch = dict(embed_dims=8, depths=(1, 1, 1, 1), patch_embed='v1')
    backbone = dict(type='transmamba.VMamba', arch=arch)
    head = dict(type='LinearClsHead', num_classes=3, in_channels=64)
    config = dict(backbone=backbone, head=head)
    return dict(config, type='mmpretrain.ImageClassifier')


@pytest.mark.parametrize('size', [36, 32, 40])
def test_the_grid_is_that_of_the_teachers_tokens(tmp_path, size):
    """A ViT pads images of 36 pixels to five patches of 8."""
    teacher = vit_cfg(img_size=32, patch_size=8)
    model = TransMambaDistill(
        architecture=vmamba(),
        teacher=teacher,
        distiller=tiny_distiller(),
        teacher_ckpt=save_teacher(tmp_path / 'teacher.pth', teacher),
    )
    model.init_weights()
    samples = [DataSample().set_gt_label(i) for i in range(2)]
    losses = model.train()(torch.randn(2, 3, size, size), samples, mode='loss')
    assert losses['distill.loss_tm'].isfinite()
    side = -(-size // 8)
    calibration = model.distiller.connectors['calibration']
    assert calibration.teacher_grid == (side, side)


def test_a_grid_that_nobody_tells_is_asked_for(tmp_path):
    model = TransMambaDistill(
        architecture=vmamba(),
        teacher=vit_cfg(),
        distiller=tiny_distiller(),
        teacher_ckpt=save_teacher(tmp_path / 'teacher.pth', vit_cfg()),
    )
    calibration = model.distiller.connectors['calibration']
    with pytest.raises(ValueError, match=r'set grid=\(h, w\)'):
        calibration.forward_train([type('Tap', (), {'grid': (4, 4)})])
