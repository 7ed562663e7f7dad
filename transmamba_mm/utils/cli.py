# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What ``tools/train.py`` and ``tools/test.py`` share.

Mistakes in the command line or the config are collected and raised as one
:class:`UsageError` before anything is built, so that a long job does not
start with a setting that it ignores.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import os.path as osp
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from transmamba_mm.checkpoints import CheckpointError
from transmamba_mm.compat import UntrustedFileError, prepare_cpu_launch
from transmamba_mm.engine import lock

from .mistakes import UsageError, explained

__all__ = [
    'RUNNER_KEYS',
    'UsageError',
    'add_cfg_options',
    'add_common_arguments',
    'build_runner',
    'check_config_keys',
    'check_local_file',
    'enable_amp',
    'load_config',
    'locked',
    'run_main',
    'set_dataloader_defaults',
    'set_launcher',
    'set_work_dir',
    'settings_of',
]

#: Top-level keys that MMEngine, mmpretrain or their tools act on.
RUNNER_KEYS = frozenset(
    {
        'auto_scale_lr',
        'compile',
        'custom_hooks',
        'custom_imports',
        'data_preprocessor',
        'default_hooks',
        'default_scope',
        'env_cfg',
        'experiment_name',
        'find_unused_parameters',
        'launcher',
        'load_from',
        'log_level',
        'log_processor',
        'model',
        'model_wrapper_cfg',
        'optim_wrapper',
        'param_scheduler',
        'randomness',
        'resume',
        'runner_type',
        'sync_bn',
        'test_cfg',
        'test_dataloader',
        'test_evaluator',
        'train_cfg',
        'train_dataloader',
        'tta_model',
        'tta_pipeline',
        'val_cfg',
        'val_dataloader',
        'val_evaluator',
        'vis_backends',
        'visualizer',
        'work_dir',
    }
)
# Settings of which MMEngine reads these and ignores all else.
_NESTED_KEYS = {
    'auto_scale_lr': {'base_batch_size', 'enable'},
    'env_cfg': {'cudnn_benchmark', 'dist_cfg', 'mp_cfg', 'resource_limit'},
}
# Settings that are dicts, if they are there.
_DICTS = (
    *_NESTED_KEYS,
    'default_hooks',
    'model',
    'optim_wrapper',
    *(
        f'{kind}_{part}'
        for kind in ('train', 'val', 'test')
        for part in ('cfg', 'dataloader')
    ),
)
# What launchers call a process's number.
_RANKS = {
    'pytorch': 'RANK',
    'slurm': 'SLURM_PROCID',
    'mpi': 'OMPI_COMM_WORLD_RANK',
}
# Names that configs commonly give to their own variables.
_COMMON_VARIABLES = frozenset(
    {
        'data_root',
        'dataset_type',
        'eval_dataloader',
        'eval_pipeline',
        'models',
        'test_dataset',
        'test_pipeline',
        'train_dataset',
        'train_pipeline',
        'val_dataset',
        'val_pipeline',
    }
)


def run_main(main: Callable[[], None]) -> None:
    """Runs a tool; prints a mistake of the user in one line, exits with 2.

    Files that are no good are such mistakes.

    Args:
        main (Callable): The tool's main function.
    """
    try:
        main()
    except (UsageError, CheckpointError, UntrustedFileError) as error:
        # Some of it may come from a file, which could speak to a terminal.
        text = ''.join(c if c.isprintable() else ' ' for c in str(error))
        print(f'error: {" ".join(text.split())}', file=sys.stderr)
        sys.exit(2)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that training and testing share.

    Args:
        parser (argparse.ArgumentParser): The parser to add to.
    """
    parser.add_argument('--work-dir', help='where logs and results go')
    parser.add_argument(
        '--amp', action='store_true', help='use automatic mixed precision'
    )
    parser.add_argument(
        '--no-pin-memory',
        action='store_true',
        help='do not pin memory in the data loaders',
    )
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes of a distributed run',
    )
    # torchrun sets LOCAL_RANK; torch.distributed.launch passes an argument.
    parser.add_argument(
        '--local_rank',
        '--local-rank',
        type=int,
        default=0,
        help=argparse.SUPPRESS,
    )


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--cfg-options``, which :func:`load_config` merges.

    Args:
        parser (argparse.ArgumentParser): The parser to add to.
    """
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override settings of the config, e.g. model.alpha=0.3 '
        'train_cfg.max_epochs=10; a list is written key="[a,b]" or key=a,b',
    )


