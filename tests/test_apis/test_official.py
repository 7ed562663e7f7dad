# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Official files become checkpoints of this package, strictly."""

import argparse
import logging
import sys
import types

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.runner import load_checkpoint
from mmpretrain import get_model
from official_files import (
    BACKBONES,
    FILES,
    assert_same_features,
    assert_same_logits,
    build,
    classifier,
    config_file,
    convert,
    families,
    official_file,
    official_names,
    restricts_pickles,
)

from transmamba_mm.apis import convert_official
from transmamba_mm.checkpoints import CheckpointError
from transmamba_mm.checkpoints.load import drop_ema_buffers
from transmamba_mm.registry import MODELS


@pytest.fixture
def warnings_logged():
    """Messages that MMEngine's ``print_log`` logs as warnings."""
    messages = []

    class Keep(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    logger, handler = MMLogger.get_current_instance(), Keep(logging.WARNING)
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@families
def test_converted_files_are_the_model_in_mmpretrain(tmp_path, family):
    model = build(classifier(family))
    path = official_file(tmp_path, family, model)
    config = classifier(family)
    out = convert(tmp_path, path, config)
    assert_same_logits(
        get_model(config_file(tmp_path, config), pretrained=out), model
    )
    content = torch.load(out, weights_only=True)
    assert content.keys() == {'meta', 'state_dict'}
    assert content['state_dict'].keys() == model.state_dict().keys()
    assert content['meta']['official']['file'] == FILES[family]
    # And once more, which changes nothing.
    again = convert_official(out, config_file(tmp_path, config))
    assert again == out.replace('.pth', '_transmamba.pth')
    assert_same_logits(
        get_model(config_file(tmp_path, config), pretrained=again), model
    )


WRAPPERS = dict(
    bare=lambda state: state,
    model=lambda state: dict(model=state, epoch=1),
    deepspeed=lambda state: dict(module=state, ds_version='0.9'),
    nested=lambda state: dict(state_dict=dict(model=state), epoch=1),
    parallel=lambda state: dict(
        model={f'module.{key}': value for key, value in state.items()}
    ),
)


@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_wrappers_of_official_files(tmp_path, wrapper):
    model = build(classifier('vim'))
    path = str(tmp_path / FILES['vim'])
    torch.save(WRAPPERS[wrapper](official_names('vim', model)), path)
    out = convert(tmp_path, path, classifier('vim'))
    loaded = MODELS.build(classifier('vim'))
    load_checkpoint(loaded, out, strict=True)
    assert_same_logits(loaded, model)


@restricts_pickles
def test_arguments_of_a_training_load_without_running_code(tmp_path):
    model = build(classifier('vim'))
    args = argparse.Namespace(
        model='vim_tiny_patch16_224', lr=5e-4, opt_betas=None, eval=False
    )
    path = official_file(tmp_path, 'vim', model, 'x.pth', args=args)
    convert(tmp_path, path, classifier('vim'))

    class Malicious:
        def __reduce__(self):
            return (print, ('code of the checkpoint ran',))

    args.resume = Malicious()
    path = official_file(tmp_path, 'vim', model, 'x.pth', args=args)
    with pytest.raises(ValueError, match='holds more than data'):
        convert(tmp_path, path, classifier('vim'))


@restricts_pickles
def test_config_nodes_of_yacs_need_no_yacs(tmp_path, monkeypatch):
    """VMamba's files hold the configuration of their training."""
    module = types.ModuleType('yacs.config')

    class CfgNode(dict):
        def __init__(self, *args):
            super().__init__(*args)
            self.__dict__['__immutable__'] = True

    CfgNode.__module__, CfgNode.__qualname__ = 'yacs.config', 'CfgNode'
    module.CfgNode = CfgNode
    model = build(classifier('vmamba'))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'yacs', types.ModuleType('yacs'))
        patch.setitem(sys.modules, 'yacs.config', module)
        config = CfgNode(dict(MODEL=CfgNode(dict(TYPE='vssm', DIMS=[96]))))
        path = official_file(tmp_path, 'vmamba', model, config=config)
    out = convert(tmp_path, path, classifier('vmamba'))
    loaded = MODELS.build(classifier('vmamba'))
    load_checkpoint(loaded, out, strict=True)
    assert_same_logits(loaded, model)


@pytest.mark.parametrize(
    ('family', 'ema', 'averaged'),
    [
        ('vmamba', None, True),
        ('vmamba', False, False),
        ('vim', None, False),
        ('vim', True, True),
    ],
)
def test_averaged_weights(tmp_path, warnings_logged, family, ema, averaged):
    last, mean = build(classifier(family)), build(classifier(family), seed=1)
    path = official_file(
        tmp_path, family, last, model_ema=official_names(family, mean)
    )
    out = convert(tmp_path, path, classifier(family), ema=ema)
    loaded = MODELS.build(classifier(family))
    load_checkpoint(loaded, out, strict=True)
    assert_same_logits(loaded, mean if averaged else last)
    assert any('model_ema' in message for message in warnings_logged)


