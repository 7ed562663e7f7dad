# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A run stops at the first value that is not finite, and says which."""

import pytest
import torch
from helpers import (
    TinyPictures,
    save_teacher,
    tiny_distiller,
    tiny_runner,
    tiny_student,
    tiny_teacher,
)
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from torch.utils.data import DataLoader

from transmamba_mm.distill import TransMambaDistill
from transmamba_mm.engine import FiniteHook, NonFiniteError, finite
from transmamba_mm.registry import MODELS

HOOKS = dict(
    checkpoint=dict(
        type='transmamba.SafeCheckpointHook', interval=1, max_keep_ckpts=2
    )
)


class OnePixel(TinyPictures):
    """One pixel of one picture is NaN from some epoch on."""

    def __init__(self, epoch):
        super().__init__(8)
        self.epoch, self.served = epoch, 0

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        sample['data_samples'].set_field(
            f'{index}.png', 'img_path', field_type='metainfo'
        )
        sample['inputs'] = sample['inputs'].float()
        if index == 5 and self.served // len(self) + 1 >= self.epoch:
            sample['inputs'][0, 0, 0] = torch.nan
        self.served += 1
        return sample


def run(tmp_path, *hooks, num=8, epochs=5, loader=None, model=None, **kwargs):
    if loader is not None:
        kwargs['train_dataloader'] = loader
    runner = tiny_runner(
        tmp_path,
        model or MODELS.build(tiny_teacher()),
        max_epochs=epochs,
        num=num,
        custom_hooks=list(hooks),
        default_hooks=HOOKS,
        **kwargs,
    )
    runner.train()
    return runner


@pytest.mark.parametrize('interval', [None, 2])
def test_one_bad_pixel(tmp_path, interval):
    loader = DataLoader(OnePixel(3), batch_size=4, collate_fn=pseudo_collate)
    message = (
        r'^loss is not finite at iteration 6 \(epoch 3\): training stops. '
        r"Image 1 of its batch is not finite: '5.png'$"
    )
    with pytest.raises(NonFiniteError, match=message):
        run(tmp_path, FiniteHook(interval), loader=loader)
    kept = sorted(path.name for path in tmp_path.glob('*.pth'))
    assert kept == ['epoch_1.pth', 'epoch_2.pth']
    for name in kept:
        state = torch.load(tmp_path / name)['state_dict']
        assert not list(finite.non_finite(state))


class Diverge(Hook):
    """Makes the weights of an iteration infinite."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.iteration:
            next(runner.model.parameters()).data.fill_(float('inf'))


@pytest.mark.parametrize('interval', [1, 3, 100])
def test_the_first_bad_iteration_is_named(tmp_path, interval):
    """However seldom the device is waited for."""
    message = r'at iteration 4 \(epoch 1\): .*lower the learning rate'
    with pytest.raises(NonFiniteError, match=message):
        run(tmp_path, FiniteHook(interval), Diverge(4), num=40, epochs=1)
    assert not list(tmp_path.glob('*.pth'))


class LastStep(Hook):
    """Spoils the weights after the last iteration of an epoch."""

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        if runner.iter == 3:
            next(runner.model.parameters()).data[0] = float('nan')


@pytest.mark.parametrize('hook', [FiniteHook(2), None])
def test_iterations_are_counted_from_one_without_epochs(tmp_path, hook):
    """By the loss of the next iteration, and by a checkpoint."""
    settings = dict(
        train_cfg=dict(by_epoch=False, max_iters=6),
        default_hooks=dict(
            checkpoint=dict(
                type='transmamba.SafeCheckpointHook',
                by_epoch=False,
                interval=2,
            )
        ),
    )
    what = (
        'loss is not finite at iteration 5 '
        if hook
        else (r'backbone.cls_token is not finite after iteration 4:')
    )
    with pytest.raises(NonFiniteError, match=what):
        runner = tiny_runner(
            tmp_path,
            MODELS.build(tiny_teacher()),
            custom_hooks=[hook, Diverge(5)] if hook else [LastStep()],
            **settings,
        )
        runner.train()
    saved = ['iter_2.pth', 'iter_4.pth'] if hook else ['iter_2.pth']
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == saved


def test_weights_are_looked_at_after_an_epoch(tmp_path):
    message = r'parameter backbone.cls_token is not finite after iteration 4'
    with pytest.raises(NonFiniteError, match=message):
        run(tmp_path, FiniteHook(), LastStep())
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_1.pth']


class Skipping(OptimWrapper):
    """Skips steps with infinite gradients, as a scaler of float16 does."""

    def update_params(self, loss, *args, **kwargs):
        if loss.isfinite():
            super().update_params(loss, *args, **kwargs)


class Overflow(Hook):
    """Losses of some iterations are infinite; weights are not."""

    def __init__(self, iterations):
        self.iterations = iterations

    def before_train(self, runner):
        compute = runner.model.loss

        def loss(*args, **kwargs):
            factor = 1.0
            if runner.iter + 1 in self.iterations:
                factor = float('inf')
            return {k: factor * v for k, v in compute(*args, **kwargs).items()}

        runner.model.loss = loss


@pytest.mark.parametrize(
    ('iterations', 'stops'), [((2, 3, 5), False), (range(2, 50), True)]
)
def test_skipped_steps_are_legitimate(
    tmp_path, monkeypatch, iterations, stops
):
    monkeypatch.setattr(finite, '_scales_gradients', lambda runner: True)
    settings = dict(
        num=160,
        epochs=1,
        optim_wrapper=Skipping(
            torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        ),
    )
    hooks = FiniteHook(), Overflow(iterations)
    if not stops:
        run(tmp_path, *hooks, **settings)
        assert (tmp_path / 'epoch_1.pth').exists()
        return
    with pytest.raises(NonFiniteError, match='at iteration 32 '):
        run(tmp_path, *hooks, **settings)


def test_names_of_what_is_not_finite():
    content = dict(
        a=[torch.ones(2), torch.tensor([1.0, torch.nan])],
        b=dict(c=torch.tensor(torch.inf), d=torch.tensor(3), e='x'),
    )
    assert list(finite.non_finite(content)) == ['a.1', 'b.c']


@pytest.mark.parametrize(
    ('state', 'preprocessor', 'message'),
    [
        (
            {'backbone.layers.1.ln1.weight': float('nan')},
            dict(mean=[0.0], std=[1.0]),
            r'^loss, distill.loss_tm is not finite at iteration 1 .*'
            r'backbone.layers.1.ln1.weight of the teacher is not finite',
        ),
        (
            {},
            dict(mean=[0.0] * 3, std=[1.0, 0.0, 1.0]),
            r'^loss, student.loss, .* iteration 1 .*data_preprocessor.std$',
        ),
    ],
    ids=['teacher', 'std'],
)
def test_what_is_wrong_from_the_start(tmp_path, state, preprocessor, message):
    path = save_teacher(tmp_path / 'teacher.pth')
    weights = torch.load(path)
    for key, value in state.items():
        weights[key][0] = value
    torch.save(weights, path)
    model = TransMambaDistill(
        tiny_student(),
        tiny_teacher(),
        tiny_distiller(),
        teacher_ckpt=path,
        data_preprocessor=preprocessor,
    )
    # However seldom it looks.
    with pytest.raises(NonFiniteError, match=message):
        run(tmp_path / 'run', FiniteHook(100), model=model)
    assert not list(tmp_path.glob('run/*.pth'))