def load_config(args: argparse.Namespace) -> Config:
    """Reads the config file and merges ``--cfg-options``.

    Args:
        args (argparse.Namespace): Parsed arguments, with ``config``.

    Returns:
        Config: The config.

    Raises:
        UsageError: If the file does not exist or cannot be read, a top-level
            key looks like a misspelt one, or a value is NaN.
    """
    check_local_file(args.config, 'config file')
    with explained(Config(), f"config '{args.config}'"):
        cfg = Config.fromfile(args.config)
    if args.cfg_options:
        with explained(cfg, '--cfg-options'):
            cfg.merge_from_dict(args.cfg_options)
    settings = settings_of(cfg)
    check_config_keys(settings)
    for key in set(cfg) - {*settings, *RUNNER_KEYS}:
        cfg.pop(key)  # MMEngine cannot write all of it
    _check_nesting(cfg)
    _check_config_values(cfg.to_dict())
    return cfg


def _check_nesting(cfg: Config) -> None:
    """Refuses what should be dicts, and keys in them that MMEngine drops."""
    for name in _DICTS:
        value = cfg.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise UsageError(f'{name} must be a dict, got {value!r}')
    for name, hook in (cfg.get('default_hooks') or {}).items():
        if not isinstance(hook, (Mapping, Hook, type(None))):
            raise UsageError(
                f'default_hooks.{name} must be a dict, got {hook!r}'
            )
    for owner, known in _NESTED_KEYS.items():
        for key in cfg.get(owner) or ():
            if key not in known:
                raise UsageError(
                    f'{owner} has {key!r}, which does nothing: it knows '
                    f'{", ".join(sorted(known))}'
                )


def _check_config_values(value: Any, path: str = '') -> None:
    """Refuses numbers that no setting can mean."""
    if isinstance(value, float) and math.isnan(value):
        raise UsageError(f'{path} is NaN: no setting has a use for it')
    if path.endswith('.loss_weight') and (
        isinstance(value, bool)
        or (isinstance(value, (int, float)) and value < 0)
    ):
        raise UsageError(f'{path} must be a number from 0 on, got {value}')
    items: Iterable = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    for key, item in items:
        _check_config_values(item, f'{path}.{key}' if path else str(key))


