# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Telling the families of released checkpoints apart that look alike."""

import logging
import os.path as osp
from collections.abc import Mapping
from typing import Any, Optional

import torch
from mmengine.logging import print_log
from torch import Tensor

from .files import CheckpointError, Source, lookup
from .formats import FORMATS
from .layout import Stored, check_layout

# How many times rougher the line breaks of a position embedding must be than
# its lines, and how much clearer one place of the class token must explain
# the first half than the other (1 is perfect, 0 undecided). From 8x8 patches
# and 16 independent channels on, random embeddings stay below 1.7, and smooth
# ones are above 3 and 0.6. Smaller grids have too few lines.
_CLEAR_BREAKS = 2.0
_CLEAR_SCORE = 0.5
_SMALLEST_SIDE = 8


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
    backbone: Stored, tensors: Mapping[str, Tensor], source: Source
) -> list[tuple[str, str]]:
    """Collects what speaks for a family among those that look alike.

    Args:
        backbone (Stored): The backbone.
        tensors (Mapping[str, Tensor]): What is to be loaded.
        source (Source): Where it comes from.

    Returns:
        list[tuple[str, str]]: The evidence in words, and the family.
    """
    own = backbone.FORMAT
    rivals = {own.family: own} | {
        name: FORMATS[name] for name in own.mistaken_for if name in FORMATS
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


def check_converted(backbone: Stored, source: Source) -> None:
    """Refuses a converted file of another model, by its meta data.

    Args:
        backbone (Stored): The backbone.
        source (Source): Where the weights come from.

    Raises:
        CheckpointError: If it says that it is one.
    """
    official = lookup(lookup(source.content, 'meta'), 'official')
    check_layout(backbone, lookup(official, 'layout') or {}, source)


def check_official(
    backbone: Stored, tensors: Mapping[str, Tensor], source: Source
) -> None:
    """Refuses an official checkpoint of a model that only looks alike.

    Args:
        backbone (Stored): The backbone.
        tensors (Mapping[str, Tensor]): What is to be loaded.
        source (Source): Where it comes from.

    Raises:
        CheckpointError: If the evidence is for another family, or there is
            none, or the backbone is not laid out as the released ones.
    """
    own, kind = backbone.FORMAT.family, type(backbone).__name__
    if backbone.FORMAT.mistaken_for:
        found = find_evidence(backbone, tensors, source)
        if not found:
            alike = ' from '.join((own, *backbone.FORMAT.mistaken_for))
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
    check_layout(backbone, backbone.FORMAT.layout, source)


def check_class_token(
    backbone: Stored,
    tensors: Mapping[str, Tensor],
    source: Any = 'the checkpoint',
    warn: bool = True,
) -> None:
    """Refuses weights whose class token clearly stands elsewhere.

    For weights that note no layout, as somebody has put them together, or
    passed them through a format that keeps tensors alone.

    Args:
        backbone (Stored): The backbone.
        tensors (Mapping[str, Tensor]): What is to be loaded, by its names.
        source (Any): Where it comes from. Defaults to ``'the checkpoint'``.
        warn (bool): Whether to warn if nothing tells them from those of a
            family that looks alike. Defaults to True.

    Raises:
        CheckpointError: If the position embedding shows it.
    """
    own = backbone.layout.get('class_token')
    positions = tensors.get('pos_embed')
    place = None
    if positions is not None and positions.dim() == 3:
        place = class_token_place(positions)
    whole = backbone.state_dict().keys() <= tensors.keys()
    if place is None:
        rivals = backbone.FORMAT.mistaken_for
        if warn and whole and rivals:
            print_log(
                f'{source} notes no layout, and nothing in it tells '
                f'{backbone.FORMAT.family} from {", ".join(rivals)}, whose '
                f'tensors have the same names and shapes: make sure that it '
                f'is of a {type(backbone).__name__}',
                logger='current',
                level=logging.WARNING,
            )
    elif own in ('head', 'middle') and place != own:
        raise CheckpointError(
            f'{source} belongs to another model than this '
            f'{type(backbone).__name__}: its position embedding has the class '
            f'token in place {place!r}, not {own!r}, as Vim (middle) and '
            f'VideoMamba (head) differ. Use the backbone that belongs to it'
        )
