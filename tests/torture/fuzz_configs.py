# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Changes one setting of a whole distillation at a time, and trains.

Each mutant runs through ``tools/train.py`` in a process of its own, one epoch
of a few digits. It may train, or be refused in one line with exit status 2; a
traceback, a crash, and NaN or a misspelt name that trains are reported::

    python tests/torture/fuzz_configs.py --number 1000 --out fuzz.json

What was changed, how it ended and the last line are in ``--out``.
"""

import argparse
import collections
import copy
import gc
import json
import math
import os
import random
import resource
import runpy
import signal
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from helpers import CONFIGS, TOOLS, save_teacher, tiny_distiller
from mmengine.config import Config

from transmamba_mm.datasets import Digits
from transmamba_mm.utils import cli

SECONDS = 60  # of a processor
MEMORY = 8 << 30
# What this script needs, or training does not read.
KEPT = ('custom_imports', 'default_scope', 'vis_backends')
# For testing and several processes, which are not done here.
UNUSED = ('test_dataloader', 'test_evaluator', 'test_cfg', 'dist_cfg')
# What is called as one likes.
FREE = ('default_hooks', 'connectors')
STUDENTS = dict(
    vim=dict(
        type='transmamba.VisionMamba',
        arch=dict(embed_dims=32, num_layers=2, ffn_ratio=2),
        img_size=16,
        patch_size=4,
        mixer_cfg=dict(d_state=4),
    ),
    vmamba=dict(
        type='transmamba.VMamba',
        arch=dict(embed_dims=16, depths=(1, 1), mlp_ratio=2),
        img_size=16,
        patch_size=4,
    ),
)


def bases(teacher_ckpt):
    """Configs by family, small enough to train in a moment."""
    found = {}
    for family, name in (
        ('plain_mamba', 'transmamba_deit_pmamba_digits.py'),
        ('vim', 'transmamba_deit_pmamba_digits_paper.py'),
        ('vmamba', 'logits-kd_deit_pmamba_digits.py'),
    ):
        cfg = Config.fromfile(CONFIGS / 'quickstart' / name).to_dict()
        cfg['model']['teacher_ckpt'] = teacher_ckpt
        cfg['train_cfg']['max_epochs'] = 1
        cfg['train_dataloader']['dataset']['fraction'] = 0.05
        loader = cfg['val_dataloader']
        loader['dataset'] = dict(
            type='transmamba.FractionDataset',
            fraction=0.05,
            dataset=loader['dataset'],
        )
        cfg['test_dataloader'] = copy.deepcopy(loader)
        if family in STUDENTS:
            student = cfg['model']['architecture']
            student['backbone'] = copy.deepcopy(STUDENTS[family])
            student['head']['in_channels'] = 32
            cfg['custom_hooks'] = []
        if family == 'vmamba':
            cfg['model']['distiller'] = tiny_distiller(tau=0.1)
        # The rest are variables of the files.
        found[family] = {
            key: value for key, value in cfg.items() if key in cli.RUNNER_KEYS
        }
    return found


def places(value, path=()):
    """Paths of all settings below the top level."""
    items = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    for key, item in items:
        if key not in UNUSED and (path or key not in KEPT):
            yield (*path, key)
            yield from places(item, (*path, key))


def misspelt(draw, name):
    """Swaps two neighbours, or drops a letter."""
    at = draw.randrange(max(1, len(name) - 1))
    swapped = name[:at] + name[at : at + 2][::-1] + name[at + 2 :]
    return swapped if swapped != name else name[:at] + name[at + 1 :]


def mutate(draw, cfg):
    """Changes one setting in place; returns what was changed, and how."""
    path = draw.choice(list(places(cfg)))
    owner = cfg
    for key in path[:-1]:
        if isinstance(owner[key], tuple):
            owner[key] = list(owner[key])
        owner = owner[key]
    key, value = path[-1], owner[path[-1]]
    kinds = ['none', 'text', 'negative', 'nan', 'list', 'dict', 'true']
    kinds += ['zero', 'delete']
    if isinstance(key, str) and path[-2:-1] not in [(x,) for x in FREE]:
        kinds += ['misspelt'] * 2
    if isinstance(value, str):
        kinds += ['wrong name'] * 3
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        kinds += ['larger', 'smaller'] * 2
    kind = draw.choice(kinds)
    if kind == 'delete':
        del owner[key]
    elif kind == 'misspelt':
        owner[misspelt(draw, key)] = owner.pop(key)
    else:
        owner[key] = {
            'none': None,
            'text': 'something',
            'negative': -1,
            'nan': math.nan,
            'list': [],
            'dict': {},
            'true': True,
            'zero': 0,
            'wrong name': misspelt(draw, str(value)),
            'larger': value * 3 + 1 if kind == 'larger' else 0,
            'smaller': value / 7 if kind == 'smaller' else 0,
        }[kind]
    return '.'.join(map(str, path)), kind


def train(cfg, folder):
    """Runs ``tools/train.py`` on a config, in this process."""
    cfg = Config(dict(cfg, work_dir=str(folder), experiment_name='fuzz'))
    # What a file would be read to, and no second spent on formatting it.
    Config.fromfile = staticmethod(lambda path: cfg)
    Config.pretty_text = property(repr)
    sys.argv = ['train.py', __file__]
    runpy.run_path(str(TOOLS / 'train.py'), run_name='__main__')


def in_child(cfg, folder):
    """Trains in a process of its own; returns its status and output."""
    log = folder / 'log'
    pid = os.fork()
    if not pid:
        status = 0
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT)
            os.dup2(output, 1), os.dup2(output, 2)
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            train(cfg, folder)
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
            status = 1
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    return status, log.read_text(errors='replace')


def verdict(status, output, kind):
    """How a mutant ended, and the line that tells."""
    lines = [line for line in output.splitlines() if line.strip()] or ['']
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return ('too long' if number == signal.SIGXCPU else 'crash'), lines[-1]
    code = os.WEXITSTATUS(status)
    if code == 2 and lines[-1].startswith('error: '):
        return 'refused', lines[-1]
    if code:
        return 'traceback', lines[-1]
    silent = kind in ('nan', 'misspelt', 'wrong name')
    return ('trains, but should not' if silent else 'trains'), ''


def main(argv=None):
    """Does it all; exits with 1 if a mutant crashed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--number', type=int, default=1000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', default='fuzz.json')
    args = parser.parse_args(argv)
    draw, found = random.Random(args.seed), []
    len(Digits())  # what it imports is imported once, not by each
    gc.freeze()  # and is no garbage, which every dataset collects
    with tempfile.TemporaryDirectory(prefix='fuzz-') as root:
        teacher = Config.fromfile(CONFIGS / '_base_/teachers/deit_digits.py')
        teacher = dict(teacher.teacher, type='mmpretrain.ImageClassifier')
        configs = bases(save_teacher(Path(root, 'teacher.pth'), teacher))
        for family, cfg in configs.items():
            folder = Path(root, family)
            folder.mkdir()
            status, output = in_child(cfg, folder)
            assert status == 0, f'{family}: {output[-2000:]}'
        for number in range(args.number):
            family = draw.choice(list(configs))
            cfg = copy.deepcopy(configs[family])
            path, kind = mutate(draw, cfg)
            folder = Path(root, str(number))
            folder.mkdir()
            ending, line = verdict(*in_child(cfg, folder), kind)
            found.append([family, path, kind, ending, line])
            Path(args.out).write_text(json.dumps(found, indent=0))
    endings = collections.Counter(ending for *_, ending, _ in found)
    print(f'{len(found)} mutants: {dict(endings)}')
    if endings['crash']:
        raise SystemExit(1)


if __name__ == '__main__':
    main()
