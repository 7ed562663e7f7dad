# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Rename the tensors of a model of timm or transformers inside another model.

Cures:      ``TimmClassifier`` and ``HuggingFaceClassifier`` leave ``model.``
            out of the names they save and add it to those they load. The
            names are left out of a new dict, which PyTorch takes from the
            root of a model alone. So what another model, as a retriever, has
            saved of such a part does not load into it again; and the new dict
            has no ``_metadata``.
Versions:   mmpretrain <= 1.2.0.
Delete:     when ``_remove_state_dict_prefix`` changes the dict itself.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from torch import nn

__all__ = ['rename_wrapped_models']


def _rename(
    module: nn.Module, state_dict: Any, prefix: str, metadata: dict
) -> None:
    """A hook of ``state_dict`` that leaves out ``model.`` in place."""
    inside = f'{prefix}model.'
    for names in (state_dict, getattr(state_dict, '_metadata', {})):
        _cut(names, inside, prefix)


def _cut(names: MutableMapping, inside: str, prefix: str) -> None:
    for name in list(names):
        # Of metadata, which name modules, the dot at the end is missing.
        if f'{name}.'.startswith(inside):
            value = names.pop(name)
            names[f'{prefix}{name[len(inside) :]}'.rstrip('.')] = value


def rename_wrapped_models() -> str:
    """Have the names of wrapped models changed in place.

    Returns:
        str: What was done.
    """
    from mmpretrain.models import HuggingFaceClassifier, TimmClassifier

    for kind in (TimmClassifier, HuggingFaceClassifier):
        kind._remove_state_dict_prefix = staticmethod(_rename)
    return 'models of timm and transformers load as parts of others'
