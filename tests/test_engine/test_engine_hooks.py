# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Randomness that can be resumed."""

import gc
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import TinyPictures, tiny_runner, tiny_teacher
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.registry import FUNCTIONS as ROOT_FUNCTIONS
from torch.utils.data import DataLoader, Dataset
from torch.utils.data import _utils as torch_data

from transmamba_mm.engine import EpochSeedHook, hooks, seed_worker
from transmamba_mm.registry import FUNCTIONS, MODELS

# Bit-equal on a CPU; a GPU may add in another order.
EXACT = 0 if get_device() == 'cpu' else 1e-6


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


class Draws(Hook):
    """Notes three random numbers per iteration; may waste some first."""

    priority = 'LOWEST'

    def __init__(self, waste_in=None):
        self.waste_in = waste_in
        self.seen = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen[runner.iter] = draw()
        if runner.iter == self.waste_in:
            draw()


def draws_of(tmp_path, waste_in=None, seeded=True, seed=0, **kwargs):
    watch = Draws(waste_in)
    runner = tiny_runner(
        tmp_path,
        MODELS.build(tiny_teacher()),
        num=12,
        randomness=dict(seed=seed),
        custom_hooks=[watch, *([EpochSeedHook()] if seeded else [])],
        default_hooks=dict(checkpoint=None),
        **kwargs,
    )
    runner.train()
    return watch.seen


@pytest.mark.parametrize('seeded', [True, False])
def test_an_epoch_does_not_depend_on_the_one_before(tmp_path, seeded):
    runs = [
        draws_of(tmp_path, waste, seeded, max_epochs=2) for waste in (None, 1)
    ]
    assert runs[0][0] == runs[1][0]
    # Without the hook the number wasted in the first epoch shows.
    assert (runs[0][3] == runs[1][3]) == seeded
    if seeded:
        assert runs[0][4] == runs[1][4]
        assert not set(runs[0][0]) & set(runs[0][3])


def test_iteration_based_runs_are_seeded_every_iteration(tmp_path):
    loop = dict(train_cfg=dict(by_epoch=False, max_iters=3))
    runs = [draws_of(tmp_path, waste, **loop) for waste in (None, 1)]
    assert runs[0] == runs[1]
    assert len({x for values in runs[0].values() for x in values}) == 9


class NoisyPictures(TinyPictures):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        noise = 50 * torch.rand(1)
        sample['inputs'] = (sample['inputs'] + noise).clamp(0, 255).byte()
        return sample


def test_iteration_based_runs_resume_to_the_same_weights(
    tmp_path, monkeypatch
):
    # The loop leaves its workers running, and PyTorch waits so long for each.
    monkeypatch.setattr(torch_data, 'MP_STATUS_CHECK_INTERVAL', 0.1)

    def train(folder, iters, resume=False):
        torch.manual_seed(1)
        loader = DataLoader(
            NoisyPictures(16),
            batch_size=4,
            num_workers=2,
            collate_fn=pseudo_collate,
            worker_init_fn=seed_worker,
        )
        checkpoint = dict(
            type='transmamba.SafeCheckpointHook', by_epoch=False, interval=1
        )
        model = MODELS.build(tiny_teacher(drop_rate=0.3))
        tiny_runner(
            tmp_path / folder,
            model,
            train_dataloader=loader,
            train_cfg=dict(by_epoch=False, max_iters=iters),
            default_hooks=dict(checkpoint=checkpoint),
            custom_hooks=[EpochSeedHook()],
            resume=resume,
        ).train()
        return model.state_dict()

    # Within the second pass over 4 batches.
    whole = train('whole', 7)
    half = train('halves', 5)
    resumed = train('halves', 7, resume=True)
    assert not torch.equal(
        half['head.layers.head.bias'], whole['head.layers.head.bias']
    )
    gc.collect()
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, rtol=0, atol=EXACT)


def test_seeds_and_ranks_differ(tmp_path, monkeypatch):
    first = draws_of(tmp_path)
    assert not set(first[0]) & set(draws_of(tmp_path, seed=1)[0])
    monkeypatch.setattr(hooks, 'get_rank', lambda: 1)
    assert not set(first[0]) & set(draws_of(tmp_path)[0])


class Numbers(Dataset):
    """Draws its samples from all three generators, in the worker."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.tensor([*draw(), index], dtype=torch.float64)


def epoch_of(loader, epoch):
    EpochSeedHook._seed(SimpleNamespace(seed=4), epoch)
    return torch.cat(list(loader))


def test_workers_draw_anew_in_every_epoch():
    loader = DataLoader(
        Numbers(), batch_size=2, num_workers=2, worker_init_fn=seed_worker
    )
    first, second = epoch_of(loader, 0), epoch_of(loader, 1)
    assert torch.equal(first[:, 3], torch.arange(8.0).double())
    everything = torch.cat([first[:, :3], second[:, :3]])
    # No number twice: not in two epochs, workers, or generators.
    assert everything.unique().numel() == everything.numel()
    # A resumed run, which never saw the first epoch.
    draw()
    assert torch.equal(epoch_of(loader, 1), second)


def test_seed_worker_by_name():
    assert FUNCTIONS.get('transmamba.seed_worker') is seed_worker
    assert ROOT_FUNCTIONS.get('transmamba.seed_worker') is seed_worker
