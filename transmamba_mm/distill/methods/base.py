# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What a distillation method is: a loss, and what of the pair it reads."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Optional

from transmamba_mm.checks import check_bool

from ..schedule import Span


@dataclass(frozen=True)
class Reading:
    """What one argument of a loss gets.

    Attributes:
        recorder (dict): Config of the recorder.
        from_student (bool): Whose it is.
        connector (dict, optional): Config of what the record goes through.
            Defaults to None.
        connector_name (str, optional): How the connector is called in state
            dicts. Defaults to None, by the method and the argument.
    """

    recorder: dict
    from_student: bool
    connector: Optional[dict] = None
    connector_name: Optional[str] = None


class DistillMethod(ABC):
    """A method of distillation, made of mmrazor's parts.

    :class:`~transmamba_mm.distill.MethodDistiller` takes a list of them. A
    subclass names its loss and what it reads; both are configs, so a method
    costs nothing until it is used. It is registered in ``TASK_UTILS``.

    Args:
        name (str, optional): Name of the loss in the log, ``loss_<name>``.
            Needed where a method is listed twice. Defaults to None,
            :attr:`NAME`.
        in_alpha (bool, optional): Whether the loss is weighed by ``1 -
            alpha`` of the algorithm and the task loss by ``alpha``; else it
            counts by its own weight beside the task loss. Defaults to None,
            :attr:`IN_ALPHA`.
        student_backbone (str, optional): Name of the student's module, for
            models that hold several. Defaults to None, the only one.
        teacher_backbone (str, optional): Likewise of the teacher's.
        teacher (str, optional): Name of the teacher, where there are
            several. Defaults to None, the only one.
        **span: ``begin``, ``end``, ``warmup`` and ``decay`` of
            :class:`~transmamba_mm.distill.Span`: when the method counts.

    Attributes:
        NAME (str): Default of ``name``.
        IN_ALPHA (bool): Default of ``in_alpha``.

    Raises:
        TypeError: If it has no such option.
    """

    NAME: ClassVar[str]
    IN_ALPHA: ClassVar[bool] = False

    def __init__(
        self,
        name: Optional[str] = None,
        in_alpha: Optional[bool] = None,
        student_backbone: Optional[str] = None,
        teacher_backbone: Optional[str] = None,
        teacher: Optional[str] = None,
        **span: Any,
    ) -> None:
        unknown = span.keys() - {field.name for field in fields(Span)}
        if unknown:
            raise TypeError(
                f'{type(self).__name__} has no option '
                f'{", ".join(sorted(unknown))}'
            )
        self.name = name or self.NAME
        if in_alpha is None:
            in_alpha = self.IN_ALPHA
        self.in_alpha = check_bool('in_alpha', in_alpha)
        self.student_backbone = student_backbone
        # A teacher is a module of the model that holds all of them.
        names = [name for name in (teacher, teacher_backbone) if name]
        self.teacher_backbone = '.'.join(names) or None
        self.span = Span(**span)

    @abstractmethod
    def loss(self) -> dict:
        """Config of the loss module."""

    @abstractmethod
    def reads(self) -> dict[str, Reading]:
        """What each argument of the loss gets."""

    # ------------------------------------------------ for the subclasses

    def student(self, site: str, **connector: Any) -> Reading:
        """A site of the student, maybe through a connector."""
        return self._reading('transmamba.StudentSite', site, True, connector)

    def teacher(self, site: str, **connector: Any) -> Reading:
        """A site of the teacher, maybe through a connector."""
        return self._reading('transmamba.TeacherSite', site, False, connector)

    def _reading(
        self, kind: str, site: str, from_student: bool, connector: dict
    ) -> Reading:
        recorder = dict(type=kind, site=site)
        recorder.update(self.tower(from_student))
        return Reading(recorder, from_student, connector or None)

    def tower(self, from_student: bool) -> dict[str, str]:
        """``backbone`` of a recorder, where it must be named."""
        name = self.teacher_backbone
        if from_student:
            name = self.student_backbone
        return {} if name is None else {'backbone': name}

    def towers(self) -> dict[str, str]:
        """Arguments of a connector or loss that finds the pair by name."""
        names = dict(
            student_backbone=self.student_backbone,
            teacher_backbone=self.teacher_backbone,
        )
        return {key: name for key, name in names.items() if name is not None}

    # --------------------------------------------------- for the distiller

    def parts(self) -> dict[str, dict]:
        """Arguments of ``mmrazor.ConfigurableDistiller``."""
        loss = f'loss_{self.name}'
        parts: dict[str, dict] = dict(
            student_recorders={},
            teacher_recorders={},
            connectors={},
            distill_losses={loss: self.loss()},
            loss_forward_mappings={loss: {}},
        )
        for argument, reading in self.reads().items():
            side = 'student' if reading.from_student else 'teacher'
            # Methods that read the same share one recorder.
            values = map(str, reading.recorder.values())
            name = '_'.join(values).replace('.', '-')
            parts[f'{side}_recorders'][name] = reading.recorder
            source = dict(recorder=name, from_student=reading.from_student)
            if reading.connector is not None:
                key = reading.connector_name or f'{self.name}_{argument}'
                parts['connectors'][key] = reading.connector
                source['connector'] = key
            parts['loss_forward_mappings'][loss][argument] = source
        return parts
