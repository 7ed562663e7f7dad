# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Merged groups train as a group per parameter does."""

import copy
import itertools
import logging

import pytest
import torch
from helpers import tiny_runner, tiny_teacher
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmpretrain.engine.optimizers import (
    LearningRateDecayOptimWrapperConstructor,
)
from torch import nn

from transmamba_mm.engine import MergedGroupsOptimWrapperConstructor
from transmamba_mm.registry import MODELS

DEFAULT = 'DefaultOptimWrapperConstructor'
MERGED = 'transmamba.MergedGroupsOptimWrapperConstructor'
NORMS_AND_BIASES = dict(norm_decay_mult=0.0, bias_decay_mult=0.0)
# MMEngine has to be told what ours spares without a word.
TOKENS = {
    '.pos_embed': dict(decay_mult=0.0),
    '.cls_token': dict(decay_mult=0.0),
}
# Five kinds of options, none of them for parameters that are neighbours.
RATES = dict(
    **NORMS_AND_BIASES,
    custom_keys={
        **TOKENS,
        '.patch_embed': dict(lr_mult=0.1),
        'attn.qkv': dict(decay_mult=3.0),
        'ffn.layers.1': dict(lr_mult=0.0),
    },
)
DECAYS = dict(
    **NORMS_AND_BIASES,
    custom_keys={**TOKENS, 'attn.qkv': dict(decay_mult=3.0)},
)
SCHEDULE = [
    dict(type='LinearLR', start_factor=0.1, end=3, by_epoch=False),
    dict(type='CosineAnnealingLR', begin=3, end=12, by_epoch=False),
]
cpu_only = pytest.mark.skipif(
    get_device() != 'cpu', reason='bit-equality is a promise for the CPU'
)


def config(constructor, paramwise_cfg=RATES, optimizer=None, **kwargs):
    settings = dict(type='AdamW', lr=0.01, weight_decay=0.5, foreach=False)
    settings.update(optimizer or {})
    return dict(
        optimizer={k: v for k, v in settings.items() if v is not None},
        constructor=constructor,
        paramwise_cfg=copy.deepcopy(paramwise_cfg),
        **kwargs,
    )


def wrapper_of(model, constructor, *args, **kwargs):
    return build_optim_wrapper(model, config(constructor, *args, **kwargs))


def groups_of(model, *args, **kwargs):
    return wrapper_of(model, *args, **kwargs).optimizer.param_groups


def classifier():
    torch.manual_seed(0)
    return MODELS.build(tiny_teacher())


def options_by_name(model, groups):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: {k: v for k, v in group.items() if k != 'params'}
        for group in groups
        for parameter in group['params']
    }


class RatesHook(Hook):
    """Notes the learning rate of every parameter, every iteration."""

    def __init__(self):
        self.rates = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        groups = runner.optim_wrapper.optimizer.param_groups
        options = options_by_name(runner.model, groups)
        self.rates.append({name: o['lr'] for name, o in options.items()})


def train(work_dir, constructor, epochs=3, start=None, wrapper=None, **kwargs):
    """A run of two steps an epoch, resumed from a file if there is one."""
    hook = RatesHook()
    runner = tiny_runner(
        work_dir,
        classifier(),
        max_epochs=epochs,
        optim_wrapper=config(constructor, **(wrapper or {})),
        param_scheduler=copy.deepcopy(SCHEDULE),
        load_from=start and str(start),
        resume=start is not None,
        custom_hooks=[hook],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        **kwargs,
    )
    runner.train()
    runner.rates = hook.rates
    return runner


def assert_equal_weights(a, b, **tolerance):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for key in a:
        if tolerance:
            torch.testing.assert_close(a[key], b[key], **tolerance)
        else:
            assert torch.equal(a[key], b[key]), key


# -------------------------------------------------------------- the groups


@pytest.mark.parametrize('paramwise_cfg', [None, RATES])
def test_the_log_has_a_line_per_group(paramwise_cfg):
    model = nn.ModuleDict(dict(teacher=classifier(), student=classifier()))
    model.teacher.requires_grad_(False)
    lines, handler = [], logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        groups = groups_of(model, MERGED, paramwise_cfg)
        logger.info('parameter x is skipped since its requires_grad=False')
    finally:
        logger.removeHandler(handler)
    *ours, frozen, _ = lines
    assert len(ours) == len(groups)
    for group, line in zip(groups, ours):
        assert f': {len(group["params"])} parameters' in line
        assert f'weight_decay={group["weight_decay"]}' in line
    total = len(list(model.teacher.parameters()))
    assert frozen == f'parameters that do not train: {total} of teacher'


