# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The places of a pair that methods may read, by name.

==============  ===========================================================
``images``      What a student is shown, (B, 3, H, W) or (B, 3, T, H, W).
``labels``      Their classes (B,), or scores (B, K) where they are mixed.
``logits``      Class scores (B, K); of a retrieval model the scores (B, B) of
                each text with each video; of a language model those of each
                token that is no padding, (M, V), or of a model that answers
                questions those of the answers alone.
``answers``     What these are computed from,
                :class:`~transmamba_mm.contract.Answers`.
``embeddings``  A retrieval model's texts and videos in their common space,
                :class:`~transmamba_mm.contract.Embeddings`.
``tokens``      Tokens after the last layer and the final norm.
``lifted``      These as the neck widens them for the head, see
                :attr:`Student.lift`.
``layers``      The residual stream after each layer.
``streams``     The residual stream that each layer's mixer norm reads.
``mixers``      What each mixer (attention, or scans) adds to the stream.
``mixer_inputs``  Normalised tokens that each mixer reads.
``bc``          B and C of each direction, (B, L, K 2 N), see
                :meth:`DirectionTaps.show_maps`.
``qkv``         Queries, keys and values of each layer (B, L, 3 C), as they
                are projected.
==============  ===========================================================

``images``, ``labels``, ``lifted`` and ``bc`` are sites of students only,
``qkv`` of teachers only.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

IMAGES = 'images'
LABELS = 'labels'
LOGITS = 'logits'
EMBEDDINGS = 'embeddings'
ANSWERS = 'answers'
TOKENS = 'tokens'
LIFTED = 'lifted'
LAYERS = 'layers'
STREAMS = 'streams'
MIXERS = 'mixers'
MIXER_INPUTS = 'mixer_inputs'
BC = 'bc'
QKV = 'qkv'

#: Those that are read of a model's head.
SCORES = (LOGITS, EMBEDDINGS, ANSWERS)
_BOTH = (*SCORES, TOKENS, LAYERS, STREAMS, MIXERS, MIXER_INPUTS)
STUDENT_SITES = (IMAGES, LABELS, *_BOTH, LIFTED, BC)
TEACHER_SITES = (*_BOTH, QKV)


class Captured(NamedTuple):
    """What went into a module and came out of it.

    Attributes:
        inputs (tuple): Its positional arguments.
        output (Any): Its output.
        kwargs (dict, optional): Its keyword arguments, where they are read.
            Defaults to None.
    """

    inputs: tuple
    output: Any
    kwargs: Optional[dict] = None


def check_site(site: str, sites: Sequence[str], side: str) -> None:
    """Complains of a site that a side of the pair does not have.

    Args:
        site (str): The site.
        sites (Sequence[str]): Those that it has.
        side (str): What it is called.

    Raises:
        ValueError: If ``site`` is none of them.
    """
    if site not in sites:
        raise ValueError(
            f'a {side} has no site {site!r}; choose from {", ".join(sites)}'
        )
