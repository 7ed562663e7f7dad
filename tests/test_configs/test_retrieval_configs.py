# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The recipes of text-video retrieval."""

import re

import pytest
from config_cases import RETRIEVAL, build, read, student_of
from helpers import CONFIGS, ROOT
from mmengine.optim import build_optim_wrapper
from test_recipes import docstring

from transmamba_mm.contract import Student, Teacher

TEACHERS = {name for name in RETRIEVAL if '/clip4clip' in name}
STUDENTS = set(RETRIEVAL) - TEACHERS


@pytest.mark.parametrize('name', RETRIEVAL)
def test_name_agrees_with_the_settings(name):
    cfg = read(name)
    gpus, batch, epochs = map(
        int, re.search(r'_(\d)xb(\d+)-(\d+)e_', name).groups()
    )
    assert cfg.train_dataloader.batch_size == batch
    assert cfg.auto_scale_lr.base_batch_size == gpus * batch == 128
    assert cfg.train_cfg.max_epochs == epochs == 5
    data = cfg.train_dataloader.dataset
    split = re.search(r'-5e_([a-z]+)(?:-(\w+?))?(?:_paper)?\.py', name)
    assert split[1] in data.data_root
    assert split[2] is None or split[2] in data.ann_file
    blocks = re.findall(
        r'NAME=(\S+)\n\s+bash (\S+) configs/(\w+)/\$NAME.py (\d)',
        docstring(name),
    )
    assert f'{blocks[-1][2]}/{blocks[-1][0]}.py' == name
    for run, tool, where, number in blocks:
        assert (ROOT / tool).is_file()
        assert (CONFIGS / where / f'{run}.py').is_file()
        assert number == str(gpus) and f'_{gpus}xb' in run


@pytest.mark.parametrize('name', sorted(STUDENTS))
def test_models_agree_with_the_data(name):
    cfg = read(name)
    model = build(cfg)
    student = student_of(model)
    load, *_, tokens, _ = cfg.train_dataloader.dataset.pipeline
    assert student.backbone.num_frames == load.max_frames
    text = student.text_encoder
    assert tokens.max_words <= len(text.positional_embedding)
    assert cfg.val_dataloader.dataset.pipeline[0] == load
    grid = Student(student).backbone.patch_embed.init_out_size
    if student is not model:
        teacher = Teacher(model.teacher)
        side = 224 // teacher.patch_size
        assert tuple(grid) == (side, side)
        ours, theirs = (
            x.state_dict() for x in (text, model.teacher.text_encoder)
        )
        assert {k: v.shape for k, v in ours.items()} == {
            k: v.shape for k, v in theirs.items()
        }
        used = re.search(r'work_dirs/(\S+)/epoch_5', cfg.model.teacher_ckpt)[1]
        assert f'retrieval/{used}.py' in TEACHERS
        assert used.rpartition('_')[2] in name


@pytest.mark.parametrize('name', RETRIEVAL)
def test_what_comes_from_clip_learns_slowly(name):
    cfg = read(name)
    model = build(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    rates = {
        parameter: group['lr']
        for group in wrapper.param_groups
        for parameter in group['params']
    }
    for key, parameter in student_of(model).named_parameters():
        clip = key.startswith(('text_encoder.', 'head.logit_scale'))
        expected = 1e-7 if clip or name in TEACHERS else 1e-4
        if parameter.requires_grad:
            assert rates[parameter] == pytest.approx(expected), key
