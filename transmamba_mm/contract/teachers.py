# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Several teachers as one model."""

from collections.abc import Mapping
from typing import Any, Optional, Union

from mmengine.model import BaseModel
from torch import Tensor, nn

from transmamba_mm.registry import MODELS


class Teachers(BaseModel):
    """Teachers by name, each with a preprocessing of its own.

    Args:
        teachers (Mapping[str, dict | BaseModel]): Config or model of each.

    Raises:
        ValueError: If there is none, or one has no ``type``.
    """

    def __init__(self, teachers: Mapping[str, Union[dict, BaseModel]]) -> None:
        super().__init__()
        for name, teacher in teachers.items():
            if isinstance(teacher, dict) and 'type' in teacher:
                teacher = MODELS.build(teacher)
            if not isinstance(teacher, BaseModel):
                raise ValueError(
                    f'teacher={{...}} without a type holds teachers by name, '
                    f'and {name!r} is none: give the teacher its type, or, of '
                    f'several, each one'
                )
            self.add_module(name, teacher)
        if not teachers:
            raise ValueError('teacher={} holds no teacher')

    def forward(
        self,
        inputs: Tensor,
        data_samples: Optional[list] = None,
        mode: str = 'tensor',
    ) -> dict[str, Any]:
        """What each of them makes of the same input, by name."""
        return {
            name: teacher(inputs, data_samples, mode=mode)
            for name, teacher in teachers_of(self).items()
        }


def teachers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The teachers in a model by name; one alone is called ``''``."""
    if not isinstance(model, Teachers):
        return {'': model}
    preprocessor = model.data_preprocessor
    return {k: v for k, v in model.named_children() if v is not preprocessor}


def teacher_at(
    model: Optional[nn.Module], backbone: Optional[str]
) -> tuple[Optional[nn.Module], Optional[str]]:
    """The teacher that a module of a model belongs to.

    Args:
        model (nn.Module, optional): A teacher, or :class:`Teachers`.
        backbone (str, optional): Name of the module.

    Returns:
        tuple[nn.Module, str | None]: The teacher, and the module's name in
        it. A name that is of none of several gives the model as it is.
    """
    name, _, rest = (backbone or '').partition('.')
    if isinstance(model, Teachers) and name in teachers_of(model):
        return teachers_of(model)[name], rest or None
    return model, backbone
