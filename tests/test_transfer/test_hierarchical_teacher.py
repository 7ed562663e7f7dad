# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Subcloning a teacher whose layers have several widths."""

import pytest
import torch
from helpers import build
from torch import nn

from transmamba_mm.contract import Teacher, read_teacher
from transmamba_mm.transfer import Subcloner, TransferError
from transmamba_mm.transfer.ssm import build_ssm_source

DEPTHS = (1, 1, 3, 1)


def swin() -> dict:
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(
            type='SwinTransformer',
            arch=dict(
                embed_dims=8, depths=list(DEPTHS), num_heads=[1, 2, 2, 4]
            ),
            img_size=64,
            patch_size=4,
            window_size=2,
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=5, in_channels=64),
    )


def vmamba(dims=8, depths=(1, 1, 2, 1), stem='v1') -> dict:
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(
            type='transmamba.VMamba',
            arch=dict(embed_dims=dims, depths=depths, patch_embed=stem),
        ),
        head=dict(type='LinearClsHead', num_classes=5, in_channels=8 * dims),
    )


@pytest.fixture(scope='module')
def teacher():
    return build(swin(), 1)


def plan(student, teacher, **kwargs):
    weights = read_teacher(teacher.state_dict())
    return Subcloner(student, weights, **kwargs).plan()


def test_stage_by_stage(teacher):
    student = build(vmamba(), 2)
    made = plan(student, teacher)
    assert made.settings['layer_map'] == [0, 1, 2, 4, 5]
    made.apply(student)
    ours = dict(student.backbone.named_modules())
    theirs = dict(teacher.backbone.named_modules())
    pairs = {
        'layers.0.blocks.0.norm': 'stages.0.blocks.0.norm1',
        'layers.1.blocks.0.norm2': 'stages.1.blocks.0.norm2',
        'layers.2.blocks.1.mlp.fc1': 'stages.2.blocks.2.ffn.layers.0.0',
        'layers.3.blocks.0.mlp.fc2': 'stages.3.blocks.0.ffn.layers.1',
        'patch_embed.0': 'patch_embed.projection',
        'patch_embed.2': 'patch_embed.norm',
        'norm': 'norm3',
    }
    for mine, other in pairs.items():
        assert torch.equal(ours[mine].weight, theirs[other].weight), mine
        assert torch.equal(ours[mine].bias, theirs[other].bias), mine
    out = ours['layers.2.blocks.0.op.out_proj'].weight
    assert torch.equal(out, theirs['stages.2.blocks.0.attn.w_msa.proj'].weight)
    assert torch.equal(student.head.fc.weight, teacher.head.fc.weight)
    fresh = [e.name for e in made.entries if e.value is None]
    # Mixers, and what stands between the stages.
    assert all('.op.' in name or 'downsample' in name for name in fresh), fresh


def test_values_of_each_width_become_the_scanned_half(teacher):
    student = build(vmamba(), 2)
    source = build_ssm_source('attention')
    plan(student, teacher, ssm=source, importance='magnitude').apply(student)
    layers = Teacher(teacher)
    for layer, origin in enumerate((0, 1, 2, 4, 5)):
        value = layers.parameter(f'layers.{origin}.qkv.weight').chunk(3)[2]
        mixer = student.backbone.mixers()[layer]
        assert torch.equal(mixer.in_proj.weight[: len(value)], value)


def test_without_token_mixing_both_are_one_stage(teacher):
    """The first stage is one function once mixers and attention are gone."""
    student = build(vmamba(), 2)
    plan(student, teacher).apply(student)
    block, other = student.backbone.blocks()[0], teacher.backbone.stages[0]
    for module in (block.op.out_proj, other.blocks[0].attn.w_msa.proj):
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias) if module.bias is not None else None
    x = torch.randn(2, 16, 8)
    with torch.no_grad():
        mine = block(x, (4, 4))
        theirs = other.blocks[0](x, (4, 4))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ('student', 'options', 'message'),
    [
        (vmamba(dims=4), {}, r'layer 0 \(4 channels\).*layer 0 \(8\)'),
        (vmamba(), dict(layer_map=[0, 0, 2, 4, 5]), r'layer 1 \(16 channels'),
        (vmamba(dims=16), {}, r'wider than the teacher \(64\)'),
    ],
)
def test_widths_must_agree(teacher, student, options, message):
    with pytest.raises(TransferError, match=message):
        plan(build(student), teacher, **options)
