# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""When a distillation loss counts, and which parameters train then.

All times are shares of the training, from 0 to 1.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Optional, Union

from mmrazor.models.distillers import ConfigurableDistiller
from mmrazor.models.task_modules.recorder.base_recorder import BaseRecorder
from torch import Tensor

from transmamba_mm.checks import check_bool, check_number, check_positive

try:
    from torch.distributed.tensor import DTensor
except ImportError:  # before 2.5, when no parameters could be shared
    DTensor = ()

_DECAYS = ('none', 'linear', 'cosine')
# Of times that are given in decimals.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Span:
    """When a loss counts, and how much.

    Attributes:
        begin (float): Where it sets in. Defaults to 0.
        end (float): Where it stops. Defaults to 1.
        warmup (float): Share over which it grows linearly from 0 to its
            weight, from ``begin`` on. Defaults to 0.
        decay (str): How it falls from there to 0 at ``end``: ``'none'``,
            ``'linear'`` or ``'cosine'``. Defaults to ``'none'``.

    Raises:
        ValueError: If the times or ``decay`` make no sense.
    """

    begin: float = 0.0
    end: float = 1.0
    warmup: float = 0.0
    decay: str = 'none'

    def __post_init__(self) -> None:
        for name in ('begin', 'end', 'warmup'):
            check_number(name, getattr(self, name))
        if not 0 <= self.begin < self.end <= 1:
            raise ValueError(
                f'begin and end are shares of the training with 0 <= begin < '
                f'end <= 1, got {self.begin} and {self.end}'
            )
        if not 0 <= self.warmup <= self.end - self.begin + _ROUNDING:
            raise ValueError(
                f'warmup must lie between 0 and end - begin = '
                f'{self.end - self.begin:g}, got {self.warmup}'
            )
        if self.decay not in _DECAYS:
            raise ValueError(
                f'decay must be one of {", ".join(_DECAYS)}, got '
                f'{self.decay!r}'
            )

    @property
    def constant(self) -> bool:
        """bool: Whether it counts the same from first to last."""
        return self == Span()

    def factor(self, progress: float) -> float:
        """What the loss is multiplied by; 0 where it does not count."""
        if not self.begin <= progress < self.end:
            return 0.0
        since = progress - self.begin
        if since < self.warmup:
            return since / self.warmup
        if self.decay == 'none':
            return 1.0
        whole = self.end - self.begin - self.warmup
        rest = min((self.end - progress) / max(whole, _ROUNDING), 1.0)
        if self.decay == 'linear':
            return rest
        return (1 - math.cos(math.pi * rest)) / 2


@dataclass(frozen=True)
class Phase:
    """A part of the training in which some of the student trains.

    The statistics of a BatchNorm are no parameters: they move whenever the
    student runs.

    Attributes:
        end (float): Where it ends; it begins where the one before ends.
        trains (str | Sequence[str]): ``'all'``; ``'mixers'``, the scans with
            the norms and projections around them; or roles of
            :mod:`transmamba_mm.contract.roles` without their layer, e.g.
            ``('ssm', 'mixer_out')``. Defaults to ``'all'``.
        task_loss (bool): Whether the task loss counts. Where no distillation
            loss reads the student either, the student does not run.
            Defaults to True.
        lr_mult (float): Factor of the learning rate, whatever the scheduler
            makes it. Defaults to 1.
        methods (Sequence[str]): Names of the methods that count in it, and
            in no phase that does not name them. Without any, it is those
            that no phase names. Defaults to ``()``.

    Raises:
        ValueError: If ``lr_mult`` is not positive.
    """

    end: float = 1.0
    trains: Union[str, Sequence[str]] = 'all'
    task_loss: bool = True
    lr_mult: float = 1.0
    methods: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_number('end of a phase', self.end)
        check_bool('task_loss of a phase', self.task_loss)
        check_positive('lr_mult of a phase', self.lr_mult)


