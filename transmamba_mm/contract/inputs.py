# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""How a teacher gets the student's images in its own preprocessing."""

from dataclasses import dataclass
from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from mmengine.model import (
    BaseDataPreprocessor,
    BaseModel,
    ImgDataPreprocessor,
)
from mmpretrain.models import ClsDataPreprocessor, VideoDataPreprocessor
from torch import Tensor, nn

from transmamba_mm.registry import MODELS

from .teacher import Teacher, TeacherError


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images of another size, bicubic with antialiasing.

    Args:
        images (Tensor): (B, C, H, W), or videos (B, C, T, H, W).
        size (tuple[int, int]): Height and width.

    Returns:
        Tensor: Of the same rank.
    """
    if tuple(images.shape[-2:]) == size or not len(images):
        return images
    if images.dim() == 5:
        frames = resized(images.transpose(1, 2).flatten(0, 1), size)
        return frames.unflatten(0, (len(images), -1)).transpose(1, 2)
    return F.interpolate(images, size, mode='bicubic', antialias=True)


@MODELS.register_module()
class ResizingDataPreprocessor(ClsDataPreprocessor):
    """A ``ClsDataPreprocessor`` that brings images to a size of its own.

    As a teacher's ``data_preprocessor`` it gives the teacher its own
    resolution of the student's images.

    Args:
        size (int | Sequence[int]): Side, or height and width, in pixels.
        **kwargs: Further arguments of mmpretrain's ``ClsDataPreprocessor``.
    """

    def __init__(self, size: Union[int, tuple], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = (size, size) if isinstance(size, int) else tuple(size)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Preprocesses a batch; see ``ClsDataPreprocessor``."""
        data = super().forward(data, training)
        data['inputs'] = resized(data['inputs'], self.size)
        return data


@dataclass(frozen=True)
class Format:
    """What a data preprocessor makes of pixels.

    Attributes:
        mean (tuple[float, ...] | None): Of each channel, or of all. None
            where nothing is normalised.
        std (tuple[float, ...] | None): Likewise.
        flips (bool): Whether it turns the order of three channels.
        divisor (int): Sides are padded to multiples of it, with values that
            are not normalised.
    """

    mean: Optional[tuple[float, ...]] = None
    std: Optional[tuple[float, ...]] = None
    flips: bool = False
    divisor: int = 1

    @classmethod
    def of(cls, preprocessor: nn.Module) -> 'Format':
        """The format that a data preprocessor gives.

        Raises:
            ValueError: If it is of an unknown kind.
        """
        if isinstance(
            preprocessor, (ClsDataPreprocessor, VideoDataPreprocessor)
        ):
            flips = preprocessor.to_rgb
        elif isinstance(preprocessor, ImgDataPreprocessor):
            flips = preprocessor._channel_conversion
        elif type(preprocessor) is BaseDataPreprocessor:
            return cls()
        else:
            raise ValueError(
                f'it is not known how {type(preprocessor).__name__} '
                f'normalises: teacher and student need a data_preprocessor '
                f"of mmpretrain's ClsDataPreprocessor or "
                f"VideoDataPreprocessor or mmengine's "
                f'ImgDataPreprocessor where their normalisations differ'
            )
        constants = {}
        if preprocessor._enable_normalize:
            for name in ('mean', 'std'):
                values = getattr(preprocessor, name).flatten()
                constants[name] = tuple(values.tolist())
        divisor = preprocessor.pad_size_divisor
        return cls(**constants, flips=bool(flips), divisor=divisor)

    def constants(self, channels: int) -> tuple[Tensor, Tensor]:
        """Means and deviations of the channels (C,), in float64."""
        mean = torch.tensor(self.mean or (0.0,), dtype=torch.float64)
        std = torch.tensor(self.std or (1.0,), dtype=torch.float64)
        return mean.expand(channels), std.expand(channels)

    def __str__(self) -> str:
        mean, std = (
            values and [float(f'{value:g}') for value in values]
            for values in (self.mean, self.std)
        )
        return (
            f'mean={mean}, std={std}, to_rgb={self.flips}, '
            f'pad_size_divisor={self.divisor}'
        )


