# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Making the transfer plan of a config without training."""

from contextlib import nullcontext
from copy import deepcopy
from functools import partial

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from transmamba_mm.contract import sides_of
from transmamba_mm.distill import TransMambaDistill
from transmamba_mm.registry import HOOKS, MODELS
from transmamba_mm.transfer import (
    SubcloneInitializer,
    TransferError,
    TransferPlan,
)

from .shapes import on_meta


def _is_initializer(hook: dict) -> bool:
    kind = hook.get('type')
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.rpartition('.')[2] == SubcloneInitializer.__name__


def plan_transfer(cfg: Config, shapes_only: bool = False) -> TransferPlan:
    """Makes the plan that a training run with this config would use.

    Args:
        cfg (Config): A config with a ``SubcloneInitializer`` in
            ``custom_hooks``.
        shapes_only (bool): Use a teacher without values in place of its
            checkpoint. Sources, rules and coverage are right, the channels a
            narrower student would keep are not. Defaults to False.

    Returns:
        TransferPlan: The plan.

    Raises:
        TransferError: If the config asks for no subcloning, or the plan
            cannot be made.
        FileNotFoundError: If a checkpoint does not exist.
    """
    hooks = [h for h in cfg.get('custom_hooks') or () if _is_initializer(h)]
    if not hooks:
        raise TransferError(
            "the config has no dict(type='transmamba.SubcloneInitializer') "
            'in custom_hooks'
        )
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    hook_cfg, model_cfg = deepcopy(hooks[0]), deepcopy(cfg.model)
    if shapes_only:
        hook_cfg.update(
            teacher_ckpt=None,
            reference_ckpt=None,
            importance='first',
            centre_keys=False,
        )
    if cfg.get('data_preprocessor') is not None:
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    hook: SubcloneInitializer = HOOKS.build(hook_cfg)
    # Shapes are enough, also where the teacher is a file that tells the rest.
    reads_file = hook.teacher_ckpt is not None and not hook.measures
    with on_meta() if reads_file or shapes_only else nullcontext():
        model = MODELS.build(model_cfg)
    if not (shapes_only or reads_file) and isinstance(
        model, TransMambaDistill
    ):
        model.load_teacher()
    elif shapes_only and sides_of(model)[1] is None:
        raise TransferError(
            'without a checkpoint the shapes are known only if the config '
            'holds a teacher model; this one has a teacher_ckpt alone'
        )
    data = None
    # Without weights there is nothing to measure.
    if not (shapes_only or reads_file) and 'train_dataloader' in cfg:
        data = partial(Runner.build_dataloader, cfg.train_dataloader, 0)
    return hook.make_plan(model, data)
