# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The teachers' side of a step: what they see, and whether they run."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Optional, Union

import torch
from mmengine.structures import BaseDataElement
from mmpretrain.models import ClsDataPreprocessor
from mmrazor.models.distillers import ConfigurableDistiller
from mmrazor.models.task_modules.recorder.base_recorder import BaseRecorder
from torch import Tensor, nn

from transmamba_mm.checkpoints import (
    CheckpointError,
    digest_of,
    fit_names,
    read_declared,
    read_state_dict,
)
from transmamba_mm.contract import TeacherInput, teachers_of
from transmamba_mm.contract.answers import answer_reader
from transmamba_mm.contract.embedding_head import embedding_head
from transmamba_mm.contract.sites import LOGITS

from .calibration import FeatureCalibration
from .patch_tokens import PatchTokensRecorder
from .recorders import SiteRecorder
from .schedule import recorders_read, recording
from .teacher_cache import Identity, TeacherCache

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
        cache (TeacherCache | None): What is known of the images already.

    Raises:
        ValueError: If a teacher's preprocessing cannot be had from the
            student's.
    """

    # Not a module: the algorithm owns the teachers.
    def __init__(self, teacher: nn.Module, preprocessor: nn.Module) -> None:
        self.teachers = teachers_of(teacher)
        self._preprocessor = preprocessor
        self.inputs = {
            name: TeacherInput(each, preprocessor)
            for name, each in self.teachers.items()
        }
        self.cache: Optional[TeacherCache] = None

    def record(
        self,
        distiller: ConfigurableDistiller,
        losses: Sequence[str],
        images: Union[Tensor, list[Tensor]],
        samples: Optional[list[BaseDataElement]],
    ) -> None:
        """Fills the recorders of the teachers that these losses read.

        Args:
            distiller (ConfigurableDistiller): Whose recorders.
            losses (Sequence[str]): Names of the losses that count now.
            images (Tensor | list[Tensor]): The student's batch
                (B, C, H, W), or the images (n, C, H, W) of each sample.
            samples (list[BaseDataElement], optional): Annotations.
        """
        read = recorders_read(distiller, losses, student=False)
        known = self.cache and self.cache.recall(read, samples, images.device)
        if not known:
            with recording(distiller, losses, student=False), torch.no_grad():
                for name in self.read_by(read.values()):
                    images_of = self.inputs[name](images)
                    self.teachers[name](images_of, samples, mode='tensor')
            if self.cache:
                self.cache.keep(read, samples)
        _tell_grids(distiller, losses)

    def read_by(self, recorders: Iterable[BaseRecorder]) -> list[str]:
        """Names of the teachers that recorders may read."""
        found: set[str] = set()
        for recorder in recorders:
            place = recorder.source
            if isinstance(recorder, (SiteRecorder, PatchTokensRecorder)):
                place = recorder.backbone or place
            place = place.replace('\\', '') + '.'
            named = {x for x in self.teachers if place.startswith(f'{x}.')}
            found |= named or set(self.teachers)
        return [x for x in self.teachers if x in found or not found]

    # ---------------------------------------------------------- the cache

    def open_cache(
        self,
        cache: TeacherCache,
        distiller: ConfigurableDistiller,
        one_image: Callable[[], dict],
        identity: Identity,
    ) -> None:
        """Looks records up from now on, and keeps those that are missing.

        Args:
            cache (TeacherCache): The cache.
            distiller (ConfigurableDistiller): Whose recorders.
            one_image (Callable[[], dict]): Gives a preprocessed batch of one
                image, if the cache has to be made.
            identity (Mapping[str, str]): What records depend on beside
                teachers and recorders.

        Raises:
            ValueError: If the cache is stale, too large, or of no use here.
        """
        if distiller.deliveries.deliveries:
            raise ValueError(
                'a teacher cache has nothing for distill_deliveries'
            )
        if isinstance(self._preprocessor, ClsDataPreprocessor) and (
            self._preprocessor.batch_augments is not None
        ):
            raise ValueError(
                'mixup and cutmix mix images anew in every batch, which no '
                'teacher cache can hold: leave out train_cfg of the student, '
                'or the cache'
            )
        if any(map(answer_reader, self.teachers.values())):
            raise ValueError(
                'a teacher cache is for images, not for conversations, '
                'which differ in length: leave out the cache'
            )
        losses = list(distiller.loss_forward_mappings)
        read = recorders_read(distiller, losses, student=False)
        for recorder in read.values():
            teachers = [self.teachers[x] for x in self.read_by([recorder])]
            if recorder.source == LOGITS and any(
                embedding_head(teacher) for teacher in teachers
            ):
                raise ValueError(
                    'the scores of a retrieval model compare all that is in '
                    'a batch, which no teacher cache can hold: '
                    'leave out the methods that read them, or the cache'
                )
        identities = {
            name: {**identity, **self._identity(recorder)}
            for name, recorder in read.items()
        }
        if cache.open(identities):
            with cache.lock():
                missing = cache.open(identities)
                if missing:
                    batch = one_image()
                    images, samples = batch['inputs'], batch['data_samples']
                    self.record(distiller, losses, images, samples)
                    made = {name: read[name] for name in missing}
                    cache.create(made, identities)
        cache.check_room()
        self.cache = cache

    def close_cache(self) -> None:
        """Runs the teachers on every batch again."""
        self.cache.flush()
        self.cache = None

    def _identity(self, recorder: BaseRecorder) -> dict[str, str]:
        """What a recorder's records depend on, but for the images."""
        read = self.read_by([recorder])
        weights, structure = [], hashlib.blake2b()
        for name in read:
            weights.append(digest_of(self.teachers[name].state_dict()))
            for key, module in self.teachers[name].named_modules():
                public = _settings_of(module, private=False)
                structure.update(f'{key} {public}'.encode())
        return {
            'recorder': _settings_of(recorder, private=True),
            'weights of the teacher': ' '.join(weights),
            'structure of the teacher': structure.hexdigest(),
            'input of the teacher': str([self.inputs[x].format for x in read]),
        }

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
            _load(teacher, paths.get(name), name)


