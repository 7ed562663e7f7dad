# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Kills a run at each of its file operations, resumes it, and compares.

A training with an EMA and two best checkpoints is killed (SIGKILL) right
before every open, fsync, rename and removal that it does in its folder, one
after the other, and resumed. Weights, optimizer, evaluations and the list of
files must be those of a run that nobody killed::

    python tests/torture/kills.py             # all of them, some minutes
    python tests/torture/kills.py --every 20  # a sample, as in the suite
    python tests/torture/kills.py --twice     # the resumed run is killed, too
"""

import argparse
import collections
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from helpers import TinyPictures, tiny_runner, tiny_student
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from torch.utils.data import DataLoader

from transmamba_mm.registry import MODELS

EPOCHS = 5
WATCHED = {'open', 'os.remove', 'os.rename', 'os.rmdir', 'os.mkdir'}


class Killer:
    """Counts what this process does to files of a folder, may end it.

    Args:
        folder (Path): The folder.
        at (int, optional): Which operation is never done. Defaults to None.
    """

    def __init__(self, folder, at=None):
        self.folder, self.at = str(folder), at
        self.seen = collections.Counter()
        fsync = os.fsync

        def counted(handle):
            self.count('fsync', os.readlink(f'/proc/self/fd/{handle}'))
            fsync(handle)

        os.fsync = counted
        sys.addaudithook(self.audit)

    def audit(self, event, args):
        """Takes an event of Python's audit."""
        if event not in WATCHED or not isinstance(args[0], (str, os.PathLike)):
            return
        # Reading changes nothing.
        if event != 'open' or args[2] & (os.O_WRONLY | os.O_RDWR):
            self.count(event, str(args[0]))

    def count(self, event, path):
        """Counts an operation, and kills in front of the chosen one."""
        if not path.startswith(self.folder):
            return
        self.seen[event] += 1
        if self.seen.total() == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


class Scores(BaseMetric):
    """The mean score of the right class, and a number that goes both ways."""

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            label = sample['gt_label'].item()
            self.results.append(sample['pred_score'][label].item())

    def compute_metrics(self, results):
        mean = sum(results) / len(results)
        return dict(right=mean, digits=mean * 1e4 % 1)


class Notes(Hook):
    """Notes evaluations beside the folder, where nothing is killed."""

    priority = 'VERY_HIGH'

    def after_val_epoch(self, runner, metrics=None):
        with open(f'{runner.work_dir}.jsonl', 'a') as file:
            file.write(json.dumps([runner.epoch, metrics]) + '\n')


def train(folder):
    """Trains to the end, from the latest checkpoint if there is one."""
    torch.manual_seed(0)
    loader = dict(batch_size=4, collate_fn=pseudo_collate)
    backend = dict(type='LocalVisBackend')
    runner = tiny_runner(
        folder,
        MODELS.build(tiny_student(drop_rate=0.2)),
        max_epochs=EPOCHS,
        resume=True,
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.02)),
        param_scheduler=[dict(type='CosineAnnealingLR', T_max=EPOCHS)],
        val_cfg=dict(),
        val_dataloader=DataLoader(TinyPictures(8), **loader),
        val_evaluator=[Scores()],
        visualizer=dict(type='UniversalVisualizer', vis_backends=[backend]),
        default_hooks=dict(
            checkpoint=dict(
                type='transmamba.SafeCheckpointHook',
                interval=1,
                max_keep_ckpts=1,
                save_best=['right', 'digits'],
                rule='greater',
            ),
            epoch_seed=dict(type='transmamba.EpochSeedHook'),
        ),
        custom_hooks=[Notes(), dict(type='EMAHook', momentum=0.3)],
        experiment_name='kills',
    )
    runner.train()


def in_child(folder, at=None):
    """Trains in a process of its own.

    Returns:
        tuple[bool, Counter]: Whether it was killed, and what it has done.
    """
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1), os.dup2(silence, 2)
            killer = Killer(folder, at)
            train(folder)
            os.write(write, json.dumps(killer.seen).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(read) as pipe:
        seen = json.loads(pipe.read() or '{}')
    killed = os.WIFSIGNALED(status)
    if not killed and status:
        raise RuntimeError(f'a run failed, killed at {at}: see {folder}')
    return killed, collections.Counter(seen)


def outcome(folder):
    """All that a finished run leaves, but for paths and times."""
    files = {}
    for path in sorted(folder.glob('*.p*th*')) + sorted(folder.glob('*.part')):
        content = torch.load(path) if path.suffix == '.pth' else {}
        info = content.pop('message_hub', {}).get('runtime_info', {})
        best = {k: v for k, v in info.items() if k.startswith('best_')}
        meta = content.pop('meta', {})
        files[path.name] = dict(
            content,
            best={k: Path(str(v)).name for k, v in best.items()},
            time=(meta.get('epoch'), meta.get('iter')),
        )
    notes = Path(f'{folder}.jsonl').read_text().splitlines()
    evaluations = {}
    for epoch, metrics in map(json.loads, notes):
        assert evaluations.setdefault(epoch, metrics) == metrics, epoch
    pointer = Path((folder / 'last_checkpoint').read_text()).name
    return dict(files=files, evaluations=evaluations, pointer=pointer)


def difference(a, b, path=''):
    """The first place where two outcomes differ, or None."""
    if isinstance(a, torch.Tensor):
        return None if torch.equal(a, b) else path
    if isinstance(a, (dict, list, tuple)):
        items = a.items() if isinstance(a, dict) else enumerate(a)
        if len(a) != len(b) or (isinstance(a, dict) and a.keys() != b.keys()):
            return f'{path}: {a if len(a) < 9 else ""}'
        found = (difference(x, b[key], f'{path}.{key}') for key, x in items)
        return next(filter(None, found), None)
    return None if a == b else f'{path}: {b} instead of {a}'


def main(argv=None):
    """Does it all; exits with 1 if any outcome differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--every', type=int, default=1, metavar='N')
    parser.add_argument('--twice', action='store_true')
    args = parser.parse_args(argv)
    root = Path(tempfile.mkdtemp(prefix='kills-'))
    draw = random.Random(0)
    _, operations = in_child(root / 'whole')
    wanted, total = outcome(root / 'whole'), operations.total()
    assert len(wanted['evaluations']) == EPOCHS
    failures, kills = [], 0
    gc.freeze()  # what is imported is no garbage, in no child
    for at in range(1, total + 1, args.every):
        folder = root / f'at{at}'
        killed, _ = in_child(folder, at)
        assert killed, f'nothing to kill at {at}'
        kills += 1
        if args.twice:
            kills += in_child(folder, draw.randrange(1, total))[0]
        in_child(folder)
        found = difference(wanted, outcome(folder))
        if found:
            failures.append(f'killed at {at}: {found}')
            print(failures[-1], flush=True)
        else:
            shutil.rmtree(folder)
    print(f'{total} operations of a run: {dict(operations)}')
    print(f'{kills} kills, {len(failures)} with another outcome')
    if failures:
        raise SystemExit(f'see {root}')
    shutil.rmtree(root)


if __name__ == '__main__':
    main()
