# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""tools/model_converters/official_to_transmamba.py from the command line."""

import pytest
import torch
from helpers import run_tool_here
from official_files import (
    FILES,
    assert_same_logits,
    build,
    classifier,
    config_file,
    official_file,
    official_names,
    restricts_pickles,
)

from transmamba_mm.registry import MODELS

TOOL = 'model_converters/official_to_transmamba'


def test_the_tool_converts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = classifier('vmamba')
    model, mean = build(config), build(config, seed=1)
    averaged = official_names('vmamba', mean)
    official_file(tmp_path, 'vmamba', model, model_ema=averaged)
    args = (FILES['vmamba'], '--config', config_file(tmp_path, config))
    for options, expected in (((), mean), (('--no-ema',), model)):
        run_tool_here(monkeypatch, TOOL, *args, *options, '--out', 'out.pth')
        assert 'weights: out.pth' in capsys.readouterr().out
        loaded = MODELS.build(config)
        content = torch.load(tmp_path / 'out.pth', weights_only=True)
        loaded.load_state_dict(content['state_dict'])
        assert_same_logits(loaded, expected)


class Malicious:
    def __reduce__(self):
        return (print, ('code of the checkpoint ran',))


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('vim', 'error: '),
        pytest.param('code', 'holds more than data', marks=restricts_pickles),
        ('gone', 'does not exist'),
    ],
)
def test_mistakes_are_one_message(
    tmp_path, monkeypatch, capsys, name, message
):
    path = str(tmp_path / f'{name}.pth')
    if name == 'vim':  # 'vim_' would be evidence
        model = build(classifier('vim'))
        official_file(tmp_path, 'vim', model, f'{name}.pth')
        message += f"cannot tell vim from videomamba in '{path}'"
    elif name == 'code':
        torch.save(dict(model=Malicious()), path)
    config = config_file(tmp_path, classifier('vim'))
    with pytest.raises(SystemExit) as stop:
        run_tool_here(monkeypatch, TOOL, path, '--config', config)
    assert stop.value.code == 2
    output = capsys.readouterr()
    assert message in output.err
    assert 'code of the checkpoint ran' not in output.out
