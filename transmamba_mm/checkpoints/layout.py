# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What the names and shapes of a backbone's tensors cannot tell.

Checkpoints of Vim and VideoMamba have the same names and shapes, but stand
for other models: loading one into the other would go wrong without a word.
So a state dict notes what its names cannot say.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor

from .files import CheckpointError
from .formats import CheckpointFormat

#: Where a state dict's ``_metadata`` keeps the layout of a backbone.
NOTE = 'transmamba_layout'


class Stored(Protocol):
    """What a backbone tells about its checkpoints.

    Attributes:
        FORMAT (CheckpointFormat): What its files are like.
        FINAL_NORM (str): Name of its norm after the last layer.
        layout (dict[str, Any]): What the names and shapes of the tensors
            cannot tell, plain values.
    """

    FORMAT: ClassVar[CheckpointFormat]
    FINAL_NORM: ClassVar[str]
    layout: dict[str, Any]

    def state_dict(self) -> Mapping[str, Tensor]:
        """The tensors it has."""

    def fitted(
        self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """What tensors become so that they fit, as far as they can.

        Args:
            tensors (Mapping[str, Tensor]): Tensors by the backbone's names,
                not changed.
            note (Mapping[str, Any]): The layout noted with them, maybe
                empty.

        Returns:
            dict[str, Tensor]: The tensors, e.g. with positions resized.
        """


def note_layout(
    backbone: Stored, state_dict: dict, prefix: str, metadata: dict
) -> None:
    """Notes the backbone's layout in its part of the ``_metadata``.

    With it goes the patch grid, which may be another where it is loaded.

    Args:
        backbone (Stored): The backbone.
        state_dict (dict): Not read; PyTorch's hooks get it.
        prefix (str): Likewise.
        metadata (dict): The backbone's part of the ``_metadata``, changed.
    """
    grid = backbone.patch_embed.init_out_size
    metadata[NOTE] = _plain({**backbone.layout, 'grid': grid})


def check_layout(
    backbone: Stored,
    noted: Mapping[str, Any],
    source: Any = 'the checkpoint',
) -> None:
    """Refuses weights of a model that is laid out in another way.

    What is noted of settings that the backbone does not have is no matter.

    Args:
        backbone (Stored): The backbone.
        noted (Mapping[str, Any]): The layout noted with the weights.
        source (Any): Where they come from. Defaults to ``'the checkpoint'``.

    Raises:
        CheckpointError: If a value is another than the backbone's.
    """
    own, noted = _plain(backbone.layout), _plain(noted)
    wrong = [key for key in own if key in noted and noted[key] != own[key]]
    if not wrong:
        return
    difference = '; '.join(
        f'{key} is {noted[key]!r} there and {own[key]!r} here' for key in wrong
    )
    raise CheckpointError(
        f'{source} belongs to another model than this '
        f'{type(backbone).__name__}: {difference}. Its tensors may have the '
        f'same names and shapes, but would not work: build the model with '
        f'the settings of the checkpoint. (To load them all the same, drop '
        f'the note: model.load_state_dict(dict(state_dict)).)'
    )


def _plain(layout: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that compares equal after it has been stored and read."""
    return {
        key: list(value) if isinstance(value, (list, tuple)) else value
        for key, value in layout.items()
    }
