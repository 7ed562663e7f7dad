# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The exported student is the distilled one, without its teacher."""

import pytest
import torch
from helpers import (
    CONFIGS,
    tiny_batch,
    tiny_distiller,
    tiny_student,
    tiny_teacher,
)
from mmengine.config import Config
from mmpretrain import get_model

from transmamba_mm.apis import export_student
from transmamba_mm.registry import MODELS


def distilled_checkpoint(folder):
    """A checkpoint as a distillation run writes it, and its model."""
    torch.manual_seed(3)
    cfg = Config.fromfile(
        str(CONFIGS / 'quickstart' / 'transmamba_deit_pmamba_digits.py')
    )
    cfg.model = dict(
        type='transmamba.TransMambaDistill',
        architecture=tiny_student(),
        teacher=tiny_teacher(),
        distiller=tiny_distiller(),
    )
    model = MODELS.build(cfg.model).eval()
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    path = folder / 'epoch_1.pth'
    torch.save(
        dict(
            state_dict=model.state_dict(),
            meta=dict(cfg=cfg.pretty_text, epoch=1, iter=9),
            optimizer=dict(),
        ),
        path,
    )
    return str(path), model


def test_exported_logits_are_bit_equal_in_mmpretrain(tmp_path):
    checkpoint, model = distilled_checkpoint(tmp_path)
    config, weights = export_student(checkpoint)
    student = get_model(config, pretrained=weights, device='cpu').eval()
    images, _ = tiny_batch()
    with torch.no_grad():
        assert torch.equal(student(images), model(images))


def test_export_is_strict_and_holds_no_teacher(tmp_path):
    checkpoint, _ = distilled_checkpoint(tmp_path)
    config, weights = export_student(checkpoint, str(tmp_path / 'out' / 's'))
    assert config == str(tmp_path / 'out' / 's.py')
    content = torch.load(weights, weights_only=True)
    student = MODELS.build(tiny_student())
    student.load_state_dict(content['state_dict'], strict=True)
    assert set(content) == {'meta', 'state_dict'}
    cfg = Config.fromfile(config)
    assert cfg.model.type == 'mmpretrain.ImageClassifier'
    assert 'teacher' not in cfg and 'custom_hooks' not in cfg


def test_refuses_what_is_no_distillation_checkpoint(tmp_path):
    plain = tmp_path / 'plain.pth'
    torch.save(dict(state_dict=dict(w=torch.ones(1)), meta={}), plain)
    with pytest.raises(ValueError, match='no checkpoint of a distillation'):
        export_student(str(plain))
    with pytest.raises(FileNotFoundError, match=r'gone\.pth'):
        export_student(str(tmp_path / 'gone.pth'))