def _tell_grids(
    distiller: ConfigurableDistiller, losses: Iterable[str]
) -> None:
    """Tells connectors on which grid their teacher's tokens lie now."""
    for loss in losses:
        read = recorders_read(distiller, [loss], student=False).values()
        grids = [x.grid for x in read if isinstance(x, PatchTokensRecorder)]
        for source in distiller.loss_forward_mappings[loss].values():
            name = source.get('connector')
            connector = distiller.connectors[name] if name else None
            if grids and isinstance(connector, FeatureCalibration):
                connector.teacher_grid = grids[0]


def _load(teacher: nn.Module, path: Optional[str], name: str) -> None:
    called = f'the teacher {name}'.rstrip()
    hint = ''
    if path is None:
        state, path = read_declared(teacher)
    else:
        state = fit_names(read_state_dict(path), teacher)
        hint = _where_inside(state, teacher)
    if state is None:
        raise ValueError(
            f'{called} has no weights: set teacher_ckpt (path or URL) '
            f"of TransMambaDistill, or init_cfg=dict(type='Pretrained', "
            f'checkpoint=...) of the teacher or of all its parts'
        )
    state = {
        key: value
        for key, value in state.items()
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
            f'architecture and number of classes.{hint}\n'
            f'{detail}'
        ) from error
    # Keeps BaseModule.init_weights from initialising it anew.
    teacher._is_init = True


def _where_inside(state: Mapping[str, Tensor], teacher: nn.Module) -> str:
    """How to load a file of which the teacher is a part."""
    own = teacher.state_dict()
    last = f'.{next(iter(own))}'
    fronts = [key.removesuffix(last) for key in state if key.endswith(last)]
    whole = [x for x in fronts if all(f'{x}.{key}' in state for key in own)]
    if not whole:
        return ''
    return (
        f' It holds such a model under {", ".join(map(repr, whole))}: set '
        f"init_cfg=dict(type='Pretrained', checkpoint=..., "
        f'prefix={whole[0]!r}) of the teacher in place of teacher_ckpt'
    )


def _settings_of(part: object, private: bool) -> str:
    """Type and plain attributes, such as a number of heads."""
    plain = (bool, int, float, str, tuple, type(None))
    settings = {
        key: value
        for key, value in vars(part).items()
        if isinstance(value, plain) and (private or key[0] != '_')
    }
    return f'{type(part).__qualname__} {sorted(settings.items())}'
