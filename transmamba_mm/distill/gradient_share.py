# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Which loss moves the student, measured while it trains."""

from collections.abc import Mapping, Sequence
from typing import Optional, Union

import torch
from mmengine.dist import all_reduce_params
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from transmamba_mm.checks import check_int
from transmamba_mm.contract.roles import in_group
from transmamba_mm.registry import HOOKS

from .algorithm import TransMambaDistill
from .hooks import refuse_sharded, unwrapped
from .untouched import losses_of, untouched

#: How names in the log start.
SHARE = 'gradient_share'


@HOOKS.register_module()
class GradientShareHook(Hook):
    """Logs each loss's share of the gradient on the student's parameters.

    The share of a loss is the norm of its gradient over the sum of all
    losses' norms. Weights, schedules and ``alpha`` are in it, clipping and
    the optimizer are not. It is logged as
    ``gradient_share/GROUP/LOSS`` for the groups ``all``, ``mixers`` (scans,
    with the norms and projections around them), ``head`` (with a neck that
    lifts) and ``rest`` (embeddings, FFNs and norms).

    At its interval the batch goes through the model once more, and backward
    once for each loss. The training does not notice: neither weights and
    gradients nor statistics nor random numbers change. Idle without a
    :class:`~transmamba_mm.distill.TransMambaDistill`.

    Args:
        interval (int): Iterations between two looks. Defaults to 100.
    """

    # After the hook that sets the time.
    priority = 'LOW'

    def __init__(self, interval: int = 100) -> None:
        self.interval = check_int('interval', interval)

    def before_train(self, runner: Runner) -> None:
        """Refuses a model that is shared among processes.

        Raises:
            ValueError: If it is.
        """
        refuse_sharded(unwrapped(runner.model), 'GradientShareHook')

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None
    ) -> None:
        """Measures on the batch that the step is going to see."""
        model = unwrapped(runner.model)
        if not isinstance(model, TransMambaDistill):
            return
        if not self.every_n_train_iters(runner, self.interval):
            return
        with untouched(model):
            losses = losses_of(runner, model, data_batch)
            # Small gradients vanish in float16, as in a step.
            wrapper = runner.optim_wrapper
            if isinstance(wrapper, AmpOptimWrapper):
                losses = {
                    name: wrapper.loss_scaler.scale(_scalar(loss))
                    for name, loss in losses.items()
                    if 'loss' in name
                }
            shares = gradient_shares(model, losses)
        scalars = {
            f'{SHARE}/{group}/{name}': share
            for group, by_loss in shares.items()
            for name, share in by_loss.items()
        }
        if scalars:
            runner.visualizer.add_scalars(scalars, step=runner.iter + 1)


def gradient_shares(
    model: TransMambaDistill, losses: Mapping[str, Tensor]
) -> dict[str, dict[str, float]]:
    """Share of each loss in the sum of the norms of all gradients.

    Under data-parallel training gradients are those of the global batch.

    Args:
        model (TransMambaDistill): Whose student.
        losses (Mapping[str, Tensor]): What it gave; names without "loss" are
            left out.

    Returns:
        dict[str, dict[str, float]]: By group of parameters and loss. Groups
        that no loss moves are left out.
    """
    roles = model.student_roles()
    named = [x for x in model.student.named_parameters() if x[1].requires_grad]
    groups = ['all', *(_group(roles.get(name)) for name, _ in named)]
    norms: dict[str, dict[str, float]] = {group: {} for group in groups}
    for name, loss in losses.items():
        if 'loss' not in name:
            continue
        squares = _squares(_scalar(loss), [x for _, x in named])
        for group in norms:
            mine = [
                square
                for square, its in zip(squares, groups[1:])
                if group in ('all', its)
            ]
            norms[group][name] = sum(mine) ** 0.5
    return {
        group: {name: norm / total for name, norm in by_loss.items()}
        for group, by_loss in norms.items()
        if (total := sum(by_loss.values())) > 0
    }


def _scalar(loss: Union[Tensor, Sequence[Tensor]]) -> Tensor:
    """A loss as MMEngine adds it up."""
    if isinstance(loss, Tensor):
        return loss.mean()
    return sum(each.mean() for each in loss)


def _group(role: Optional[str]) -> str:
    if role is None:
        return 'rest'
    if in_group(role, 'mixers'):
        return 'mixers'
    return 'head' if in_group(role, ('head', 'lift')) else 'rest'


def _squares(loss: Tensor, parameters: Sequence[Tensor]) -> list[float]:
    """Squared norm of the loss's gradient on each parameter."""
    found: Sequence[Optional[Tensor]] = [None] * len(parameters)
    if loss.requires_grad:
        found = torch.autograd.grad(
            loss, parameters, retain_graph=True, allow_unused=True
        )
    # Clones, as an expanded gradient cannot be written to.
    gradients = [
        torch.zeros_like(parameter)
        if gradient is None
        else gradient.clone(memory_format=torch.contiguous_format)
        for parameter, gradient in zip(parameters, found)
    ]
    # Shares do not care for a factor. No-op in one process.
    all_reduce_params(gradients)
    squares = [gradient.float().square().sum() for gradient in gradients]
    return torch.stack(squares).double().tolist()
