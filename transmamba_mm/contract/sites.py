# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The places of a pair that methods may read, by name.

==============  ===========================================================
``logits``      Class scores (B, K).
``tokens``      Tokens after the last layer and the final norm.
``layers``      The residual stream after each layer.
``streams``     The residual stream that each layer's mixer norm reads.
``mixers``      What each mixer (attention, or scans) adds to the stream.
``mixer_inputs``  Normalised tokens that each mixer reads.
``qkv``         Queries, keys and values of each layer (B, L, 3 C); of
                teachers only.
==============  ===========================================================
"""

from typing import Any, NamedTuple

LOGITS = 'logits'
TOKENS = 'tokens'
LAYERS = 'layers'
STREAMS = 'streams'
MIXERS = 'mixers'
MIXER_INPUTS = 'mixer_inputs'
QKV = 'qkv'

SITES = (LOGITS, TOKENS, LAYERS, STREAMS, MIXERS, MIXER_INPUTS, QKV)


class Captured(NamedTuple):
    """What went into a module and came out of it.

    Attributes:
        inputs (tuple): Its positional arguments.
        output (Any): Its output.
    """

    inputs: tuple
    output: Any


def check_site(site: str) -> None:
    """Complains of a site that does not exist.

    Args:
        site (str): The site.

    Raises:
        ValueError: If ``site`` is none of :data:`SITES`.
    """
    if site not in SITES:
        raise ValueError(
            f'there is no site {site!r}; choose from {", ".join(SITES)}'
        )
