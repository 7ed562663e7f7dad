# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
import copy
import socket

import pytest
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import OPTIM_WRAPPERS
from torch import distributed, nn

import transmamba_mm  # noqa: F401
from transmamba_mm.compat import CpuAmpOptimWrapper, prepare_cpu_launch

cpu_only = pytest.mark.skipif(
    get_device() != 'cpu', reason='for machines without an accelerator'
)


def build_wrapper(model, optimizer=torch.optim.AdamW, **kwargs):
    return OPTIM_WRAPPERS.build(
        dict(
            type='transmamba.CpuAmpOptimWrapper',
            optimizer=optimizer(model.parameters(), lr=0.05),
            **kwargs,
        )
    )


def train_step(model, wrapper, inputs):
    with wrapper.optim_context(model):
        out = model(inputs)
        loss = (out.float() - 1).square().mean()
    wrapper.update_params(loss)
    return out, loss.item()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1))


def test_amp_computes_in_bfloat16_and_learns(model):
    wrapper = build_wrapper(
        model, loss_scale='dynamic', clip_grad=dict(max_norm=1.0)
    )
    inputs = torch.randn(16, 4)
    losses = []
    for _ in range(20):
        out, loss = train_step(model, wrapper, inputs)
        losses.append(loss)
    assert out.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert losses[-1] < losses[0] / 2
    assert not torch.is_autocast_enabled('cpu')


def test_amp_accumulates_like_one_large_batch(model):
    other = copy.deepcopy(model)
    inputs = torch.randn(8, 4)
    whole = build_wrapper(model, torch.optim.SGD)
    parts = build_wrapper(other, torch.optim.SGD, accumulative_counts=2)
    parts.initialize_count_status(other, 0, 2)
    train_step(model, whole, inputs)
    for half in inputs.chunk(2):
        train_step(other, parts, half)
    assert parts.inner_count == 2
    for a, b in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)


def test_amp_resumes_its_own_state_and_that_of_the_gpu_wrapper(model):
    wrapper = build_wrapper(model)
    train_step(model, wrapper, torch.randn(4, 4))
    state = copy.deepcopy(wrapper.state_dict())
    assert 'loss_scaler' not in state
    state['loss_scaler'] = dict(scale=65536.0)
    resumed = build_wrapper(model)
    resumed.load_state_dict(state)
    assert 'loss_scaler' in state
    ours = resumed.optimizer.state_dict()['state']
    theirs = wrapper.optimizer.state_dict()['state']
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours[0]['exp_avg'], theirs[0]['exp_avg'])


def test_amp_refuses_float16_and_other_devices(model):
    for dtype in (None, 'bfloat16', torch.bfloat16):
        assert build_wrapper(model, dtype=dtype).cast_dtype == torch.bfloat16
    with pytest.raises(ValueError, match='bfloat16, not in float16'):
        build_wrapper(model, dtype='float16')
    wrapper = build_wrapper(model)
    with (
        pytest.raises(RuntimeError, match='use AmpOptimWrapper'),
        wrapper.optim_context(nn.Linear(1, 1, device='meta')),
    ):
        pass
    assert isinstance(wrapper, CpuAmpOptimWrapper)


def test_nothing_to_prepare_without_a_launcher():
    cfg = Config(dict(launcher='none'))
    assert not prepare_cpu_launch(cfg)
    assert not prepare_cpu_launch(Config(dict()))
    assert 'model_wrapper_cfg' not in cfg


@pytest.fixture
def no_rendezvous(monkeypatch):
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('MASTER_PORT', '0')
    yield monkeypatch
    if distributed.is_initialized():
        distributed.destroy_process_group()


LAUNCHES = dict(
    pytorch=dict(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0'),
    slurm=dict(SLURM_PROCID='0', SLURM_NTASKS='1'),
    mpi=dict(
        OMPI_COMM_WORLD_RANK='0',
        OMPI_COMM_WORLD_SIZE='1',
        OMPI_COMM_WORLD_LOCAL_RANK='0',
    ),
)


@cpu_only
@pytest.mark.parametrize('launcher', LAUNCHES)
def test_starts_gloo_for_every_launcher(no_rendezvous, launcher):
    # Set through monkeypatch, to be removed afterwards.
    no_rendezvous.setenv('RANK', '0')
    no_rendezvous.setenv('WORLD_SIZE', '1')
    no_rendezvous.setenv('LOCAL_RANK', '0')
    no_rendezvous.setenv('MASTER_ADDR', '127.0.0.1')
    for name, value in LAUNCHES[launcher].items():
        no_rendezvous.setenv(name, value)
    cfg = Config(
        dict(
            launcher=launcher,
            find_unused_parameters=True,
            env_cfg=dict(dist_cfg=dict(backend='nccl', timeout=60)),
        )
    )
    assert prepare_cpu_launch(cfg)
    assert distributed.get_backend() == 'gloo'
    assert cfg.model_wrapper_cfg.device_ids is None
    assert cfg.model_wrapper_cfg.find_unused_parameters
    assert prepare_cpu_launch(cfg)


@cpu_only
def test_explains_a_missing_launcher(no_rendezvous):
    with pytest.raises(RuntimeError, match='--launcher pytorch'):
        prepare_cpu_launch(Config(dict(launcher='pytorch')))


@cpu_only
def test_keeps_the_users_wrapper(no_rendezvous):
    no_rendezvous.setattr(distributed, 'is_initialized', lambda: True)
    cfg = Config(
        dict(launcher='pytorch', model_wrapper_cfg=dict(static_graph=True))
    )
    assert prepare_cpu_launch(cfg)
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel', static_graph=True, device_ids=None
    )
    cfg.model_wrapper_cfg = dict(type='MMFullyShardedDataParallel')
    assert prepare_cpu_launch(cfg)
    assert 'device_ids' not in cfg.model_wrapper_cfg
    no_rendezvous.undo()


@cpu_only
@pytest.mark.parametrize('rank', ['0', '1'])
def test_does_not_wait_long_for_a_process_that_never_starts(
    no_rendezvous, rank
):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    settings = dict(RANK=rank, WORLD_SIZE='2', LOCAL_RANK='0')
    settings.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    for name, value in settings.items():
        no_rendezvous.setenv(name, value)
    cfg = dict(launcher='pytorch', env_cfg=dict(dist_cfg=dict(timeout=1)))
    with pytest.raises(RuntimeError, match=r'not all 2 processes came .* 1 s'):
        prepare_cpu_launch(Config(cfg))
