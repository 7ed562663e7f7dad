# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The teachers' side of a step: what they see, and whether they run."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Optional, Union

import torch
from mmengine.structures import BaseDataElement
from mmrazor.models.distillers import ConfigurableDistiller
from mmrazor.models.task_modules.recorder.base_recorder import BaseRecorder
from torch import Tensor, nn

from transmamba_mm.checkpoints import CheckpointError, read_state_dict
from transmamba_mm.contract import TeacherInput, teachers_of

from .recorders import place_of
from .schedule import recorders_read, recording

# Not part of a teacher: preprocessing constants, and the buffers that
# mmpretrain's EMA used to write beside the weights.
_IGNORED_PREFIXES = ('data_preprocessor.', 'ema_')


class TeacherBranch:
    """Gives the recorders of a distiller what the teachers make of a batch.

    Args:
        teacher (nn.Module): The teacher, or
            :class:`~transmamba_mm.contract.Teachers`.
        preprocessor (nn.Module): What makes the student's batches.

    Attributes:
        teachers (dict[str, nn.Module]): By name; one alone is called ``''``.
        inputs (dict[str, TeacherInput]): What each of them sees.

    Raises:
        ValueError: If a teacher's preprocessing cannot be had from the
            student's.
    """

    # Not a module: the algorithm owns the teachers.
    def __init__(self, teacher: nn.Module, preprocessor: nn.Module) -> None:
        self.teachers = teachers_of(teacher)
        self.inputs = {
            name: TeacherInput(each, preprocessor)
            for name, each in self.teachers.items()
        }

    def record(
        self,
        distiller: ConfigurableDistiller,
        losses: Sequence[str],
        images: Tensor,
        samples: Optional[list[BaseDataElement]],
    ) -> None:
        """Fills the recorders of the teachers that these losses read.

        Args:
            distiller (ConfigurableDistiller): Whose recorders.
            losses (Sequence[str]): Names of the losses that count now.
            images (Tensor): The student's batch (B, C, H, W).
            samples (list[BaseDataElement], optional): Annotations.
        """
        read = recorders_read(distiller, losses, student=False)
        with recording(distiller, losses, student=False), torch.no_grad():
            for name in self.read_by(read.values()):
                images_of = self.inputs[name](images)
                self.teachers[name](images_of, samples, mode='tensor')

    def read_by(self, recorders: Iterable[BaseRecorder]) -> list[str]:
        """Names of the teachers that recorders may read."""
        found: set[str] = set()
        for recorder in recorders:
            place = place_of(recorder).replace('\\', '') + '.'
            named = {x for x in self.teachers if place.startswith(f'{x}.')}
            found |= named or set(self.teachers)
        return [x for x in self.teachers if x in found or not found]

    def load(self, path: Union[str, Mapping[str, str], None]) -> None:
        """Loads the teachers' weights, all or nothing.

        Args:
            path (str | Mapping[str, str], optional): Path or URL of the
                checkpoint, by name where there are several. A teacher that
                is left out has a ``Pretrained`` in its ``init_cfg``.

        Raises:
            ValueError: If a teacher has no checkpoint, or any tensor is
                missing, superfluous or of another shape.
        """
        paths = path if isinstance(path, Mapping) else {'': path}
        if path is not None and (unknown := paths.keys() - self.teachers):
            raise ValueError(
                f'teacher_ckpt is of the teachers {sorted(unknown)}; there '
                f'are {list(self.teachers)}: say teacher_ckpt=dict(NAME=...) '
                f'of several, and the path alone of one'
            )
        for name, teacher in self.teachers.items():
            _load(teacher, paths.get(name) or _pretrained_path(teacher), name)


def _load(teacher: nn.Module, path: Optional[str], name: str) -> None:
    called = f'the teacher {name}'.rstrip()
    if path is None:
        raise ValueError(
            f'{called} has no weights: set teacher_ckpt (path or URL) '
            f'of TransMambaDistill'
        )
    state = {
        key: value
        for key, value in read_state_dict(path).items()
        if not key.startswith(_IGNORED_PREFIXES)
    }
    try:
        teacher.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = str(error).splitlines()
        detail = '\n'.join(line[:300] for line in lines[1:7])
        raise CheckpointError(
            f"teacher checkpoint '{path}' does not match {called} "
            f'({type(teacher).__name__}): give the checkpoint of this very '
            f'architecture and number of classes.\n{detail}'
        ) from error
    # Keeps BaseModule.init_weights from initialising it anew.
    teacher._is_init = True


def _pretrained_path(teacher: nn.Module) -> Optional[str]:
    """Checkpoint that a teacher's ``init_cfg`` names, if any."""
    init_cfg = getattr(teacher, 'init_cfg', None)
    if isinstance(init_cfg, dict) and init_cfg.get('type') == 'Pretrained':
        return init_cfg['checkpoint']
    return None
