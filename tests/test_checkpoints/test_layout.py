# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A state dict says what its names cannot, and is heeded."""

import copy
import io

import pytest
import torch
from helpers import tiny_runner
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.runner import load_checkpoint, save_checkpoint
from mmengine.runner.checkpoint import get_state_dict, weights_to_cpu
from official_files import (
    DIMS,
    FLAT,
    SIDE,
    assert_same_logits,
    build,
    classifier,
    lookalikes,
    positions,
)
from safetensors.torch import save_file
from torch import nn

from transmamba_mm.apis import export_student
from transmamba_mm.checkpoints import (
    NOTE,
    CheckpointError,
    evidence,
    read_checkpoint,
    read_state_dict,
    strip_prefix,
    write_weights,
)
from transmamba_mm.models import VideoMamba, VisionMamba
from transmamba_mm.registry import MODELS


def assert_note(state, family, prefix='backbone'):
    note = state._metadata[prefix][NOTE]
    assert note['family'] == family
    assert note['directions'][0] in ('raster', 'snake_horizontal')


def through_torch(model, path):
    torch.save(model.state_dict(), path)
    return torch.load(path, weights_only=True)


def through_mmengine(model, path):
    state = weights_to_cpu(get_state_dict(model))
    save_checkpoint(dict(meta={}, state_dict=state), str(path))
    return torch.load(path, weights_only=True)['state_dict']


def through_copies(model, path):
    return copy.deepcopy(copy.deepcopy(model).state_dict())


def through_pickle(model, path):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False).state_dict()


@pytest.mark.parametrize(
    'way', [through_torch, through_mmengine, through_copies, through_pickle]
)
@lookalikes
def test_the_note_survives_and_is_heeded(tmp_path, family, other, way):
    model = build(classifier(family))
    before = list(model.state_dict())
    state = way(model, tmp_path / 'x.pth')
    assert list(state) == before  # no new names
    assert_note(state, family)
    same = MODELS.build(classifier(family))
    same.load_state_dict(state)
    assert_same_logits(same, model)
    with pytest.raises(CheckpointError, match=f"family is '{family}' there"):
        MODELS.build(classifier(other)).load_state_dict(state)
    with pytest.raises(CheckpointError, match=f"family is '{family}' there"):
        MODELS.build(classifier(other)['backbone']).load_state_dict(
            model.backbone.state_dict()
        )
    # Without it, as before.
    MODELS.build(classifier(other)).load_state_dict(dict(state))


def test_other_contradictions_are_refused():
    state = build(classifier('vim')).state_dict()
    for wrong, word in (
        (dict(class_token='head'), 'class_token'),
        (dict(mixer_cfg=dict(divide_out=False)), 'divide_out'),
    ):
        with pytest.raises(CheckpointError, match=word):
            MODELS.build(classifier('vim', **wrong)).load_state_dict(state)
    state = build(classifier('plainmamba')).state_dict()
    other = classifier('plainmamba', directions=('raster', 'raster_reverse'))
    with pytest.raises(CheckpointError, match='directions'):
        MODELS.build(other).load_state_dict(state)


@pytest.mark.parametrize('alone', [False, True])
@pytest.mark.parametrize('family', ['plainmamba', 'vim', 'videomamba'])
@pytest.mark.parametrize('sides', [(4, 16), (6, 10)])
def test_grids_that_are_no_squares_are_noted(tmp_path, family, sides, alone):
    """Grids of 2x32 tokens, and others of as many or not as many."""
    model = build(classifier(family, img_size=(8, 128)))
    path = str(tmp_path / 'x.pth')
    part = model.backbone if alone else model
    torch.save(part.state_dict(), path)
    config = classifier(family, img_size=[4 * side for side in sides])
    started = dict(config['backbone'])
    started['init_cfg'] = dict(type='Pretrained', checkpoint=path)
    copies = [MODELS.build(config).eval() for _ in range(3)]
    copies[0].backbone = MODELS.build(started).eval()
    copies[0].backbone.init_weights()
    load_checkpoint(copies[1], path)
    own = copies[2].backbone if alone else copies[2]
    own.load_state_dict(part.state_dict())
    images = torch.randn(2, 3, 4 * sides[0], 4 * sides[1])
    expected = model.backbone(images)[0]
    for copy_ in copies:
        torch.testing.assert_close(
            copy_.backbone(images)[0], expected, rtol=1e-4, atol=1e-5
        )


