# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Which of the teacher's channels a narrower student stands for."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Optional

import torch
from torch import Tensor, nn

from .records import TokenRecord


class KeptChannels(nn.Module):
    """The teacher's residual channels that subcloning gave to the student.

    One index set for each width of the student below the teacher's. They are
    buffers: stage one fills them in, and a checkpoint keeps them.

    Args:
        student_backbone (str, optional): Name of the student's module, for
            models that hold several. Defaults to None, the only one.
        teacher_backbone (str, optional): Likewise of the teacher's.
    """

    def __init__(
        self,
        student_backbone: Optional[str] = None,
        teacher_backbone: Optional[str] = None,
    ) -> None:
        super().__init__()
        self.student_backbone = student_backbone
        self.teacher_backbone = teacher_backbone

    def expect(self, widths: Iterable[int]) -> None:
        """Makes room for index sets, by the widths of the student."""
        for width in sorted(set(widths)):
            empty = torch.full((width,), -1)
            self.register_buffer(f'width_{width}', empty)

    def reset_parameters(self) -> None:
        """Forgets all channels."""
        for index in self.buffers(recurse=False):
            index.fill_(-1)

    def take(self, kept: Mapping[int, Tensor]) -> None:
        """Takes the channels (width,) that stage one kept, by width."""
        for width, index in kept.items():
            if f'width_{width}' in self._buffers:
                self._buffers[f'width_{width}'].copy_(index)

    def of(self, record: TokenRecord, width: int) -> TokenRecord:
        """Restricts a teacher's tokens to what the student stands for.

        Args:
            record (TokenRecord): Of a teacher layer, (B, L, C).
            width (int): Of the student layer.

        Returns:
            TokenRecord: (B, L, width); the same where the widths agree.

        Raises:
            RuntimeError: See :meth:`select`.
        """
        return replace(
            record,
            tokens=self.select(record.tokens, width),
            classes=self.select(record.classes, width),
        )

    def select(self, features: Tensor, width: int) -> Tensor:
        """Restricts features (..., C) to (..., width).

        Raises:
            RuntimeError: If no subcloning chose the channels.
        """
        if features.shape[-1] == width:
            return features
        index = self._buffers.get(f'width_{width}')
        if index is None or index[0] < 0:
            raise RuntimeError(
                f'the student ({width} channels) is compared with those of '
                f"the teacher's {features.shape[-1]} channels that weight "
                f'subcloning gave it, and it gave none: add dict(type='
                f"'transmamba.SubcloneInitializer') to custom_hooks, choose "
                f'a student that is not wider than the teacher, or, for '
                f"hidden states, set channels='learned'"
            )
        return features.index_select(-1, index)