def test_options_are_those_of_the_default_constructor():
    model = classifier()
    theirs = groups_of(model, DEFAULT)
    ours = groups_of(model, MERGED)
    assert options_by_name(model, ours) == options_by_name(model, theirs)
    assert len(theirs) == len(list(model.parameters()))
    assert len(ours) == 6
    # In order of first appearance, and nothing twice.
    position = {p: i for i, g in enumerate(theirs) for p in g['params']}
    found = [[position[p] for p in group['params']] for group in ours]
    assert all(group == sorted(group) for group in found)
    firsts = [group[0] for group in found]
    assert firsts == sorted(firsts)
    assert sorted(itertools.chain(*found)) == list(range(len(theirs)))


def test_without_options_there_is_one_group_in_the_models_order():
    model = classifier()
    plain = dict(type='Adam', weight_decay=None)
    (group,) = groups_of(model, MERGED, None, plain)
    assert all(a is b for a, b in zip(group['params'], model.parameters()))


def test_frozen_parameters_are_in_no_group():
    model = classifier()
    model.backbone.patch_embed.requires_grad_(False)
    ours = options_by_name(model, groups_of(model, MERGED))
    assert ours == options_by_name(model, groups_of(model, DEFAULT))
    assert not any('patch_embed' in name for name in ours)


@pytest.mark.parametrize('constructor', [DEFAULT, MERGED])
def test_shared_parameters(constructor):
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    with pytest.raises(ValueError, match='more than one parameter group'):
        groups_of(model, constructor, NORMS_AND_BIASES)
    bypass = dict(NORMS_AND_BIASES, bypass_duplicate=True)
    groups = groups_of(model, constructor, bypass)
    assert sum(len(group['params']) for group in groups) == 5


def test_layer_wise_decay_as_the_second_base():
    class Both(
        MergedGroupsOptimWrapperConstructor,
        LearningRateDecayOptimWrapperConstructor,
    ):
        pass

    model = classifier()
    cfg = dict(NORMS_AND_BIASES, custom_keys=TOKENS, layer_decay_rate=0.5)
    theirs = groups_of(model, LearningRateDecayOptimWrapperConstructor, cfg)
    for group in theirs:
        del group['param_name']
    ours = groups_of(model, Both, cfg)
    assert options_by_name(model, ours) == options_by_name(model, theirs)
    # Stem, three layers, the last norm and the head: with and without decay.
    assert len(ours) == len({g['lr'] for g in theirs}) * 2 == 10


# ------------------------------------------------------------ the training


@cpu_only
@pytest.mark.parametrize(
    'more',
    [
        dict(),
        dict(type='transmamba.CpuAmpOptimWrapper'),
        dict(accumulative_counts=2),
    ],
    ids=['plain', 'amp', 'accumulated'],
)
def test_training_is_the_same_bit_by_bit(tmp_path, more):
    theirs = train(tmp_path / 'theirs', DEFAULT, wrapper=more)
    ours = train(tmp_path / 'ours', MERGED, wrapper=more)
    assert_equal_weights(ours.model, theirs.model)
    assert ours.rates == theirs.rates
    assert len(ours.rates) == 6
    # Warmed up from a tenth, and as different as their multipliers.
    assert len(set(ours.rates[-1].values())) == 3
    assert ours.rates[0] != ours.rates[-1]


@pytest.mark.parametrize(
    'more',
    [
        dict(optimizer=dict(foreach=True)),
        # The norm adds the gradients in another order. Adam would blow that
        # up where a gradient is nothing but rounding, as that of keys' biases.
        dict(
            optimizer=dict(type='SGD', foreach=True),
            clip_grad=dict(max_norm=0.1),
        ),
    ],
    ids=['adamw', 'sgd-clipped'],
)
def test_training_on_many_tensors_at_once(tmp_path, more):
    theirs = train(tmp_path / 'theirs', DEFAULT, wrapper=more)
    ours = train(tmp_path / 'ours', MERGED, wrapper=more)
    assert_equal_weights(ours.model, theirs.model, rtol=1e-4, atol=1e-5)
    assert ours.rates == theirs.rates


def test_learning_rates_scale_with_the_batch(tmp_path):
    scale = dict(auto_scale_lr=dict(base_batch_size=8, enable=True))
    theirs = train(tmp_path / 'theirs', DEFAULT, 1, **scale)
    ours = train(tmp_path / 'ours', MERGED, 1, **scale)
    assert ours.rates == theirs.rates
    plain = train(tmp_path / 'plain', MERGED, 1)
    name = 'head.layers.head.weight'
    assert ours.rates[0][name] == 0.5 * plain.rates[0][name] > 0