def test_averaged_weights_that_are_not_there(tmp_path):
    path = official_file(tmp_path, 'vim', build(classifier('vim')))
    with pytest.raises(ValueError, match='no averaged weights'):
        convert(tmp_path, path, classifier('vim'), ema=True)


def test_copies_of_ema_hooks_are_dropped():
    state = {'a.b': 1, 'ema_a_b': 2, 'ema_proj.weight': 3}
    assert drop_ema_buffers(state) == {'a.b': 1, 'ema_proj.weight': 3}


@families
def test_a_wrong_depth_is_one_error_that_lists_all(tmp_path, family):
    path = official_file(tmp_path, family, build(classifier(family)))
    arch = dict(BACKBONES[family]['arch'])
    arch.update(dict(depths=(1, 3)) if 'depths' in arch else {})
    arch.update(dict(num_layers=3) if 'num_layers' in arch else {})
    with pytest.raises(CheckpointError) as error:
        convert(tmp_path, path, classifier(family, arch=arch, classes=5))
    message = str(error.value)
    assert FILES[family] in message and '--drop-head' in message
    assert 'missing: backbone.layers.' in message and 'more' in message
    assert '2 of another shape: head.fc.' in message
    assert 'depth, width' in message and 'number of classes' in message


def test_missing_and_unexpected_tensors_are_named(tmp_path):
    model = build(classifier('vim'))
    state = official_names('vim', model)
    del state['layers.1.mixer.A_b_log']
    state['rope.freqs_cos'] = torch.ones(1)
    path = str(tmp_path / FILES['vim'])
    torch.save(dict(model=state), path)
    with pytest.raises(
        CheckpointError,
        match=r'1 missing: backbone\.layers\.1\.mixer\.A_b_log; '
        r'1 unexpected: backbone\.rope\.freqs_cos\. Check',
    ):
        convert(tmp_path, path, classifier('vim'))


@pytest.mark.parametrize('family', ['plainmamba', 'vim', 'videomamba'])
def test_another_image_size_resizes_the_positions(tmp_path, family):
    model = build(classifier(family))
    path = official_file(tmp_path, family, model)
    larger = classifier(family, img_size=4 * 10)
    out = convert(tmp_path, path, larger)
    loaded = MODELS.build(larger)
    load_checkpoint(loaded, out, strict=True)
    extra = family != 'plainmamba'
    assert loaded.backbone.pos_embed.shape[1] == 100 + extra
    key = 'layers.1.norm.weight'
    assert loaded.backbone.get_parameter(key).equal(
        model.backbone.get_parameter(key)
    )


def test_images_to_videos(tmp_path):
    model = build(classifier('videomamba'))
    path = official_file(tmp_path, 'videomamba', model)
    video = classifier('videomamba', classes=5, num_frames=4)
    out = convert(tmp_path, path, video, drop_head=True)
    content = torch.load(out, weights_only=True)['state_dict']
    weight = content['backbone.patch_embed.proj.weight']
    assert weight[:, :, 0].equal(model.backbone.patch_embed.proj.weight)


def test_a_dropped_head_is_told(tmp_path, warnings_logged):
    model = build(classifier('vim'))
    path = official_file(tmp_path, 'vim', model)
    other = classifier('vim', classes=5)
    with pytest.raises(CheckpointError, match='--drop-head'):
        convert(tmp_path, path, other)
    out = convert(tmp_path, path, other, drop_head=True)
    assert any('head.fc.weight' in message for message in warnings_logged)
    state = torch.load(out, weights_only=True)['state_dict']
    assert all(key.startswith('backbone.') for key in state)
    loaded = get_model(config_file(tmp_path, other), pretrained=out)
    assert_same_features(loaded.backbone, model.backbone)


def test_configs_without_such_a_backbone_are_refused(tmp_path):
    path = official_file(tmp_path, 'vim', build(classifier('vim')))
    with pytest.raises(FileNotFoundError, match=r'gone\.py'):
        convert_official(path, str(tmp_path / 'gone.py'))
    with pytest.raises(ValueError, match='resnet18_8xb32_in1k'):
        convert_official(path, 'resnet18_8xb32_in1k')
    with pytest.raises(ValueError, match='list_models'):
        convert_official(path, 'no-such-model')
    with pytest.raises(ValueError, match=r"unknown family 'vmi'.*videomamba"):
        convert(tmp_path, path, classifier('vim'), family='vmi')
