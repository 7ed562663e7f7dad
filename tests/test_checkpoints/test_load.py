# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Starting from files: of a backbone, and of a classifier in any way."""

import argparse
from pathlib import Path

import pytest
import torch
from helpers import tiny_runner
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmpretrain import get_model
from official_files import (
    BACKBONES,
    DIMS,
    SIDE,
    assert_same_features,
    assert_same_logits,
    build,
    classifier,
    convert,
    families,
    lookalikes,
    official_file,
    positions,
)
from torch import nn

from transmamba_mm.checkpoints import CheckpointError
from transmamba_mm.registry import MODELS


@families
@pytest.mark.parametrize('converted', [False, True])
def test_a_backbone_starts_from_a_file(tmp_path, family, converted):
    model = build(classifier(family))
    path = official_file(tmp_path, family, model)
    if converted:
        path = convert(tmp_path, path, classifier(family))
    for prefix in (None, '', 'backbone.', 'backbone'):
        start = dict(type='Pretrained', checkpoint=path, prefix=prefix)
        backbone = MODELS.build({**BACKBONES[family], 'init_cfg': start})
        backbone.init_weights()
        assert_same_features(backbone, model.backbone)
        assert backbone.init_cfg == start
    # Inside a classifier, whose head is drawn; in a list of init_cfg, too.
    inside = MODELS.build(
        classifier(
            family,
            classes=5,
            init_cfg=None,
        )
        | dict(
            backbone={
                **BACKBONES[family],
                'init_cfg': [
                    dict(type='Constant', layer='Linear', val=0.0),
                    start,
                ],
            }
        )
    )
    inside.init_weights()
    assert_same_features(inside.backbone, model.backbone)


def test_a_backbone_starts_from_a_backbone_or_a_part(tmp_path):
    model = build(classifier('vim'))
    path = str(tmp_path / 'x.pth')
    torch.save(model.backbone.state_dict(), path)
    start = dict(type='Pretrained', checkpoint=path)
    backbone = MODELS.build({**BACKBONES['vim'], 'init_cfg': start})
    backbone.init_weights()
    assert_same_features(backbone, model.backbone)

    part = nn.ModuleDict(dict(student=nn.ModuleDict(dict(net=model))))
    torch.save(dict(state_dict=part.state_dict()), path)
    start['prefix'] = 'student.net.backbone'
    backbone = MODELS.build({**BACKBONES['vim'], 'init_cfg': start})
    backbone.init_weights()
    assert_same_features(backbone, model.backbone)
    for wrong in ({}, dict(prefix='teacher')):
        start = dict(type='Pretrained', checkpoint=path, **wrong)
        backbone = MODELS.build({**BACKBONES['vim'], 'init_cfg': start})
        with pytest.raises(CheckpointError, match=r'student\.net\.backbone'):
            backbone.init_weights()


def pretrained_by_init_cfg(config, path):
    config['init_cfg'] = dict(type='Pretrained', checkpoint=path)
    model = MODELS.build(config)
    model.init_weights()
    return model


def pretrained_by_argument(config, path):
    del config['init_cfg']
    model = MODELS.build(dict(config, pretrained=path))
    model.init_weights()
    return model


def pretrained_by_get_model(config, path):
    return get_model(Config(dict(model=config)), pretrained=path)


def pretrained_by_load_from(config, path):
    folder = Path(path).parent / 'run'
    runner = tiny_runner(folder, config, load_from=path)
    runner.load_or_resume()
    return runner.model


def pretrained_by_load_from_with_ema(config, path):
    folder = Path(path).parent / 'run'
    hooks = [
        dict(type='EMAHook', momentum=0.1),
        dict(type='transmamba.BareFileHook'),
    ]
    runner = tiny_runner(folder, config, load_from=path, custom_hooks=hooks)
    runner.call_hook('before_run')
    runner.load_or_resume()
    (ema,) = (hook for hook in runner.hooks if isinstance(hook, EMAHook))
    return ema.ema_model.module


WAYS = [
    pretrained_by_init_cfg,
    pretrained_by_argument,
    pretrained_by_get_model,
    pretrained_by_load_from,
    pretrained_by_load_from_with_ema,
]
ways = pytest.mark.parametrize('way', WAYS)


@ways
@families
def test_a_classifier_starts_from_a_file(tmp_path, family, way):
    model = build(classifier(family))
    place = dict(vim='middle', videomamba='head').get(family)
    if place:
        trained = positions(SIDE, DIMS, place, 0, seed=5)
        model.backbone.pos_embed.data.copy_(trained)
    path = official_file(tmp_path, family, model)
    assert_same_logits(way(classifier(family), path), model)
    out = convert(tmp_path, path, classifier(family))
    assert_same_logits(way(classifier(family), out), model)


@ways
def test_a_classifier_does_not_start_from_what_does_not_fit(tmp_path, way):
    model = build(classifier('vim'))
    deeper = classifier('vim', arch=dict(embed_dims=DIMS, num_layers=3))
    # Without evidence an official file has to be converted.
    path = official_file(tmp_path, 'vim', model)
    with pytest.raises(CheckpointError, match=r'official_to_transmamba\.py'):
        way(classifier('vim'), path)
    out = convert(tmp_path, path, classifier('vim'))
    with pytest.raises(CheckpointError, match=r'missing: layers\.2'):
        way(deeper, out)
    with pytest.raises(CheckpointError, match='family'):
        way(classifier('videomamba'), out)
    # Nothing of another model is nothing at all.
    torch.save(dict(state_dict={'encoder.w': torch.ones(1)}), path)
    with pytest.raises(CheckpointError, match=r'holds nothing.*encoder\.w'):
        way(classifier('vim'), path)


