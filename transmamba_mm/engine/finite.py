# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Training stops at the first value that is not finite."""

from collections.abc import Iterator, Mapping
from typing import Any, Optional

import torch
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from transmamba_mm.contract.pair import sides_of
from transmamba_mm.distill.hooks import unwrapped
from transmamba_mm.registry import HOOKS

# More than it takes to bring the largest scale of gradients down to one.
_MOST_SKIPPED = 30


class NonFiniteError(FloatingPointError):
    """A loss, or what is learned, is NaN or infinite."""


def non_finite(content: Any, name: str = '') -> Iterator[str]:
    """Names the tensors that hold NaN or infinite numbers.

    Args:
        content (Any): Tensors in mappings and sequences, maybe nested.
        name (str): Name of the content. Defaults to ''.

    Yields:
        str: The keys that lead to such a tensor, joined by dots.
    """
    if isinstance(content, Tensor):
        floating = content.is_floating_point() or content.is_complex()
        if floating and not content.isfinite().all():
            yield name
        return
    items: Any = ()
    if isinstance(content, Mapping):
        items = content.items()
    elif isinstance(content, (list, tuple)):
        items = enumerate(content)
    for key, value in items:
        yield from non_finite(value, f'{name}.{key}' if name else str(key))


@HOOKS.register_module()
class FiniteHook(Hook):
    """Stops a run at a loss that is NaN or infinite.

    The first step is always looked at. Iterations that a scaler of gradients
    skips, as in float16, are no reason to stop, unless the weights suffer or
    it skips one after the other. What a checkpoint holds is looked at by
    :class:`~transmamba_mm.engine.SafeCheckpointHook`.

    Args:
        interval (int, optional): Iterations between two looks; the values of
            all are looked at, and the first bad one is named. Defaults to
            None: 1 on a CPU, 10 where a look waits for the device.

    Raises:
        NonFiniteError: Naming the loss, the iteration and, where it shows,
            the cause.
    """

    priority = 'HIGH'

    def __init__(self, interval: Optional[int] = None) -> None:
        if interval is None:
            interval = 1 if get_device() == 'cpu' else 10
        self.interval = interval
        self._unseen: list[tuple[int, list[str], Tensor]] = []
        self._skipped = 0
        self._started = False

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Notes the losses, and looks at them now and then."""
        losses = {
            name: torch.as_tensor(value).detach().float().mean()
            for name, value in (outputs or {}).items()
            if 'loss' in name
        }
        if losses:
            values = torch.stack(list(losses.values()))
            self._unseen.append((runner.iter + 1, list(losses), values))
        if not self._started or self.every_n_train_iters(
            runner, self.interval
        ):
            self._started = True
            self._look(runner, data_batch)

    def after_train_epoch(self, runner: Runner) -> None:
        """Looks at the rest of the epoch, and at what was learned."""
        self._look(runner)
        self._check_weights(runner, runner.iter)

    def _look(self, runner: Runner, data_batch: Any = None) -> None:
        unseen, self._unseen = self._unseen, []
        if not unseen:
            return
        # One transfer from the device for all of them.
        finite = torch.cat([values for *_, values in unseen]).isfinite()
        finite = iter(finite.tolist())
        scaled = _scales_gradients(runner)
        for iteration, names, _ in unseen:
            bad = [name for name in names if not next(finite)]
            if not bad:
                self._skipped = 0
                continue
            self._skipped += 1
            what = f'{", ".join(bad)} is not finite at iteration {iteration}'
            if not scaled or self._skipped > _MOST_SKIPPED:
                last = iteration == unseen[-1][0]
                cause = _cause(runner, data_batch if last else None)
                raise NonFiniteError(
                    f'{what} (epoch {runner.epoch + 1}): training stops. '
                    f'{cause}'
                )
            runner.logger.warning(f'{what}; its gradients are not used')
            self._check_weights(runner, iteration)

    @staticmethod
    def _check_weights(runner: Runner, iteration: int) -> None:
        for name in non_finite(dict(runner.model.named_parameters())):
            raise NonFiniteError(
                f'parameter {name} is not finite after iteration '
                f'{iteration} (epoch {runner.epoch + 1}): training stops. '
                f'{_cause(runner)}'
            )


def _scales_gradients(runner: Runner) -> bool:
    """Whether steps with infinite gradients are skipped."""
    wrapper = runner.optim_wrapper
    return (
        isinstance(wrapper, AmpOptimWrapper)
        and wrapper.loss_scaler.is_enabled()
    )


def _cause(runner: Runner, data_batch: Any = None) -> str:
    """Why a loss may not be finite; for sure, if it is no weight."""
    model, batch = unwrapped(runner.model), data_batch or {}
    samples = batch.get('data_samples', ())
    for index, image in enumerate(batch.get('inputs', ())):
        if list(non_finite(image)):
            path = samples[index].get('img_path', '') if samples else ''
            return f"Image {index} of its batch is not finite: '{path}'"
    _, teacher = sides_of(model)
    for name in non_finite(teacher.state_dict() if teacher else {}):
        return f'{name} of the teacher is not finite: use another teacher_ckpt'
    if batch:
        data = model.data_preprocessor(batch, False)
        if list(non_finite(data['inputs'])):
            return 'Its images are not finite: see data_preprocessor.std'
    return (
        'Its images are finite, or not known any more: lower the learning '
        'rate, clip the gradients (optim_wrapper.clip_grad) or use more '
        'precision, and resume from the last checkpoint'
    )
