# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
import argparse
from pathlib import Path

import mmpretrain
import pytest
from mmengine.config import Config

from transmamba_mm.checkpoints import CheckpointError
from transmamba_mm.utils import cli


@pytest.mark.parametrize(
    ('key', 'meant'),
    [
        ('train_dataloder', 'train_dataloader'),
        ('param_schedulers', 'param_scheduler'),
        ('custom_hook', 'custom_hooks'),
        ('optim_wraper', 'optim_wrapper'),
        ('modle', 'model'),
        ('load_form', 'load_from'),
        ('testcfg', 'test_cfg'),
    ],
)
def test_typos_are_refused_with_a_suggestion(key, meant):
    with pytest.raises(cli.UsageError, match=f"'{key}'.*'{meant}'"):
        cli.check_config_keys({'model': 1, key: 2})


def test_all_typos_come_in_one_error():
    with pytest.raises(cli.UsageError) as error:
        cli.check_config_keys(['modle', 'val_evalutor'])
    assert "'modle'" in str(error.value)
    assert "'val_evalutor'" in str(error.value)


def test_own_variables_are_not_typos():
    cli.check_config_keys(
        ['student', 'teacher', 'train_pipeline', '_models', 'bgr_mean']
    )


def test_no_config_of_mmpretrain_is_refused():
    """Top-level names of all its configs, read without running them."""
    configs = Path(mmpretrain.__file__).parent / '.mim' / 'configs'
    names = set()
    for path in configs.rglob('*.py'):
        for line in path.read_text().splitlines():
            name, equals, _ = line.partition(' = ')
            if equals and name.isidentifier():
                names.add(name)
    assert 'train_dataloader' in names
    cli.check_config_keys(names)


def test_local_files_are_checked_and_urls_are_not(tmp_path):
    cli.check_local_file(str(tmp_path), 'folder')
    cli.check_local_file('https://example.org/a.pth', 'checkpoint')
    cli.check_local_file(None, 'checkpoint')
    with pytest.raises(cli.UsageError, match="checkpoint 'b' does not"):
        cli.check_local_file('b', 'checkpoint')


def test_amp_chooses_the_wrapper_of_the_machine(monkeypatch):
    for device, wrapper in (
        ('cpu', 'transmamba.CpuAmpOptimWrapper'),
        ('cuda', 'AmpOptimWrapper'),
    ):
        monkeypatch.setattr(cli, 'get_device', lambda device=device: device)
        old = dict(
            type='AmpOptimWrapper',
            dtype='float16',
            clip_grad=dict(max_norm=1),
        )
        cfg = Config(dict(optim_wrapper=old))
        cli.enable_amp(cfg)
        assert cfg.optim_wrapper.type == wrapper
        assert cfg.optim_wrapper.clip_grad.max_norm == 1
        assert ('dtype' in cfg.optim_wrapper) == (device == 'cuda')
    cfg = Config(dict(optim_wrapper=dict(type='ApexOptimWrapper')))
    with pytest.raises(cli.UsageError, match='ApexOptimWrapper'):
        cli.enable_amp(cfg)
    with pytest.raises(cli.UsageError, match='optim_wrapper'):
        cli.enable_amp(Config(dict()))


def test_dataloader_defaults():
    cfg = Config(
        dict(
            a=dict(num_workers=2, pin_memory=True),
            b=dict(num_workers=0, persistent_workers=True),
            c=None,
        )
    )
    args = argparse.Namespace(no_pin_memory=True)
    cli.set_dataloader_defaults(cfg, 'abcd', args, persistent_workers=True)
    assert cfg.a.persistent_workers and not cfg.b.persistent_workers
    assert not cfg.a.pin_memory
    assert cfg.b.collate_fn.type == 'default_collate'
    args.no_persistent_workers = True
    cli.set_dataloader_defaults(cfg, 'a', args)
    assert not cfg.a.persistent_workers


def test_usage_errors_end_a_tool_without_traceback(capsys):
    def main():
        raise cli.UsageError('no such thing')

    with pytest.raises(SystemExit) as end:
        cli.run_main(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == 'error: no such thing\n'


def test_an_error_is_one_line_that_a_terminal_can_show(capsys):
    def main():
        raise CheckpointError('one\n\ntwo\x1b[2J three')

    with pytest.raises(SystemExit) as end:
        cli.run_main(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == 'error: one two [2J three\n'


def test_a_work_dir_that_cannot_be_made(tmp_path):
    (tmp_path / 'file').write_text('')
    cfg = Config(dict(work_dir=str(tmp_path / 'file')))
    with pytest.raises(cli.UsageError, match='file'), cli.locked(cfg):
        pass
