# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Data-parallel and mixed-precision training on machines without a GPU.

Cures:      (1) with any launcher, MMEngine selects a CUDA device and wraps
            the model with ``device_ids=[rank]``; both fail on a CPU.
            (2) ``AmpOptimWrapper`` refuses to run on a CPU.
Versions:   mmengine <= 0.10.7.
Delete:     when MMEngine initialises gloo by itself on a CPU, and when its
            ``AmpOptimWrapper`` supports bfloat16 there.
"""

from __future__ import annotations

import atexit
import gc
import os
import subprocess
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from torch import distributed, nn

from transmamba_mm.registry import OPTIM_WRAPPERS

__all__ = ['CpuAmpOptimWrapper', 'prepare_cpu_launch']

_PATIENCE = 300  # seconds until all processes have started


def prepare_cpu_launch(cfg: Config) -> bool:
    """Prepare a distributed run on a machine without an accelerator.

    Starts a gloo process group, which MMEngine then finds and keeps, and
    sets ``cfg.model_wrapper_cfg`` so that the model stays on the CPU. A
    wrapper that the user configured keeps its type and its settings. Call it
    before the Runner is built.

    Args:
        cfg (Config): The config; ``cfg.launcher`` tells how the processes
            were started. Modified in place.

    Returns:
        bool: Whether there was anything to do. False without a launcher or
            with an accelerator.

    Raises:
        RuntimeError: If the launcher did not set the variables from which
            the processes find each other, or they do not in five minutes, or
            ``env_cfg.dist_cfg.timeout`` if that is less.
    """
    launcher = cfg.get('launcher') or 'none'
    if launcher == 'none' or get_device() != 'cpu':
        return False
    if not distributed.is_initialized():
        _set_rendezvous_variables(launcher)
        dist_cfg = (cfg.get('env_cfg') or {}).get('dist_cfg') or {}
        _meet(dist_cfg.get('timeout'))
        atexit.register(_leave_process_group)
    _keep_model_on_cpu(cfg)
    return True


def _meet(timeout: float | None) -> None:
    """Start the process group; wait for the other processes, but not long.

    PyTorch waits as long for a process that never starts as for one that
    computes, half an hour.
    """
    options = {}
    if timeout is not None:
        options['timeout'] = timedelta(seconds=timeout)
    patience = min(_PATIENCE, timeout or _PATIENCE)
    try:
        meeting = distributed.rendezvous(
            'env://', timeout=timedelta(seconds=patience)
        )
        store, rank, size = next(meeting)
    except distributed.DistError as error:
        raise RuntimeError(
            f'not all {os.environ["WORLD_SIZE"]} processes came together in '
            f'{patience:g} s: see what the others say, and whether '
            f'MASTER_ADDR and MASTER_PORT are the same for all '
            f'({str(error).splitlines()[0]})'
        ) from error
    distributed.init_process_group(
        'gloo', store=store, rank=rank, world_size=size, **options
    )


def _leave_process_group() -> None:
    """Let gloo's threads end before the interpreter does.

    A thread that still releases a tensor by then aborts the process, after
    all the work is done. The threads live as long as the data-parallel
    model, which is part of reference cycles.
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()
    gc.collect()


def _set_rendezvous_variables(launcher: str) -> None:
    """Translate the launcher's variables to those that PyTorch reads."""
    env = os.environ
    try:
        if launcher == 'slurm':
            env['RANK'] = env['SLURM_PROCID']
            env['WORLD_SIZE'] = env['SLURM_NTASKS']
            env['LOCAL_RANK'] = env.get('SLURM_LOCALID', '0')
            if 'MASTER_ADDR' not in env:
                env['MASTER_ADDR'] = _first_slurm_host(env['SLURM_NODELIST'])
        elif launcher == 'mpi':
            env['RANK'] = env['OMPI_COMM_WORLD_RANK']
            env['WORLD_SIZE'] = env['OMPI_COMM_WORLD_SIZE']
            env['LOCAL_RANK'] = env['OMPI_COMM_WORLD_LOCAL_RANK']
        env.setdefault('MASTER_PORT', '29500')
        for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR'):
            _ = env[name]
    except KeyError as error:
        raise RuntimeError(
            f'--launcher {launcher} was given, but the environment variable '
            f'{error} is not set. Start the script with that launcher '
            '(tools/dist_train.sh, tools/slurm_train.sh, mpirun), or leave '
            '--launcher out.'
        ) from None


def _first_slurm_host(nodes: str) -> str:
    result = subprocess.run(
        ['scontrol', 'show', 'hostnames', nodes],
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.split()[0]


def _keep_model_on_cpu(cfg: Config) -> None:
    settings = dict(device_ids=None, broadcast_buffers=False)
    strategy = cfg.get('strategy') or {}
    if str(strategy.get('type')).endswith('DDPStrategy'):
        wrapper = strategy.setdefault('model_wrapper', {})
        for name, value in settings.items():
            wrapper.setdefault(name, value)
        return
    wrapper = cfg.get('model_wrapper_cfg')
    if wrapper is None:
        # MMEngine's own default, without a device.
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            find_unused_parameters=cfg.get('find_unused_parameters', False),
            **settings,
        )
        return
    kind = wrapper.setdefault('type', 'MMDistributedDataParallel')
    name = kind if isinstance(kind, str) else kind.__name__
    if name.endswith('DistributedDataParallel'):
        wrapper.setdefault('device_ids', None)


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """Mixed precision on a CPU: bfloat16 autocast, float32 weights.

    The counterpart of MMEngine's ``AmpOptimWrapper``, and interchangeable
    with it in a config and in a checkpoint: a run started with one can be
    resumed with the other. bfloat16 has the exponent range of float32, so
    there is no loss scaling.

    Args:
        loss_scale (Any): Accepted for interchangeability, and ignored.
        dtype (str | torch.dtype | None): None or bfloat16.
        **kwargs: As for ``OptimWrapper``, e.g. ``optimizer``, ``clip_grad``,
            ``accumulative_counts``.

    Raises:
        ValueError: If ``dtype`` is another type.
    """

    def __init__(
        self,
        loss_scale: Any = 'dynamic',
        dtype: str | torch.dtype | None = None,
        **kwargs,
    ):
        if dtype not in (None, 'bfloat16', torch.bfloat16):
            raise ValueError(
                f'CpuAmpOptimWrapper computes in bfloat16, not in {dtype}: '
                'leave dtype out'
            )
        super().__init__(**kwargs)
        self.cast_dtype = torch.bfloat16

    def load_state_dict(self, state_dict: dict) -> None:
        """Load a state, of this class or of ``AmpOptimWrapper``.

        Args:
            state_dict (dict): The optimizer's state.
        """
        state_dict = dict(state_dict)
        state_dict.pop('loss_scaler', None)
        super().load_state_dict(state_dict)

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Autocast to bfloat16; delay gradient synchronisation if asked.

        Args:
            model (nn.Module): The model that is trained.

        Yields:
            None: The body runs in mixed precision.

        Raises:
            RuntimeError: If the model is not on the CPU.
        """
        parameter = next(model.parameters(), None)
        if parameter is not None and parameter.device.type != 'cpu':
            raise RuntimeError(
                f'the model is on {parameter.device}; CpuAmpOptimWrapper is '
                'for the CPU, use AmpOptimWrapper instead'
            )
        autocast = torch.autocast('cpu', dtype=self.cast_dtype)
        with super().optim_context(model), autocast:
            yield