# ------------------------------------------------------------- resuming


@cpu_only
def test_resuming_our_own_run(tmp_path):
    whole = train(tmp_path / 'whole', MERGED, 4)
    train(tmp_path / 'part', MERGED, 2)
    start = tmp_path / 'part' / 'epoch_2.pth'
    resumed = train(tmp_path / 'rest', MERGED, 4, start)
    assert_equal_weights(resumed.model, whole.model)
    assert resumed.rates == whole.rates[4:]
    saved = resumed.optim_wrapper.state_dict()
    again = wrapper_of(classifier(), MERGED)
    again.load_state_dict(copy.deepcopy(saved))
    assert again.state_dict()['param_groups'] == saved['param_groups']
    for number, state in saved['state'].items():
        for key, value in state.items():
            loaded = again.state_dict()['state'][number][key]
            assert torch.equal(loaded, value)


@cpu_only
@pytest.mark.parametrize(
    ('paramwise_cfg', 'groups', 'kind', 'optimizer'),
    [
        (DECAYS, 4, 'OptimWrapper', None),
        (DECAYS, 4, 'transmamba.CpuAmpOptimWrapper', None),
        (
            *(dict(bypass_duplicate=True), 1, 'OptimWrapper'),
            dict(type='Adam', weight_decay=None),
        ),
    ],
    ids=['plain', 'amp', 'one-group'],
)
def test_resuming_a_run_of_the_default_constructor(
    tmp_path, paramwise_cfg, groups, kind, optimizer
):
    """It goes on as it would have, and so does what it writes."""
    more = dict(paramwise_cfg=paramwise_cfg, type=kind, optimizer=optimizer)
    whole = train(tmp_path / 'whole', DEFAULT, 5, wrapper=more)
    start = tmp_path / 'whole' / 'epoch_2.pth'
    train(tmp_path / 'next', MERGED, 3, start, wrapper=more)
    start = tmp_path / 'next' / 'epoch_3.pth'
    saved = torch.load(start)['optimizer']['param_groups']
    assert len(saved) == groups
    resumed = train(tmp_path / 'last', MERGED, 5, start, wrapper=more)
    assert_equal_weights(resumed.model, whole.model)
    assert resumed.rates == whole.rates[6:]
    names = dict(whole.model.named_parameters())
    for name, parameter in resumed.model.named_parameters():
        ours = resumed.optim_wrapper.optimizer.state[parameter]
        theirs = whole.optim_wrapper.optimizer.state[names[name]]
        assert (
            ours.keys() == theirs.keys() == {'step', 'exp_avg', 'exp_avg_sq'}
        )
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


FIX = 'optim_wrapper.constructor=DefaultOptimWrapperConstructor'


def test_learning_rates_that_differ_are_refused(tmp_path):
    train(tmp_path, DEFAULT, 1)
    with pytest.raises(ValueError, match=f'learning rates differ.*{FIX}'):
        train(tmp_path / 'next', MERGED, 2, tmp_path / 'epoch_1.pth')
    # The way out that the message names.
    train(tmp_path / 'next', DEFAULT, 2, tmp_path / 'epoch_1.pth')


def test_other_groups_than_the_configs_are_refused():
    model = classifier()
    started = wrapper_of(model, DEFAULT, DECAYS).state_dict()
    with pytest.raises(ValueError, match=f'groups them otherwise.*{FIX}'):
        wrapper_of(model, MERGED, NORMS_AND_BIASES).load_state_dict(started)


def test_learning_rates_may_differ_where_nothing_schedules_them():
    model = classifier()
    started = wrapper_of(model, DEFAULT)
    wrapper = wrapper_of(model, MERGED)
    wrapper.load_state_dict(started.state_dict())
    assert len(wrapper.optimizer.param_groups) == 6


def test_another_models_state_is_refused_as_ever():
    state = wrapper_of(nn.Linear(3, 3), DEFAULT, DECAYS).state_dict()
    with pytest.raises(ValueError, match='different number of parameter gr'):
        wrapper_of(classifier(), MERGED).load_state_dict(state)


def test_an_optimizer_that_reads_the_state_itself_refuses_it():
    """As ZeroRedundancyOptimizer does; it would take wrong numbers."""

    class Reader(torch.optim.AdamW):
        def load_state_dict(self, state_dict):
            super().load_state_dict(state_dict)

    model = classifier()
    state = wrapper_of(model, DEFAULT, DECAYS).state_dict()
    wrapper = wrapper_of(model, MERGED, DECAYS, dict(type=Reader))
    with pytest.raises(ValueError, match='different number of parameter gr'):
        wrapper.load_state_dict(state)
