# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Data configs of visual questions run on tiny trees of their files."""

import json
from itertools import product

import pytest
from config_cases import VQA
from helpers import CONFIGS, tiny_runner
from mmengine.config import Config
from vqa_cases import DATASETS, TESTED, TINY, TRAINED, TREES, read_tiny

MODEL_BESIDE = Config.fromfile(DATASETS / 'llava_instruct.py')
RESULTS = dict(
    gqa={'gqa/accuracy': (0, 100), 'gqa/num_questions': (2, 2)},
    textvqa={'textvqa/accuracy': (0, 100), 'textvqa/num_questions': (2, 2)},
    vizwiz={'vizwiz/accuracy': (0, 100), 'vizwiz/num_questions': (2, 2)},
    scienceqa={'scienceqa_img/accuracy': (0, 100)},
    mme={
        'mme/perception': (0, 400),
        'mme/artwork': (0, 200),
        'mme/OCR/acc+': (0, 100),
    },
    vqav2={'answers/num_answers': (2, 2)},
    pope={'pope/f1': (0, 100), 'pope/random/yes_ratio': (0, 100)},
)


def test_all_have_a_case():
    names = {path.stem for path in DATASETS.glob('*.py')}
    assert TREES.keys() <= names
    asked = {
        p.stem for p in DATASETS.glob('*.py') if 'vqa_336' in p.read_text()
    }
    assert asked == TESTED.keys() == RESULTS.keys()


@pytest.mark.parametrize(
    ('name', 'benchmark'), [*product(VQA[-1:], TESTED), *product(VQA, ['gqa'])]
)
def test_every_model_can_be_tested(name, benchmark, tmp_path):
    """Two bases are a whole config, as the guide says."""
    bases = [CONFIGS / name, DATASETS / f'{benchmark}.py']
    path = tmp_path / 'both.py'
    path.write_text(f'_base_ = {list(map(str, bases))}\n')
    cfg, alone = Config.fromfile(path), Config.fromfile(CONFIGS / name)
    assert cfg.model == alone.model
    assert cfg.data_preprocessor == MODEL_BESIDE.data_preprocessor
    wanted = Config.fromfile(bases[1])
    for key in ('test_dataloader', 'test_evaluator', 'test_cfg'):
        assert cfg[key] == wanted[key]


@pytest.mark.parametrize('name', TESTED)
def test_a_model_is_tested(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    TREES[name](tmp_path)
    cfg = read_tiny(name, tmp_path)
    runner = tiny_runner(
        tmp_path,
        TINY,
        data_preprocessor=MODEL_BESIDE.data_preprocessor,
        test_dataloader=cfg.test_dataloader,
        test_evaluator=cfg.test_evaluator,
        test_cfg=cfg.test_cfg,
    )
    found = runner.test()
    for key, (low, high) in RESULTS[name].items():
        assert low <= found[key] <= high, key
    if name == 'vqav2':
        rows = json.loads((tmp_path / cfg.test_evaluator.out_file).read_text())
        assert [row['question_id'] for row in rows] == [70, 71]


@pytest.mark.parametrize('name', TRAINED)
def test_a_model_is_trained(name, tmp_path):
    TREES[name](tmp_path)
    cfg = read_tiny(name, tmp_path)
    runner = tiny_runner(
        tmp_path,
        TINY,
        data_preprocessor=cfg.data_preprocessor,
        train_dataloader=cfg.train_dataloader,
    )
    runner.train()
    (loss,) = runner.message_hub.get_scalar('train/loss').data[0]
    assert 0 < loss < 20
