# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""CLIP's checkpoints, and those of retrieval models made of CLIP.

Known are OpenAI's (TorchScript archives too, of which the tensors alone are
read), open_clip's, CLIP4Clip's and mmaction2's, by the names of their
tensors. Files of open_clip do not tell that most of its models have GELU in
place of QuickGELU: say ``act='gelu'`` of both towers then.
"""

import re
from collections.abc import Mapping
from typing import Optional

from torch import Tensor, nn

from .files import CheckpointError, Source, strip_prefix
from .load import check_match
from .weights import read_state_dict

# Of the archives: sizes and a mask, which the towers know by themselves.
_CONSTANTS = re.compile(
    r'(.+\.)?(input_resolution|context_length|vocab_size|attn_mask)'
)
_TEXT = re.compile(
    r'(token_embedding|transformer|ln_final)\.|positional_embedding$|'
    r'text_projection$'
)
_VISION = 'visual.'
# Beginnings of names beside CLIP's own, and ours.
_HEADS = (
    ('frame_position_embeddings.', 'head.frame_position_embeddings.'),
    ('transformerClip.', 'head.transformer.'),
    (
        'adapter.positional_embedding',
        'head.frame_position_embeddings.weight',
    ),
    ('adapter.transformer.', 'head.transformer.'),
)


def is_clip(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether tensors are named as those of a whole CLIP, by whoever."""
    return any(
        key.removeprefix('clip.') == 'visual.conv1.weight'
        for key in state_dict
    )


def as_openai(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's tensors under OpenAI's names.

    Args:
        state_dict (Mapping[str, Tensor]): Tensors of a whole CLIP. Names may
            start with ``clip.``, as CLIP4Clip's and mmaction2's, those of
            the text tower with ``text.``, as some of open_clip's.

    Returns:
        dict[str, Tensor]: All tensors. Those beside CLIP keep their names.
    """
    renamed = {}
    for key, value in state_dict.items():
        key = key.removeprefix('clip.').removeprefix('text.')
        if not _CONSTANTS.fullmatch(key):
            renamed[key] = value
    return renamed


def as_retriever(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a CLIP, or of a retrieval model made of it, by our names.

    Args:
        state_dict (Mapping[str, Tensor]): See :func:`as_openai`; with those
            of CLIP4Clip's ``seqTransf`` head, or mmaction2's
            ``TransformerAdapter``, if it has one.

    Returns:
        dict[str, Tensor]: All tensors, by the names that a
        ``VideoTextRetriever`` of the two towers has. What is of neither
        keeps its name.
    """
    named = {}
    for key, value in as_openai(state_dict).items():
        for old, new in _HEADS:
            if key.startswith(old):
                key = new + key[len(old) :]
                break
        else:
            if key.startswith(_VISION):
                key = f'backbone.model.{key[len(_VISION) :]}'
            elif key == 'logit_scale':
                key = 'head.logit_scale'
            elif _TEXT.match(key):
                key = f'text_encoder.{key}'
        named[key] = value
    return named


def load_tower(
    tower: nn.Module, path: str, part: str, prefix: Optional[str] = None
) -> None:
    """Loads a tower strictly from a file of CLIP, or of the tower alone.

    Args:
        tower (nn.Module): The tower.
        path (str): Path or URL.
        part (str): ``'visual.'``, or ``''`` for the text tower.
        prefix (str, optional): Prefix of the tower, or of CLIP, in the file.
            Defaults to None.

    Raises:
        CheckpointError: If the file lacks a tensor, or has one that is no
            part of a CLIP, or of another shape.
    """
    source = Source(path=path)
    state = read_state_dict(path)
    if prefix:
        found = strip_prefix(state, f'{prefix.rstrip(".")}.')
        if not found:
            raise CheckpointError(
                f'{source} has no tensor with the prefix {prefix!r}; its '
                f'tensors are {", ".join(list(state)[:3])}, ...'
            )
        state = found
    if is_clip(state):
        state = as_openai(state)
        heads = tuple(old for old, _ in _HEADS)
        left = {
            key: value
            for key, value in state.items()
            if key != 'logit_scale' and not key.startswith(heads)
        }
        of_text = {k: v for k, v in left.items() if _TEXT.match(k)}
        of_vision = strip_prefix(left, _VISION)
        unknown = [
            key
            for key in left
            if key not in of_text and not key.startswith(_VISION)
        ]
        if unknown:
            raise CheckpointError(
                f'{source} has {", ".join(unknown[:4])}, which no CLIP has: '
                f'it computes something else'
            )
        state = of_vision if part else of_text
    check_match(tower, state, source)
    tower.load_state_dict(state)