def test_the_note_survives_a_run_with_ema(tmp_path):
    config = classifier('vim', img_size=16)
    hook = dict(type='EMAHook', momentum=0.1)
    runner = tiny_runner(tmp_path, config, custom_hooks=[hook])
    runner.train()
    assert any(isinstance(hook, EMAHook) for hook in runner.hooks)
    path = str(tmp_path / 'epoch_1.pth')
    content = read_checkpoint(path)
    assert_note(content['state_dict'], 'vim')
    assert_note(content['ema_state_dict'], 'vim', 'module.backbone')
    load_checkpoint(MODELS.build(config), path, strict=True)
    with pytest.raises(CheckpointError, match='family'):
        other = classifier('videomamba', img_size=16)
        load_checkpoint(MODELS.build(other), path)
    # An interrupted run still goes on.
    runner = tiny_runner(
        tmp_path, config, 2, custom_hooks=[hook], load_from=path, resume=True
    )
    runner.train()


@pytest.mark.parametrize('safetensors', [False, True])
def test_the_note_survives_the_export(tmp_path, safetensors):
    class Distilled(nn.Module):
        def __init__(self):
            super().__init__()
            self.architecture = build(classifier('vim'))
            self.teacher = nn.Linear(2, 2)

    cfg = Config(dict(model=dict(architecture=classifier('vim'))))
    path = str(tmp_path / 'epoch_1.pth')
    torch.save(
        dict(
            state_dict=Distilled().state_dict(),
            meta=dict(cfg=cfg.pretty_text),
        ),
        path,
    )
    _, weights = export_student(path, safetensors=safetensors)
    state = read_checkpoint(weights)['state_dict']
    assert_note(state, 'vim')
    assert not any('teacher' in name for name in state._metadata)
    with pytest.raises(CheckpointError, match='family'):
        load_checkpoint(MODELS.build(classifier('videomamba')), weights)


def load_by_torch(model, path):
    model.load_state_dict(read_state_dict(path))


def load_by_init_cfg(model, path):
    model.backbone.init_cfg = dict(type='Pretrained', checkpoint=path)
    model.backbone.init_weights()


def load_backbone(model, path):
    part = read_state_dict(path)
    model.backbone.load_state_dict(dict(strip_prefix(part, 'backbone.')))


@pytest.mark.parametrize(
    'load', [load_by_torch, load_checkpoint, load_by_init_cfg, load_backbone]
)
@lookalikes
def test_tensors_alone_are_warned_of_once(
    tmp_path, monkeypatch, family, other, load
):
    said = []
    monkeypatch.setattr(
        evidence, 'print_log', lambda text, **_: said.append(text)
    )
    model = build(classifier(family))
    path = str(tmp_path / 'x.safetensors')
    save_file(model.state_dict(), path)  # as anyone would
    for kind in (family, other):
        load(MODELS.build(classifier(kind)), path)
        (warning,) = said
        assert f'nothing in it tells {kind} from' in warning
        said.clear()
    # What says where it is from is no riddle, nor is a part, nor our own.
    load_checkpoint(MODELS.build(classifier(family)), through(model, tmp_path))
    MODELS.build(classifier(family)).load_state_dict(
        {'head.fc.bias': torch.zeros(3)}, strict=False
    )
    assert not said
    # With positions that are trained there is no doubt.
    place = dict(vim='middle', videomamba='head')[family]
    trained = positions(SIDE, DIMS, place, 0, seed=5)
    model.backbone.pos_embed.data.copy_(trained)
    save_file(model.state_dict(), path)
    load(MODELS.build(classifier(family)), path)
    with pytest.raises(CheckpointError, match='position embedding'):
        load(MODELS.build(classifier(other)), path)
    assert not said


def through(model, folder):
    path = str(folder / 'own.safetensors')
    write_weights(path, model.state_dict(), {})
    return path


def test_backbones_of_others_need_no_family():
    class Mine(VisionMamba):
        pass

    state = VisionMamba(**FLAT).state_dict()
    Mine(**FLAT).load_state_dict(state)
    assert Mine.families()['vim'] is VisionMamba
    assert Mine.families()['videomamba'] is VideoMamba
