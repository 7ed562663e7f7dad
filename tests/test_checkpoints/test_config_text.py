# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Configs in checkpoints are read as data, all of ours are."""

import os
from pathlib import Path

import pytest
from hostile_files import COMMAND, MARK
from mmengine.config import Config
from mmengine.config import config as mmengine_config
from yapf.yapflib.yapf_api import FormatCode

from transmamba_mm.checkpoints import (
    CheckpointError,
    read_config_text,
    write_config,
)

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
CALL = f"__import__('os').system('{COMMAND}')"


def test_dumped_configs_are_read_as_they_are(monkeypatch):
    monkeypatch.setattr(mmengine_config, 'FormatCode', FormatCode)
    for path in sorted(CONFIGS.glob('quickstart/*.py')):
        cfg = Config.fromfile(path)
        assert read_config_text(cfg.pretty_text) == cfg.to_dict()


def test_keys_that_are_no_names_are_read():
    keys = {'head.logit_scale': dict(lr_mult=0.1), '.cls_token': {}, 'a': 1}
    cfg = Config(dict(optim_wrapper=dict(custom_keys=keys)))
    assert read_config_text(cfg.pretty_text) == cfg.to_dict()


@pytest.mark.parametrize(
    'text',
    [
        f'model = {CALL}',
        CALL,
        'import os',
        'model = dict(**{CALL})',
        f'model = [{{1: {CALL}}}]',
        f'model = dict({CALL})',
        f'model = dict({{1: {CALL}}})',
        'model = dict({}, {})',
        'model = dict([(1, 2)])',
        f'model = dict(a={CALL})',
        f'model = dict({{1: {CALL}}})',
        'model = dict({1: 2}, {3: 4})',
        f'model = f"{{{CALL}}}"',
        f'model = (lambda: {CALL})()',
        f'model = [{CALL} for i in (1,)]',
        'a.b = 1',
        'a = b = 1',
        'a += 1',
        '_base_ = "evil.py"',
        "a = '{{ fileDirname }}'",
        """a = 'x{{$NO:\\';__import__("os")#}}'""",
        'a = ' + '[' * 500,
        'a = ' + '-' * 99999 + '1',
        'a = ' + '9' * 9999,
        'a = b',
        '\0',
        'class A: pass',
        5,
        None,
    ],
    ids=lambda text: str(text)[:30],
)
def test_anything_else_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match='no plain data'):
        read_config_text(text)
    assert not os.path.exists(MARK)


@pytest.mark.parametrize(
    'key', [f"x': {CALL}, 'y", 'a\\', '{{ fileBasename }}', "'"]
)
def test_no_key_breaks_out_of_a_written_config(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    cfg = Config(dict(model={key: 1}))
    with pytest.raises((CheckpointError, SyntaxError)):
        write_config(cfg, 'out.py')
    assert not os.path.exists(MARK) and not os.path.exists('out.py')
