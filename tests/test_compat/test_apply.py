# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import CONFIGS

from transmamba_mm import compat
from transmamba_mm.compat import environment

OPTIONAL = (
    *('timm', 'transformers', 'tokenizers', 'accelerate', 'datasets'),
    *('av', 'decord', 'open_clip', 'ftfy', 'regex'),
    *('lmms_eval', 'loguru', 'gradio'),
    *('mamba_ssm', 'triton'),
)

QUICKSTART = str(CONFIGS / 'quickstart/pmamba_scratch_digits.py')

GOOD = {
    'torch': '2.14.1',
    'torchvision': '0.29.1',
    'mmengine': '0.10.7',
    'mmcv-lite': '2.1.0',
    'mmpretrain': '1.2.0',
    'mmrazor': '1.0.0',
    'joblib': '1.6.0',
    'setuptools': '81.0.0',
}


def problems_of(monkeypatch, **changes):
    versions = {**GOOD, **changes}
    monkeypatch.setattr(environment, 'installed_version', versions.get)
    return environment.find_problems()


def test_the_tested_set_has_no_problem(monkeypatch):
    assert problems_of(monkeypatch) == []
    assert (
        problems_of(monkeypatch, **{'mmcv-lite': None, 'mmcv': '2.1.0'}) == []
    )
    assert problems_of(monkeypatch, mmcv='2.1.0') == []
    both_cpu = dict(torch='2.14.1+cpu', torchvision='0.29.1+cpu')
    assert problems_of(monkeypatch, **both_cpu) == []


@pytest.mark.parametrize(
    ('changes', 'text', 'fatal'),
    [
        ({'mmcv-lite': '2.2.0'}, 'mmcv-lite==2.1.0', True),
        ({'mmcv-lite': None}, 'mmcv is not installed', True),
        ({'joblib': None}, 'pip install joblib', True),
        ({'torch': '2.3.1'}, 'torch>=2.4', True),
        ({'torch': '2.14.1+cpu'}, 'CPU-only', True),
        ({'mmrazor': '1.1.0'}, 'mmrazor==1.0.0', True),
        ({'setuptools': '82.0.1'}, 'setuptools<82', False),
    ],
)
def test_each_problem_has_its_fix(monkeypatch, changes, text, fatal):
    (problem,) = problems_of(monkeypatch, **changes)
    assert text in str(problem)
    assert 'Fix: pip ' in str(problem)
    assert problem.breaks_import is fatal


def test_two_different_mmcvs_are_noticed(monkeypatch):
    problems = problems_of(monkeypatch, mmcv='2.0.1')
    assert 'overwrite each other' in str(problems[0])


def test_apply_turns_an_obscure_failure_into_the_reason(monkeypatch):
    def fail():
        raise AssertionError('MMCV==2.2.0 is used but incompatible.')

    monkeypatch.setattr(compat, '_status', {})
    monkeypatch.setattr(compat, '_CURES', dict(one=fail))
    monkeypatch.setattr(compat, 'find_problems', lambda: [])
    with pytest.raises(ImportError, match='used but incompatible'):
        compat.apply()
    reason = environment.Problem('mmcv 2.2.0 is new', 'pip x', True)
    monkeypatch.setattr(compat, 'find_problems', lambda: [reason])
    with (
        pytest.warns(RuntimeWarning, match='mmcv 2.2.0 is new'),
        pytest.raises(ImportError, match='Fix: pip x'),
    ):
        compat.apply()
    assert compat._status == {}


def test_images_are_classified_without_any_optional_package():
    """And the big ones are not imported where they are installed."""
    code = f"""
import sys
# Makes `import NAME` raise and find_spec(NAME) return None.
sys.modules.update(dict.fromkeys({OPTIONAL!r}))
import transmamba_mm
import transmamba_mm.razor
from transmamba_mm.utils import register_all_modules
register_all_modules()
import transmamba_mm.apis
import torch
from mmpretrain import get_model
from mmpretrain.structures import DataSample
model = get_model({QUICKSTART!r}).train()
images = torch.rand(2, 3, 16, 16)
samples = [DataSample().set_gt_label(1)] * 2
sum(model(images, samples, mode='loss').values()).backward()
assert not any(sys.modules[name] for name in {OPTIONAL!r})
"""
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def cpu_seconds(code):
    timed = (
        f'import time; start = time.process_time(); {code}; '
        'print(time.process_time() - start)'
    )
    result = subprocess.run(
        [sys.executable, '-c', timed],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(result.stdout.split()[-1])


def test_import_costs_little_more_than_what_it_builds_on():
    cure = Path(compat.__file__).with_name('mmrazor_kd.py')
    # mmrazor alone does not import; so give it its cure, by itself.
    theirs = (
        f'import runpy; runpy.run_path({str(cure)!r})["ensure_mmrazor"](); '
        'import mmpretrain.models, mmrazor.models'
    )
    ours = 'import transmamba_mm, mmpretrain.models, mmrazor.models'
    ratios = []
    for _ in range(3):
        ratios.append(cpu_seconds(ours) / cpu_seconds(theirs))
        if ratios[-1] <= 1.3:
            break
    assert min(ratios) <= 1.3, ratios
