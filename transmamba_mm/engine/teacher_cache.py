# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Training with a teacher that runs once for each image."""

from typing import Optional

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from transmamba_mm.checks import check_int
from transmamba_mm.datasets import SeededAugment
from transmamba_mm.distill import TransMambaDistill
from transmamba_mm.distill.hooks import refuse_sharded, unwrapped
from transmamba_mm.distill.teacher_cache import TeacherCache
from transmamba_mm.registry import HOOKS


@HOOKS.register_module()
class TeacherCacheHook(Hook):
    """Keeps on disk what a distillation reads of its teachers.

    What the recorders of the teachers record of each view of
    :class:`~transmamba_mm.datasets.SeededAugment` is written while the first
    run goes; where all of a batch is known, no teacher runs. The size is
    logged before training. A cache that was made with other teachers, other
    data, another precision or another recorder is refused.

    Args:
        folder (str): Where the cache is; several runs may share it.
        dtype (str, optional): ``'float16'`` halves the size; the first run
            sees rounded records, too. Defaults to None: exactly what the
            teachers give.
        interval (int): Iterations after which what was written counts; a run
            that is killed loses that many. Defaults to 100.

    Raises:
        ValueError: If the run has no such dataset or model, mixes images,
            shares the model among processes, or the disk has no room, when
            training starts.
    """

    def __init__(
        self, folder: str, dtype: Optional[str] = None, interval: int = 100
    ) -> None:
        self.folder = folder
        self.dtype = dtype
        self.interval = check_int('interval', interval)

    def before_train(self, runner: Runner) -> None:
        """Opens the cache, or makes it."""
        model, loader = unwrapped(runner.model), runner.train_dataloader
        dataset = loader.dataset
        if not isinstance(model, TransMambaDistill):
            raise ValueError('TeacherCacheHook is of TransMambaDistill')
        refuse_sharded(model, 'TeacherCacheHook')
        if not isinstance(dataset, SeededAugment):
            raise ValueError(
                'a teacher cache needs augmentation that comes again: wrap '
                "the training data, dict(type='transmamba.SeededAugment', "
                'num_views=..., dataset=dict(...))'
            )
        cache = TeacherCache(
            self.folder, len(dataset), dataset.num_views, self.dtype
        )

        def one_image() -> dict:
            batch = loader.collate_fn([dataset[0]])
            return model.data_preprocessor(batch, False)

        with runner.optim_wrapper.optim_context(runner.model):
            model.branch.open_cache(
                cache,
                model.distiller,
                one_image,
                {
                    'dataset': dataset.description,
                    'precision': _precision(model),
                },
            )

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Lets count what has been written, now and then."""
        if self.every_n_train_iters(runner, self.interval):
            unwrapped(runner.model).branch.cache.flush()

    def after_train_epoch(self, runner: Runner) -> None:
        """Lets count what has been written."""
        unwrapped(runner.model).branch.cache.flush()

    def after_train(self, runner: Runner) -> None:
        """Closes the cache."""
        unwrapped(runner.model).branch.close_cache()


def _precision(model: nn.Module) -> str:
    """What a forward pass is computed in here."""
    device = next(model.parameters()).device.type
    if not torch.is_autocast_enabled(device):
        return 'as the weights'
    return str(torch.get_autocast_dtype(device))