def set_launcher(cfg: Config, args: argparse.Namespace) -> None:
    """Tells MMEngine what started this process, and as which of a node.

    Args:
        cfg (Config): The config, modified in place.
        args (argparse.Namespace): Parsed arguments.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg.launcher = args.launcher


def settings_of(cfg: Config) -> list[str]:
    """Top-level keys of a config that are no imports, classes or functions.

    Lazy configs have such keys.

    Args:
        cfg (Config): The config.

    Returns:
        list[str]: The keys.
    """
    imported = cfg._imported_names
    return [
        key
        for key, value in cfg.items()
        if key not in imported
        and not callable(value)
        and not isinstance(value, ModuleType)
    ]


def check_config_keys(keys: Iterable[str]) -> None:
    """Refuses top-level keys that look like misspelt ones.

    MMEngine ignores a key that it does not know, so a typo silently drops
    the setting.

    Args:
        keys (Iterable[str]): The keys of the config.

    Raises:
        UsageError: Naming every such key and what was probably meant.
    """
    typos = []
    for key in keys:
        if (
            key in RUNNER_KEYS
            or key in _COMMON_VARIABLES
            or key.startswith('_')
        ):
            continue
        near = difflib.get_close_matches(key, RUNNER_KEYS, 1, cutoff=0.8)
        # A long shared suffix, as in 'gallery_dataloader', is no typo.
        if near and abs(len(key) - len(near[0])) <= 2:
            typos.append(f"'{key}' (did you mean '{near[0]}'?)")
    if typos:
        raise UsageError(
            f'unknown key in the config: {", ".join(typos)}. If it is a '
            'variable of your own, let its name start with an underscore.'
        )


def check_local_file(path: str | None, what: str) -> None:
    """Refuses a local path that does not exist; URLs are not looked up.

    Args:
        path (str | None): The path.
        what (str): What it is, for the message.

    Raises:
        UsageError: If nothing is there, or it is no path.
    """
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise UsageError(f'the {what} must be a path, got {path!r}')
    path = str(path or '')
    if path and '://' not in path and not osp.exists(path):
        raise UsageError(f"{what} '{path}' does not exist")


def set_work_dir(cfg: Config, args: argparse.Namespace) -> None:
    """Chooses the work directory: argument, then config, then file name.

    Args:
        cfg (Config): The config, modified in place.
        args (argparse.Namespace): Parsed arguments.
    """
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        name = osp.splitext(osp.basename(args.config))[0]
        cfg.work_dir = osp.join('work_dirs', name)


def set_dataloader_defaults(
    cfg: Config,
    names: Iterable[str],
    args: argparse.Namespace,
    persistent_workers: bool = False,
) -> None:
    """Fills in what the data loaders of a config leave out.

    Args:
        cfg (Config): The config, modified in place.
        names (Iterable[str]): Names of the data loaders.
        args (argparse.Namespace): Parsed arguments.
        persistent_workers (bool): Whether workers outlive an epoch, where
            the config does not say. Defaults to False.
    """
    for loader in filter(None, map(cfg.get, names)):
        loader.setdefault('collate_fn', dict(type='default_collate'))
        # Only a GPU reads faster from pinned memory.
        loader.setdefault('pin_memory', get_device() != 'cpu')
        loader.setdefault('persistent_workers', persistent_workers)
        if args.no_pin_memory:
            loader['pin_memory'] = False
        # PyTorch refuses persistent workers where there are no workers.
        if getattr(args, 'no_persistent_workers', False) or not loader.get(
            'num_workers'
        ):
            loader['persistent_workers'] = False


def enable_amp(cfg: Config) -> None:
    """Asks for mixed precision, with the wrapper that suits the machine.

    Args:
        cfg (Config): The config, modified in place.

    Raises:
        UsageError: If the config uses an optimizer wrapper of another kind.
    """
    wrapper = cfg.get('optim_wrapper')
    if wrapper is None:
        raise UsageError('--amp needs an optim_wrapper in the config')
    kind = wrapper.get('type', 'OptimWrapper')
    name = kind if isinstance(kind, str) else kind.__name__
    name = name.rpartition('.')[2]
    if name not in ('OptimWrapper', 'AmpOptimWrapper', 'CpuAmpOptimWrapper'):
        raise UsageError(
            f"--amp cannot be combined with the optim_wrapper '{name}' of "
            'the config'
        )
    if get_device() == 'cpu':
        wrapper.type = 'transmamba.CpuAmpOptimWrapper'
        # The config may ask for the float16 of GPUs.
        wrapper.pop('dtype', None)
    else:
        wrapper.type = 'AmpOptimWrapper'
    wrapper.setdefault('loss_scale', 'dynamic')


def build_runner(cfg: Config) -> Runner:
    """Builds the runner; on a machine without a GPU, prepares for that.

    Args:
        cfg (Config): The complete config.

    Returns:
        Runner: The default one, or the one named by ``cfg.runner_type``.

    Raises:
        UsageError: If the launcher did not do its part, or something of the
            config cannot be built.
    """
    try:
        prepare_cpu_launch(cfg)
    except RuntimeError as error:
        raise UsageError(str(error)) from error
    with explained(cfg):
        if 'runner_type' in cfg:
            return RUNNERS.build(cfg)
        return Runner.from_cfg(cfg)


@contextmanager
def locked(cfg: Config) -> Iterator[None]:
    """Keeps the work directory for the processes of one run.

    Args:
        cfg (Config): The config, with ``work_dir`` and ``launcher``.

    Raises:
        UsageError: If another run is at work there, naming it, or it cannot
            be made.
    """
    rank = os.environ.get(_RANKS.get(cfg.get('launcher'), ''), '0')
    with ExitStack() as stack:
        if rank == '0':  # which has it for all
            try:
                stack.enter_context(lock.locked(cfg.work_dir))
            except (lock.InUseError, OSError) as error:
                raise UsageError(str(error)) from error
        yield