def test_arguments_are_evidence_for_a_classifier(tmp_path):
    model = build(classifier('vim'))
    args = argparse.Namespace(model='vim_tiny_patch16_224')
    path = official_file(tmp_path, 'vim', model, 'x.pth', args=args)
    loaded = pretrained_by_get_model(classifier('vim'), path)
    assert_same_logits(loaded, model)
    with pytest.raises(CheckpointError, match=r'args\.model'):
        pretrained_by_get_model(classifier('videomamba'), path)


def test_a_strict_load_of_torch_is_strict():
    model = build(classifier('vim'))
    deeper = classifier('vim', arch=dict(embed_dims=DIMS, num_layers=3))
    # Those who catch torch's error catch this one.
    with pytest.raises(RuntimeError, match=r'missing: layers\.2'):
        MODELS.build(deeper).load_state_dict(model.state_dict())
    # Without the note of the layout it is left to torch.
    result = MODELS.build(deeper).load_state_dict(
        dict(model.state_dict()), strict=False
    )
    assert all('layers.2.' in key for key in result.missing_keys)
    state = {k: v for k, v in model.state_dict().items() if 'head' not in k}
    with pytest.raises(RuntimeError, match=r'head\.fc\.weight'):
        MODELS.build(classifier('vim')).load_state_dict(state)


def test_a_file_made_by_hand_may_hold_a_part(tmp_path):
    bias = torch.rand(DIMS)
    path = str(tmp_path / 'x.pth')
    torch.save({'backbone.ln1.bias': bias}, path)
    model = pretrained_by_get_model(classifier('plainmamba'), path)
    assert model.backbone.ln1.bias.equal(bias)


@pytest.mark.parametrize('way', WAYS)
def test_a_file_without_a_note_fits_or_is_refused(tmp_path, way):
    """Such as PlainMamba's official ones, whose names are ours."""
    path = str(tmp_path / 'x.pth')
    model = build(classifier('plainmamba'))
    torch.save(dict(state_dict=dict(model.state_dict())), path)
    assert_same_logits(way(classifier('plainmamba'), path), model)
    wider = classifier('plainmamba', arch=dict(embed_dims=32, num_layers=2))
    with pytest.raises(CheckpointError, match='of another shape: pos_embed'):
        way(wider, path)
    with pytest.raises(CheckpointError, match='unexpected: patch_embed'):
        way(classifier('vim'), path)


@pytest.mark.parametrize('way', WAYS[1:])
@lookalikes
def test_the_class_token_shows_whose_file_it_is(tmp_path, family, other, way):
    path = str(tmp_path / 'x.pth')
    model = build(classifier(family))
    place = dict(vim='middle', videomamba='head')[family]
    trained = positions(SIDE, DIMS, place, 0, seed=5)
    model.backbone.pos_embed.data.copy_(trained)
    torch.save(dict(state_dict=dict(model.state_dict())), path)
    assert_same_logits(way(classifier(family), path), model)
    with pytest.raises(CheckpointError, match=f"in place '{place}'"):
        way(classifier(other), path)


@ways
def test_a_distillation_run_needs_its_student_taken_out(tmp_path, way):
    path = str(tmp_path / 'x.pth')
    student = nn.ModuleDict(dict(architecture=build(classifier('vim'))))
    torch.save(dict(state_dict=student.state_dict()), path)
    with pytest.raises(CheckpointError, match=r'tools/export_student\.py'):
        way(classifier('vim'), path)


def test_torch_loads_a_part_if_asked_to():
    model, other = build(classifier('vim')), build(classifier('vim'), seed=1)
    head = {k: v for k, v in model.state_dict().items() if 'head' in k}
    result = other.load_state_dict(head, strict=False)
    assert not result.unexpected_keys
    assert other.head.fc.weight.equal(model.head.fc.weight)
    some = {k: v for k, v in model.state_dict().items() if 'layers.0' in k}
    other.load_state_dict(some, strict=False)
    other.load_state_dict({}, strict=False)
    with pytest.raises(CheckpointError, match='holds nothing'):
        other.load_state_dict(dict(encoder=torch.ones(1)), strict=False)
    assert not other.backbone.pos_embed.equal(model.backbone.pos_embed)


@pytest.mark.parametrize(
    ('family', 'kwargs', 'norm'),
    [
        ('vim', dict(out_indices=(0, 1), out_type='featmap'), 'norm_layer0'),
        ('plainmamba', dict(out_indices=(0, 1)), 'norm_layer0'),
        ('vmamba', dict(out_indices=(0, 1)), 'outnorm0'),
        ('videomamba', dict(out_type='pooled'), 'pool_norm'),
    ],
)
def test_norms_of_other_outputs_keep_their_start(
    tmp_path, family, kwargs, norm
):
    path = official_file(tmp_path, family, build(classifier(family)))
    start = dict(type='Pretrained', checkpoint=path)
    backbone = MODELS.build({**BACKBONES[family], **kwargs, 'init_cfg': start})
    backbone.init_weights()
    weight = getattr(backbone, norm).weight
    assert weight.equal(torch.ones_like(weight))


def test_a_backbone_without_final_norm_leaves_it_out(tmp_path):
    for family in BACKBONES:
        path = official_file(tmp_path, family, build(classifier(family)))
        start = dict(type='Pretrained', checkpoint=path)
        backbone = MODELS.build(
            {**BACKBONES[family], 'final_norm': False, 'init_cfg': start}
        )
        backbone.init_weights()
