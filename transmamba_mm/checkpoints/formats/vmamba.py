# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""VMamba (arXiv 2401.10166, github.com/MzeroMiko/VMamba), all releases."""

import re
from collections.abc import Mapping

from torch import Tensor

from .base import CheckpointFormat, name_as_classifier, register

# Names of the first release, and what the later ones call the same.
_OLD_NAMES = (
    (r'^patch_embed\.proj\.', 'patch_embed.0.'),
    (r'^patch_embed\.norm\.', 'patch_embed.2.'),
    (r'\.ln_1\.', '.norm.'),
    (r'\.self_attention\.', '.op.'),
    (r'^norm\.', 'classifier.norm.'),
    (r'^head\.', 'classifier.head.'),
)
_LINEAR = r'(in_proj|out_proj|fc1|fc2|reduction|classifier\.head)\.weight$'
# The one-file version numbers the parts of its first downsampling.
_MERGE = r'^(layers\.\d+\.downsample)\.([12])\.'


def to_classifier(
    state_dict: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Names an official checkpoint's tensors as an mmpretrain classifier's.

    The classifier is an ``ImageClassifier`` of a ``VMamba`` and a
    ``LinearClsHead``. Understood are the names of all releases: those of the
    first one (``self_attention``, ``ln_1``), 1x1 convolutions for Linears,
    the grouped convolutions and numbered downsampling of the one-file
    version, and detection backbones with ``outnorm<stage>``.

    Args:
        state_dict (Mapping[str, Tensor]): The tensors of an official file.

    Returns:
        dict[str, Tensor]: The same tensors under ``backbone.`` and
        ``head.fc.``, in the same order.
    """
    renamed = {}
    for key, value in state_dict.items():
        for old, new in _OLD_NAMES:
            key = re.sub(old, new, key)
        match = re.match(_MERGE, key)
        if match and f'{match[1]}.2.weight' in state_dict:
            part = 'norm' if match[2] == '1' else 'reduction'
            key = f'{match[1]}.{part}.{key[match.end() :]}'
        renamed[key] = value
    stages = [re.match(r'layers\.(\d+)\.', key) for key in renamed]
    last = max((int(match[1]) for match in stages if match), default=-1)
    converted = {}
    for key, value in renamed.items():
        key, value = _ungroup(key, value, renamed)
        if value.dim() == 4 and key == 'pos_embed':
            value = value.flatten(2).mT
        elif value.dim() == 4 and re.search(_LINEAR, key):
            value = value.flatten(1)
        converted[key] = value
    return name_as_classifier(
        converted,
        {
            'classifier.norm.': 'backbone.norm.',
            f'outnorm{last}.': 'backbone.norm.',
            'classifier.head.': 'head.fc.',
        },
    )


def _ungroup(
    key: str, value: Tensor, state_dict: Mapping[str, Tensor]
) -> tuple[str, Tensor]:
    """Takes grouped convolutions apart: one matrix per direction."""
    mixer, _, leaf = key.rpartition('.op.')
    names = {
        'x_proj.weight': 'x_proj_weight',
        'dt_projs.weight': 'dt_projs_weight',
        'dt_projs.bias': 'dt_projs_bias',
    }
    if leaf not in names:
        return key, value
    inner = state_dict[f'{mixer}.op.out_proj.weight'].shape[1]
    total = state_dict[f'{mixer}.op.A_logs'].shape[:-1].numel()
    value = value.unflatten(0, (total // inner, -1))
    if leaf != 'dt_projs.bias':
        value = value.flatten(2)
    return f'{mixer}.op.{names[leaf]}', value


VMAMBA = register(
    CheckpointFormat(
        family='vmamba',
        layout=dict(
            directions=(
                *('raster', 'column'),
                *('raster_reverse', 'column_reverse'),
            ),
            act='silu',
            gate_act=True,
            out_act=False,
            mlp_act='gelu',
        ),
        averaged=True,
        optional=r'outnorm\d+\.',
        to_classifier=to_classifier,
    )
)
