# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Default hooks that are dropped by setting them to None."""

import pytest
from helpers import CONFIGS, tiny_runner, tiny_teacher
from mmengine.config import Config, DictAction
from mmpretrain.registry import HOOKS

from transmamba_mm.registry import MODELS

RUNTIME = CONFIGS / '_base_/default_runtime.py'
NAMES = list(Config.fromfile(RUNTIME).default_hooks)


@pytest.mark.parametrize('names', [*([name] for name in NAMES), NAMES])
def test_any_hook_may_be_dropped(tmp_path, names):
    """As `--cfg-options default_hooks.NAME=None` does it."""
    cfg = Config.fromfile(RUNTIME)
    dropped = [HOOKS.get(cfg.default_hooks[name].type) for name in names]
    value = DictAction._parse_iterable('None')
    cfg.merge_from_dict({f'default_hooks.{name}': value for name in names})
    model = MODELS.build(tiny_teacher())
    runner = tiny_runner(tmp_path, model, default_hooks=cfg.default_hooks)
    runner.train()
    assert runner.iter == 2
    assert not {type(hook) for hook in runner.hooks} & set(dropped)
    kept = [hook for name, hook in cfg.default_hooks.items() if hook]
    assert {HOOKS.get(hook.type) for hook in kept} <= {
        type(hook) for hook in runner.hooks
    }
    assert (tmp_path / 'epoch_1.pth').exists() == ('checkpoint' not in names)
