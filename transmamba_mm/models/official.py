# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Telling checkpoints apart that look alike.

Checkpoints of Vim and VideoMamba have the same names and shapes, but stand
for other models: loading one into the other would go wrong without a word.
So a state dict notes what its names cannot say (:func:`note_layout`), and an
official file must give evidence of its family (:func:`check_official`).
"""

import os.path as osp
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Optional

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .backbones import MambaBackbone

#: Where a state dict's ``_metadata`` keeps the layout of a backbone.
NOTE = 'transmamba_layout'
CONVERTER = 'tools/model_converters/official_to_transmamba.py'

# How many times rougher the line breaks of a position embedding must be than
# its lines, and how much clearer one place of the class token must explain
# the first half than the other (1 is perfect, 0 undecided). From 8x8 patches
# and 16 independent channels on, random embeddings stay below 1.7, and smooth
# ones are above 3 and 0.6. Smaller grids have too few lines.
_CLEAR_BREAKS = 2.0
_CLEAR_SCORE = 0.5
_SMALLEST_SIDE = 8


class CheckpointError(ValueError, RuntimeError):
    """Weights that do not belong into this model.

    A ``RuntimeError``, too, because that is what a strict
    ``load_state_dict`` raises.
    """


@dataclass(frozen=True)
class OfficialFormat:
    """What a backbone knows about the checkpoints its authors released.

    Attributes:
        names (tuple[str, ...]): How names of the released models and files
            start, in lower case.
        keys (tuple[str, ...]): Tensors that only checkpoints of this family
            have.
        layout (dict[str, Any]): Values of :attr:`MambaBackbone.layout` that
            the released models have.
        mistaken_for (tuple[str, ...]): Families whose checkpoints have the
            same names and shapes.
        averaged (bool): Whether the reported accuracies are those of the
            averaged weights, which are then taken where a file has them.
    """

    names: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    layout: Mapping[str, Any] = field(default_factory=dict)
    mistaken_for: tuple[str, ...] = ()
    averaged: bool = False


@dataclass
class Source:
    """Where weights come from, as far as this is known.

    Attributes:
        content (Any): What the whole file holds.
        path (str, optional): Its path.
        family (str, optional): Family that the user named.
        hint (str): What to do if the family cannot be told.
    """

    content: Any = None
    path: Optional[str] = None
    family: Optional[str] = None
    hint: str = f'convert the file with {CONVERTER} --family NAME'

    def __str__(self) -> str:
        return f"'{self.path}'" if self.path else 'the checkpoint'


# --------------------------------------------------------------- the layout


def note_layout(
    backbone: 'MambaBackbone', state_dict: dict, prefix: str, metadata: dict
) -> None:
    """Notes the backbone's layout in its part of the ``_metadata``.

    With it goes the patch grid, which may be another where it is loaded.
    """
    grid = backbone.patch_embed.init_out_size
    metadata[NOTE] = _plain({**backbone.layout, 'grid': grid})


def check_layout(
    backbone: 'MambaBackbone',
    noted: Mapping[str, Any],
    source: Any = 'the checkpoint',
) -> None:
    """Refuses weights of a model that is laid out in another way.

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


# ------------------------------------------------------------- the evidence


def class_token_place(pos_embed: Tensor) -> Optional[str]:
    """Tells from a trained position embedding where its class row stands.

    Neighbours in a line of patches have similar embeddings; from the end of
    a line to the start of the next there is a jump. Rows after the middle
    are the same patches wherever the class row stands, and tell how large
    jumps are. Before it, the jumps are one row later if the class row comes
    first.

    Args:
        pos_embed (Tensor): (1, M + 1, C), M a square number of patches.

    Returns:
        str | None: ``'head'``, ``'middle'``, or None if it is not clear.
    """
    rows = pos_embed[0].double()
    patches = len(rows) - 1
    side = int(max(patches, 0) ** 0.5 + 0.5)
    if side < _SMALLEST_SIDE or side * side != patches:
        return None
    # steps[i] is the step from row i to row i + 1.
    steps = (rows[1:] - rows[:-1]).square().mean(dim=1)
    middle = patches // 2
    index = torch.arange(patches)
    late, early = index > middle, index < middle - 1
    breaks = index % side == 0  # patch `side * k` is row `side * k + 1`
    jump, smooth = steps[late & breaks].mean(), steps[late & ~breaks].mean()
    if not (jump > _CLEAR_BREAKS * smooth > 0):
        return None
    # The step from row 0 is to the class row or from it: in neither case
    # between neighbours.
    early &= index > 0
    if_head = steps[early & breaks].mean()
    if_middle = steps[early & (index % side == side - 1)].mean()
    score = (if_middle / if_head).log() / (jump / smooth).log()
    if score > _CLEAR_SCORE:
        return 'middle'
    return 'head' if score < -_CLEAR_SCORE else None


