# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The transfer plan: where every student tensor comes from.

A plan is made before anything is copied, so it can be printed, saved and
refused. Each entry carries the rule that made it and the values it would
write.
"""

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Optional, Union

import torch
from torch import Tensor, nn

#: Rules that take values from the teacher or from a pretrained Mamba.
COPYING_RULES = ('copy', 'select', 'resize', 'leading', 'ssm', 'attention')


class TransferError(ValueError):
    """Weights cannot be transferred as asked."""


@dataclass
class TransferEntry:
    """One student tensor.

    Attributes:
        name (str): The student's parameter name.
        shape (tuple[int, ...]): Its shape.
        rule (str): ``'copy'`` (whole tensor), ``'select'`` (a subset of
            channels), ``'resize'`` (position embedding on another grid),
            ``'leading'`` (into the first channels of a wider student),
            ``'ssm'`` (from a pretrained Mamba), ``'attention'`` (from the
            attention projections), ``'init'`` (set or drawn anew), ``'fresh'``
            (keeps its initialisation).
        source (str | None): Name of the source tensor.
        note (str): Why it is fresh, or how it was cut.
        differs (str): What the teacher computes with it in another way.
        index (tuple[slice, ...] | None): The part of the student tensor
            that is written; None for all of it.
        value (Tensor | Callable | None): What is written there, or what
            gives it then; None if nothing is.
    """

    name: str
    shape: tuple[int, ...]
    rule: str = 'fresh'
    source: Optional[str] = None
    note: str = ''
    differs: str = ''
    index: Optional[tuple[slice, ...]] = None
    value: Union[Tensor, Callable[[], Tensor], None] = None

    @property
    def numel(self) -> int:
        """int: Values in the student tensor."""
        return int(torch.Size(self.shape).numel())

    @property
    def copied(self) -> int:
        """int: Values that come from another model."""
        if self.rule not in COPYING_RULES or self.value is None:
            return 0
        if self.index is None:
            return self.numel
        sizes = [
            len(range(n)[part]) for part, n in zip(self.index, self.shape)
        ]
        return math.prod(sizes) * math.prod(self.shape[len(sizes) :])


@dataclass
class TransferPlan:
    """All entries of one transfer, in the student's parameter order.

    Attributes:
        entries (list[TransferEntry]): One per student parameter.
        settings (dict): How the plan was made: ``teacher_family``,
            ``importance``, ``layer_map`` and so on.
        selections (dict[str, str]): Summary of every index set by axis name.
        kept (dict[int, Tensor]): The teacher's residual channels (width,)
            that a narrower student has, by its widths.
    """

    entries: list[TransferEntry]
    settings: dict[str, object] = field(default_factory=dict)
    selections: dict[str, str] = field(default_factory=dict)
    kept: dict[int, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """int: Values in all student parameters."""
        return sum(entry.numel for entry in self.entries)

    @property
    def copied(self) -> int:
        """int: Values that come from another model."""
        return sum(entry.copied for entry in self.entries)

    @property
    def coverage(self) -> float:
        """float: Copied share of the student's values, in percent."""
        return 100.0 * self.copied / max(self.total, 1)

    @property
    def differences(self) -> list[str]:
        """list[str]: Where the student computes another function."""
        found: dict[str, list[str]] = {}
        for entry in self.entries:
            if entry.differs and entry.value is not None:
                found.setdefault(entry.differs, []).append(entry.name)
        return [
            f'{len(names)} copied tensors ({names[0]}, ...) serve another '
            f'function: {what}. Give the student that of the teacher '
            f'(norm_cfg for norms), or let it learn the difference'
            for what, names in found.items()
        ]

    @torch.no_grad()
    def apply(self, student: nn.Module) -> None:
        """Writes the planned values into a student, in place.

        Raises:
            TransferError: If the plan copies nothing.
        """
        if not self.copied:
            raise TransferError(
                'weight subcloning would copy nothing from the teacher: no '
                'student parameter has a counterpart of a fitting shape.\n'
                + self.table()
            )
        parameters = dict(student.named_parameters())
        for entry in self.entries:
            if entry.value is None:
                continue
            target = parameters[entry.name]
            if entry.index is not None:
                target = target[entry.index]
            value = entry.value
            target.copy_(value() if callable(value) else value)

    def summary(self) -> str:
        """One line: coverage and the number of tensors per rule."""
        rules = Counter(entry.rule for entry in self.entries)
        counts = ', '.join(f'{n} {rule}' for rule, n in rules.most_common())
        return (
            f'{self.copied:,} of {self.total:,} values copied '
            f'({self.coverage:.1f} %); tensors: {counts}'
        )

    def table(self) -> str:
        """A text table of every tensor, then the index sets, then a sum."""
        header = ('student tensor', 'shape', 'rule', 'source', 'note')
        rows = [
            (
                entry.name,
                'x'.join(map(str, entry.shape)) or 'scalar',
                entry.rule,
                entry.source or '-',
                entry.note,
            )
            for entry in self.entries
        ]
        widths = [
            max(len(row[i]) for row in [header, *rows]) for i in range(4)
        ]
        lines = []
        for row in [header, *rows]:
            cells = [cell.ljust(width) for cell, width in zip(row, widths)]
            lines.append('  '.join([*cells, row[4]]).rstrip())
        lines.insert(1, '-' * max(map(len, lines)))
        for name, summary in self.selections.items():
            lines.append(f'{name}: {summary}')
        lines += [f'differs: {each}' for each in self.differences]
        lines.append(self.summary())
        return '\n'.join(lines)

    def to_dict(self) -> dict:
        """A JSON-serialisable form of the plan, without the values."""
        return dict(
            settings=self.settings,
            coverage_percent=round(self.coverage, 4),
            copied_values=self.copied,
            total_values=self.total,
            selections=self.selections,
            differences=self.differences,
            tensors=[
                dict(
                    name=entry.name,
                    shape=list(entry.shape),
                    rule=entry.rule,
                    source=entry.source,
                    copied_values=entry.copied,
                    note=entry.note,
                )
                for entry in self.entries
            ],
        )

    def dump(self, path: str) -> None:
        """Writes :meth:`to_dict` as JSON."""
        with open(path, 'w') as file:
            json.dump(self.to_dict(), file, indent=2)
            file.write('\n')
