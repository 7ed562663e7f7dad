# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
import subprocess
import sys

import pytest

from transmamba_mm.compat import mmpretrain_multimodal as module


def fake_versions(monkeypatch, **versions):
    monkeypatch.setattr(module, 'installed_version', versions.get)


@pytest.mark.parametrize(
    'versions',
    [
        {},
        dict(transformers='4.57.6'),
        dict(pycocotools='2.0.8'),
        dict(transformers='4.49.0', pycocotools='2.0.8'),
    ],
)
def test_leaves_working_sets_alone(monkeypatch, versions):
    fake_versions(monkeypatch, **versions)
    assert module.guard_multimodal().startswith('not needed')


def test_says_when_it_is_too_late(monkeypatch):
    fake_versions(monkeypatch, transformers='5.17.0', pycocotools='2.0.8')
    monkeypatch.setitem(sys.modules, 'mmpretrain.models', object())
    assert module.guard_multimodal().startswith('too late')


def test_mmpretrain_imports_beside_a_recent_transformers(tmp_path):
    """With only the metadata there, mmpretrain alone would fail."""
    for name, version in (('transformers', '4.57.6'), ('pycocotools', '2.0')):
        folder = tmp_path / f'{name}-{version}.dist-info'
        folder.mkdir()
        (folder / 'METADATA').write_text(
            f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
        )
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from transmamba_mm import compat
status = compat.apply()['mmpretrain multimodal guard']
assert 'are off' in status, status
import mmpretrain.models
from mmpretrain.registry import MODELS
assert len(MODELS.module_dict) > 150
assert 'transformers' not in sys.modules
"""
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
