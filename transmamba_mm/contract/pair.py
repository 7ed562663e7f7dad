# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A student and its teacher, and the modules that are told about them."""

from abc import ABC, abstractmethod
from typing import Optional

from mmrazor.models.algorithms import SingleTeacherDistill
from torch import nn

from .answers import answer_reader
from .inputs import input_size
from .live_student import Student
from .teacher import Teacher
from .teachers import teacher_at, teachers_of


class Pair:
    """Two models, one of which learns from the other.

    Args:
        student (nn.Module): The model that holds the student.
        teacher (nn.Module): The model that holds the teacher.

    Raises:
        ValueError: If both answer questions, and spell them otherwise.
    """

    # Not a module: who keeps it does not own the models.
    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        self._student = student
        self._teacher = teacher
        ours = answer_reader(student)
        for name, each in teachers_of(teacher).items():
            theirs = answer_reader(each)
            if ours and theirs and ours.spelling != theirs.spelling:
                raise ValueError(
                    f'the student and the teacher{name and f" {name}"} make '
                    f'other tokens of the same conversation: give both the '
                    f'same tokenizer, prompt_tmpl and system'
                )

    def student(self, backbone: Optional[str] = None) -> Student:
        """The student, by the name of its module where there are several.

        Raises:
            TypeError: See :class:`Student`.
        """
        return Student(self._student, backbone)

    def teacher(self, backbone: Optional[str] = None) -> Teacher:
        """The teacher, by the name of its module where there are several.

        Raises:
            TeacherError: See :class:`Teacher`.
        """
        return Teacher(self._teacher, backbone)

    def teacher_input_size(
        self, backbone: Optional[str] = None
    ) -> Optional[tuple[int, int]]:
        """Height and width of that teacher's images, if not the student's."""
        return input_size(teacher_at(self._teacher, backbone)[0])


class PairAware(ABC):
    """A connector or loss that is built for a pair.

    Distillation algorithms call :meth:`prepare` once, before anything else.
    """

    @abstractmethod
    def prepare(self, pair: Pair) -> None:
        """Reads what it needs from a pair, and builds its parameters."""


def sides_of(model: nn.Module) -> tuple[nn.Module, Optional[nn.Module]]:
    """The model with the student, and the one with the teacher if any.

    Args:
        model (nn.Module): A student, or a distillation algorithm.

    Returns:
        tuple[nn.Module, nn.Module | None]: Both models.
    """
    if isinstance(model, SingleTeacherDistill):
        return model.student, model.teacher
    return model, None
