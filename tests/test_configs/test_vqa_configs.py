# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The recipes of visual question answering."""

import re

import pytest
from config_cases import VQA, build, docstring, read, student_of
from helpers import CONFIGS, ROOT
from mmengine.optim import build_optim_wrapper

from transmamba_mm.contract import Pair

pytest.importorskip('transformers')

STUDENTS = [name for name in VQA if '/transmamba_' in name]


@pytest.mark.parametrize('name', VQA)
def test_name_agrees_with_the_settings(name):
    cfg = read(name)
    gpus, batch = map(int, re.search(r'_(\d)xb(\d+)-1e_', name).groups())
    assert cfg.train_dataloader.batch_size == batch
    assert cfg.auto_scale_lr.base_batch_size == gpus * batch
    assert cfg.train_cfg.max_epochs == 1
    pretrain = name.endswith('pretrain.py')
    assert gpus * batch == (256 if pretrain else 128)
    assert cfg.optim_wrapper.optimizer == dict(
        type='Adam', lr=1e-3 if pretrain else 2e-5, weight_decay=0.0
    )
    said = re.findall(
        r'NAME=(\S+)\n\s+bash (\S+) configs/vqa/\$NAME.py (\d)',
        docstring(name),
    )
    assert f'vqa/{said[-1][0]}.py' == name
    for run, tool, number in said:
        assert (ROOT / tool).is_file()
        assert (CONFIGS / f'vqa/{run}.py').is_file()
        assert f'_{number}xb' in run


def test_what_trains():
    """The projector; then the language model as well, 0.6 B of the student."""
    trained = {}
    for name in VQA:
        model = student_of(build(read(name)))
        trained[name] = sum(
            p.numel() for p in model.parameters() if p.requires_grad
        )
        parts = {
            key.split('.')[0]
            for key, p in model.named_parameters()
            if p.requires_grad
        }
        wanted = {'projector', 'lang_encoder'}
        if name.endswith('pretrain.py'):
            wanted = {'projector'}
        assert parts == wanted
    assert {trained[name] for name in STUDENTS} == {606_377_984}


@pytest.mark.parametrize('name', STUDENTS)
def test_the_student_has_channels_and_layers_of_the_teacher(name):
    cfg = read(name)
    model = build(cfg)
    pair = Pair(model.student, model.teacher)
    student, teacher = pair.student().backbone, pair.teacher()
    assert teacher.layer_dims == (3072,) * 28
    assert student.layer_dims == (2048,) * 16
    assert not any(p.requires_grad for p in model.teacher.parameters())
    used = re.search(r'work_dirs/(\S+)/epoch_1', cfg.model.teacher_ckpt)[1]
    assert f'vqa/{used}.py' in VQA
    for part in ('tokenizer', 'prompt_tmpl', 'max_length', 'vision_encoder'):
        assert cfg.model.architecture[part] == cfg.model.teacher[part]
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    held = {
        p
        for group in wrapper.param_groups
        for p in group['params']
        if p.requires_grad
    }
    learning = {p for p in model.parameters() if p.requires_grad}
    assert held == learning
