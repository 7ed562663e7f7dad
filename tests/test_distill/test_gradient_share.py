# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""GradientShareHook: shares by hand, and a training that does not notice."""

import json

import pytest
import torch
from distill_cases import method, of_methods
from helpers import snapshot, tiny_batch, tiny_runner, tiny_student
from torch import distributed

from transmamba_mm.distill import DistillScheduleHook, GradientShareHook
from transmamba_mm.distill.gradient_share import gradient_shares
from transmamba_mm.distill.hooks import refuse_sharded
from transmamba_mm.registry import MODELS

MIXUP = dict(augments=[dict(type='Mixup', alpha=0.8)])
PLAIN = dict(mean=[0.0] * 3, std=[255.0] * 3, num_classes=3)
HOOK = [GradientShareHook(interval=1)]
TWO = (
    method('LogitsKD', name='kl', loss_weight=0.7),
    method('HiddenStates', loss_weight=0.2, channels='learned'),
)


def is_mixer(name):
    return '.mamba.' in name or '.norm.' in name


def group_of(name):
    if name.startswith('head.'):
        return 'head'
    return 'mixers' if is_mixer(name) else 'rest'


def test_shares_are_those_of_plain_backward_passes(make):
    model = make(distiller=of_methods(*TWO))
    batch = tiny_batch()
    shares = gradient_shares(model, model(*batch, mode='loss'))
    assert set(shares) == {'all', 'mixers', 'head', 'rest'}

    norms = {}
    names = list(shares['all'])
    assert names == ['student.loss', 'distill.loss_kl', 'distill.loss_hidden']
    for name in names:
        model.zero_grad()
        model(*batch, mode='loss')[name].backward()
        for key, parameter in model.student.named_parameters():
            if parameter.grad is None:
                continue
            square = parameter.grad.square().sum().item()
            for group in ('all', group_of(key)):
                by_loss = norms.setdefault(group, dict.fromkeys(names, 0.0))
                by_loss[name] += square
    for group, by_loss in shares.items():
        total = sum(x**0.5 for x in norms[group].values())
        for name, share in by_loss.items():
            wanted = norms[group][name] ** 0.5 / total
            assert share == pytest.approx(wanted, rel=1e-4, abs=1e-7)
        assert sum(by_loss.values()) == pytest.approx(1)
    assert shares['head']['distill.loss_hidden'] == 0
    assert all(p.grad is None for p in model.teacher.parameters())


def train(make, work_dir, hooks, **kwargs):
    student = tiny_student(
        arch=dict(embed_dims=12, num_layers=2, layers_with_dwconv=(0,)),
        stem='conv',
        drop_rate=0.5,
        drop_path_rate=0.5,
        with_cp=True,
    )
    student.update(train_cfg=MIXUP, data_preprocessor=PLAIN)
    model = make(architecture=student, distiller=of_methods(*TWO, **kwargs))
    torch.manual_seed(6)
    runner = tiny_runner(
        work_dir,
        model,
        num=16,
        custom_hooks=[DistillScheduleHook(), *hooks],
        visualizer=dict(
            type='UniversalVisualizer',
            vis_backends=[dict(type='LocalVisBackend')],
        ),
    )
    runner.train()
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [x for x in lines if any('gradient_share' in key for key in x)]
    return snapshot(model), torch.get_rng_state(), rows


def test_training_is_the_same_bit_by_bit(make, tmp_path):
    """With dropout, BatchNorm, mixed images and checkpointing."""
    hook = [GradientShareHook(interval=2)]
    plain, randomness, none = train(make, tmp_path / 'plain', [])
    state, random_too, rows = train(make, tmp_path / 'hook', hook)
    assert any('running_mean' in key for key in state)
    for key, value in plain.items():
        assert torch.equal(value, state[key]), key
    assert torch.equal(randomness, random_too)
    assert none == []
    assert [row['step'] for row in rows] == [2, 4]
    shares = [v for k, v in rows[0].items() if k.startswith('gradient_share')]
    assert len(shares) == 3 * 4
    assert sum(shares) == pytest.approx(4)


def test_what_a_phase_holds_has_no_share(make, tmp_path):
    phases = [dict(end=1.0, methods=['kl', 'hidden'], trains='mixers')]
    *_, rows = train(make, tmp_path, HOOK, phases=phases)
    groups = {key.split('/')[1] for key in rows[0] if '/' in key}
    assert groups == {'all', 'mixers'}


def test_idle_without_a_distillation(tmp_path):
    tiny_runner(
        tmp_path, MODELS.build(tiny_student()), custom_hooks=HOOK
    ).train()
    with pytest.raises(ValueError, match='interval'):
        GradientShareHook(interval=0)


def test_shared_weights_are_refused(tmp_path):
    fsdp = pytest.importorskip('torch.distributed.fsdp')
    if 'fully_shard' not in vars(fsdp):
        pytest.skip('PyTorch is older than 2.6')
    distributed.init_process_group(
        'gloo', f'file://{tmp_path}/store', rank=0, world_size=1
    )
    try:
        model = torch.nn.Linear(2, 2)
        refuse_sharded(model, 'A hook')
        mesh = distributed.device_mesh.init_device_mesh('cpu', (1,))
        fsdp.fully_shard(model, mesh=mesh)
        with pytest.raises(ValueError, match='A hook needs whole weights'):
            refuse_sharded(model, 'A hook')
    finally:
        distributed.destroy_process_group()