@dataclass
class Schedule:
    """All spans and phases of a distillation.

    Attributes:
        spans (dict[str, Span]): By name of the loss; one that is missing
            counts always.
        phases (Sequence[Phase]): In order; after the last one everything
            trains on all losses.
        progress (float | None): Share of the training that is done. Set by
            :class:`~transmamba_mm.distill.DistillScheduleHook`; None before.
    """

    spans: Mapping[str, Span] = field(default_factory=dict)
    phases: Sequence[Phase] = ()
    progress: Optional[float] = None

    def __post_init__(self) -> None:
        ends = [phase.end for phase in self.phases]
        if ends != sorted(set(ends)) or not all(0 < end <= 1 for end in ends):
            raise ValueError(
                f'phases must end one after the other, above 0 and at most '
                f'at 1, got {ends}'
            )

    @property
    def constant(self) -> bool:
        """bool: Whether nothing ever changes."""
        spans = all(span.constant for span in self.spans.values())
        return spans and not self.phases

    def now(self) -> tuple[Phase, float]:
        """The current phase and progress.

        Raises:
            RuntimeError: If there is a schedule, but nobody keeps the time.
        """
        if self.constant:
            return Phase(), 0.0
        if self.progress is None:
            raise RuntimeError(
                'this distillation has phases, or losses that do not count '
                'all the time, and nobody tells it how far the training is: '
                'add distill_schedule=dict(type='
                "'transmamba.DistillScheduleHook') to default_hooks"
            )
        return self._phase(self.progress), self.progress

    def _phase(self, progress: float) -> Phase:
        """The phase at some time."""
        later = (phase for phase in self.phases if progress < phase.end)
        return next(later, Phase())

    def check_no_gap(self, losses: Sequence[str], task_loss: bool) -> None:
        """Complains of a time at which there is nothing to learn.

        Args:
            losses (Sequence[str]): Names of all distillation losses.
            task_loss (bool): Whether phases may have a task loss at all.

        Raises:
            ValueError: If no loss counts in a part of a phase that has no
                task loss.
        """
        spans = [self.spans.get(name, Span()) for name in losses]
        for begin, end in self._stretches():
            task = task_loss and self._phase(begin).task_loss
            if not task and not any(
                span.begin <= begin < span.end for span in spans
            ):
                raise ValueError(
                    f'from {begin:g} to {end:g} of the training no loss '
                    f'counts: let a method count then, or give the phase '
                    f'task_loss=True'
                )

    def moments(self) -> list[float]:
        """One moment in each stretch in which the same losses count."""
        return [(begin + end) / 2 for begin, end in self._stretches()]

    def _stretches(self) -> list[tuple[float, float]]:
        times = {0.0, 1.0, *(phase.end for phase in self.phases)}
        for span in self.spans.values():
            times.update((span.begin, span.end))
        times = sorted(times)
        return list(zip(times, times[1:]))

    def covers(self, loss: str) -> bool:
        """Whether a loss counts now, be it with 0 where it warms up."""
        _, progress = self.now()
        span = self.spans.get(loss, Span())
        return span.begin <= progress < span.end

    def factors(self, losses: Sequence[str]) -> dict[str, float]:
        """Weights of those losses that count now."""
        _, progress = self.now()
        factors = {
            name: self.spans.get(name, Span()).factor(progress)
            for name in losses
        }
        return {name: value for name, value in factors.items() if value}


def within_phases(
    spans: Mapping[str, Span], phases: Sequence[Phase]
) -> dict[str, Span]:
    """Confines methods to the phases that name them.

    Args:
        spans (Mapping[str, Span]): Spans by the names of methods.
        phases (Sequence[Phase]): In order.

    Returns:
        dict[str, Span]: What is left of the spans.

    Raises:
        ValueError: If a phase names no method, or a method has no time left,
            or phases in between that it does not count in.
    """
    named = {name for phase in phases for name in phase.methods}
    if unknown := sorted(named - spans.keys()):
        raise ValueError(
            f'a phase names {", ".join(unknown)}, but the methods are '
            f'{", ".join(spans)}'
        )
    result, begin, parts = {}, 0.0, []
    for phase in (*phases, Phase()):
        parts.append((begin, phase.end, phase.methods))
        begin = phase.end
    for name, span in spans.items():
        mine = [
            (begin, end)
            for begin, end, methods in parts
            if begin < end
            and (name in methods if methods else name not in named)
        ]
        if not mine:
            raise ValueError(
                f'{name} has no phase to count in: the phases that name '
                f'others alone leave it no time'
            )
        first, last = max(span.begin, mine[0][0]), min(span.end, mine[-1][1])
        whole = all(one[1] == other[0] for one, other in zip(mine, mine[1:]))
        if not whole or first >= last:
            raise ValueError(
                f'{name} counts from {span.begin:g} to {span.end:g} of the '
                f'training, its phases are {mine}: let them follow each '
                f'other, and overlap with that'
            )
        result[name] = replace(span, begin=first, end=last)
    return result


@contextmanager
def restricted(
    distiller: ConfigurableDistiller, losses: Sequence[str]
) -> Iterator[None]:
    """Lets a distiller compute these losses only."""
    mappings = distiller.loss_forward_mappings
    distiller.loss_forward_mappings = {
        name: mapping for name, mapping in mappings.items() if name in losses
    }
    try:
        yield
    finally:
        distiller.loss_forward_mappings = mappings


def recording(
    distiller: ConfigurableDistiller, losses: Sequence[str], student: bool
) -> ExitStack:
    """Enters one side's recorders, but for those that no loss reads now.

    A recorder that no loss reads at any time is somebody else's, and records.
    """
    manager = distiller.teacher_recorders
    if student:
        manager = distiller.student_recorders
    used = recorders_read(distiller, distiller.loss_forward_mappings, student)
    needed = recorders_read(distiller, losses, student)
    stack = ExitStack()
    for name, recorder in manager.recorders.items():
        if name in needed or name not in used:
            stack.enter_context(recorder)
    return stack


def recorders_read(
    distiller: ConfigurableDistiller, losses: Iterable[str], student: bool
) -> dict[str, BaseRecorder]:
    """Recorders of one side that some losses read, by name."""
    manager = distiller.teacher_recorders
    if student:
        manager = distiller.student_recorders
    return {
        source['recorder']: manager.recorders[source['recorder']]
        for name in losses
        for source in distiller.loss_forward_mappings[name].values()
        if source['from_student'] == student
    }


def zero_of(parameters: Sequence[Tensor]) -> Tensor:
    """A zero that depends on all of them, as data-parallel training wants.

    Of those that processes share, each takes its own part.
    """
    own = (x.to_local() if isinstance(x, DTensor) else x for x in parameters)
    return 0.0 * sum(x.sum() for x in own)