def find_evidence(
    backbone: 'MambaBackbone', tensors: Mapping[str, Tensor], source: Source
) -> list[tuple[str, str]]:
    """Collects what speaks for a family among those that look alike.

    Returns:
        list[tuple[str, str]]: The evidence in words, and the family.
    """
    families = backbone.families()
    asked = (backbone.FAMILY, *backbone.OFFICIAL.mistaken_for)
    rivals = {
        name: families[name].OFFICIAL for name in asked if name in families
    }
    found = []
    for family, official in rivals.items():
        found += [
            (f'it holds {key}', family)
            for key in official.keys
            if any(name.endswith(key) for name in tensors)
        ]
    content = source.content if isinstance(source.content, Mapping) else {}
    if source.family is not None:
        found.append(('you named the family', source.family))
    names = {'args.model': lookup(lookup(content, 'args'), 'model')}
    if source.family is None:  # a name that the user overrules
        names['the file name'] = osp.basename(source.path or '')
    for what, name in names.items():
        for family, official in rivals.items():
            if str(name).lower().startswith(official.names):
                found.append((f'{what} is {name!r}', family))
    place = tensors.get('pos_embed')
    if place is not None and place.dim() == 3:
        place = class_token_place(place)
        for family, official in rivals.items():
            if place and official.layout.get('class_token') == place:
                found.append(
                    (
                        f'its position embedding has the class token '
                        f'{"first" if place == "head" else "in the middle"}',
                        family,
                    )
                )
    return found


def check_converted(backbone: 'MambaBackbone', source: Source) -> None:
    """Refuses a converted file of another model, by its meta data.

    Raises:
        CheckpointError: If it says that it is one.
    """
    official = lookup(lookup(source.content, 'meta'), 'official')
    check_layout(backbone, lookup(official, 'layout') or {}, source)


def check_official(
    backbone: 'MambaBackbone', tensors: Mapping[str, Tensor], source: Source
) -> None:
    """Refuses an official checkpoint of a model that only looks alike.

    Raises:
        CheckpointError: If the evidence is for another family, or there is
            none, or the backbone is not laid out as the released ones.
    """
    own, kind = backbone.FAMILY, type(backbone).__name__
    if backbone.OFFICIAL.mistaken_for:
        found = find_evidence(backbone, tensors, source)
        if not found:
            alike = ' from '.join((own, *backbone.OFFICIAL.mistaken_for))
            raise CheckpointError(
                f'cannot tell {alike} in {source}: their tensors have the '
                f'same names and shapes, but the models differ, and nothing '
                f'in the file says which it is. If you know, {source.hint}'
            )
        if any(family != own for _, family in found):
            evidence = '; '.join(
                f'{family}, as {what}' for what, family in found
            )
            raise CheckpointError(
                f'{source} is not surely one of {own}, which {kind} needs. '
                f'Evidence: {evidence}. Use the backbone that belongs to the '
                f'file'
            )
    check_layout(backbone, backbone.OFFICIAL.layout, source)


def check_class_token(
    backbone: 'MambaBackbone', tensors: Mapping[str, Tensor], source: Source
) -> None:
    """Refuses weights whose class token clearly stands elsewhere.

    For weights that note no layout, as somebody has put them together.

    Raises:
        CheckpointError: If the position embedding shows it.
    """
    own = backbone.layout.get('class_token')
    positions = tensors.get('pos_embed')
    if own not in ('head', 'middle') or positions is None:
        return
    place = class_token_place(positions) if positions.dim() == 3 else None
    if place not in (None, own):
        raise CheckpointError(
            f'{source} belongs to another model than this '
            f'{type(backbone).__name__}: its position embedding has the class '
            f'token in place {place!r}, not {own!r}, as Vim (middle) and '
            f'VideoMamba (head) differ. Use the backbone that belongs to it'
        )


def lookup(owner: Any, name: str) -> Any:
    """An entry of a mapping or an attribute; None if there is none."""
    if isinstance(owner, Mapping):
        return owner.get(name)
    return getattr(owner, name, None)