class TeacherInput:
    """Turns the student's batch into that of a teacher.

    A teacher whose ``data_preprocessor`` says nothing of means and channel
    order is given the student's normalisation. Otherwise the student's is
    undone and the teacher's applied; batch augmentations, which come after
    the normalisation, are affine as well and reach both alike.

    Args:
        teacher (nn.Module): The teacher.
        preprocessor (nn.Module): What makes the student's batch.

    Attributes:
        size (tuple[int, int] | None): Height and width that the teacher
            wants, None for the student's.

    Raises:
        ValueError: If one preprocessing cannot be converted to the other.
    """

    def __init__(self, teacher: nn.Module, preprocessor: nn.Module) -> None:
        own = _preprocessor_of(teacher)
        self.size = input_size(teacher)
        try:
            self._channels = Teacher(teacher).in_channels
        except TeacherError:
            self._channels = None  # not known
        self._formats: Optional[tuple[Format, Format]] = None
        theirs = Format.of(own)
        self._preprocessor = preprocessor
        if theirs.mean is not None or theirs.flips:
            ours = Format.of(preprocessor)
            if ours != theirs:
                self._formats = ours, theirs
            if ours != theirs and (ours.divisor, theirs.divisor) != (1, 1):
                raise ValueError(
                    f"the student's images ({ours}) cannot be brought to the "
                    f"teacher's preprocessing ({theirs}): padding is not "
                    f'normalised; pad in the pipeline instead'
                )

    def __call__(self, images: Any) -> Any:
        """The student's images or videos, as the teacher wants them.

        A list holds those of each sample. What else is no tensor, the dict
        of a language model, goes as it is.
        """
        if isinstance(images, (list, tuple)):
            return [self(each) for each in images]
        if not isinstance(images, Tensor):
            return images
        channels = images.shape[1]
        wanted = self._channels or channels
        if channels not in (1, wanted):
            raise ValueError(
                f'the student gets images of {channels} channels, the '
                f'teacher wants {wanted}: load images for both that have as '
                f'many, or one that is repeated'
            )
        images = images.expand(-1, wanted, *images.shape[2:])
        if self._formats is not None:
            images = self._renormalised(images)
        return images if self.size is None else resized(images, self.size)

    @property
    def format(self) -> str:
        """str: What makes the teacher's pixels of raw ones."""
        seen = Format.of(self._preprocessor)
        if self._formats is not None:
            seen = self._formats[1]
        return f'{seen}, size={self.size}'

    def _renormalised(self, images: Tensor) -> Tensor:
        ours, theirs = self._formats
        channels = images.shape[1]
        try:
            mean, std = ours.constants(channels)
            target_mean, target_std = theirs.constants(channels)
        except RuntimeError as error:
            raise ValueError(
                f'images of {channels} channels fit the preprocessing of '
                f'the student ({ours}) or of the teacher ({theirs}) not'
            ) from error
        if channels == 3 and ours.flips != theirs.flips:
            images, mean, std = images.flip(1), mean.flip(0), std.flip(0)
        scale, shift = std / target_std, (mean - target_mean) / target_std
        shape = (-1,) + (1,) * (images.dim() - 2)
        scale, shift = (x.to(images).view(shape) for x in (scale, shift))
        return torch.addcmul(shift, images, scale)


def input_size(teacher: nn.Module) -> Optional[tuple[int, int]]:
    """Height and width that a teacher wants; None for the student's."""
    own = _preprocessor_of(teacher)
    return own.size if isinstance(own, ResizingDataPreprocessor) else None


def _preprocessor_of(model: nn.Module) -> nn.Module:
    """A model's data preprocessor; one that does nothing if it has none."""
    if isinstance(model, BaseModel):
        return model.data_preprocessor
    return BaseDataPreprocessor()
