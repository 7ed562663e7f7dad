# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Teacher families: how a Transformer names its parameters.

A family is a table of name patterns. It is recognised by its signature
parameter, under any prefix, so checkpoints of a bare backbone, of an
mmpretrain classifier and of mmpretrain's timm wrapper are all read. To add a
family, append one :class:`TeacherFamily` to :data:`FAMILIES`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .roles import split_role


class TransferError(ValueError):
    """Weights cannot be transferred as asked."""


@dataclass(frozen=True)
class TeacherFamily:
    """Parameter names of one family of Transformers.

    Attributes:
        name (str): What to call it in messages.
        signature (str): A parameter name that only this family has.
        roles (tuple[tuple[str, str], ...]): ``(pattern, role)`` pairs for
            names relative to the backbone.
        head (str): Name of the classifier layer relative to the backbone,
            or, starting with ``^``, to the whole model.
    """

    name: str
    signature: str
    roles: tuple[tuple[str, str], ...]
    head: str


FAMILIES = [
    TeacherFamily(
        'mmpretrain VisionTransformer',
        'layers.0.attn.qkv.weight',
        (
            (r'patch_embed\.projection\.(\w+)', r'patch_embed.\1'),
            (r'(pos_embed|cls_token)', r'\1'),
            (r'layers\.(\d+)\.ln1\.(\w+)', r'layers.\1.mixer_norm.\2'),
            (r'layers\.(\d+)\.attn\.qkv\.(\w+)', r'layers.\1.qkv.\2'),
            (r'layers\.(\d+)\.attn\.proj\.(\w+)', r'layers.\1.mixer_out.\2'),
            (r'layers\.(\d+)\.attn\.gamma1\.weight', r'layers.\1.mixer_scale'),
            (r'layers\.(\d+)\.ffn\.gamma2\.weight', r'layers.\1.ffn_scale'),
            (r'layers\.(\d+)\.ln2\.(\w+)', r'layers.\1.ffn_norm.\2'),
            (
                r'layers\.(\d+)\.ffn\.layers\.0\.0\.(\w+)',
                r'layers.\1.ffn_in.\2',
            ),
            (
                r'layers\.(\d+)\.ffn\.layers\.1\.(\w+)',
                r'layers.\1.ffn_out.\2',
            ),
            (r'ln1\.(\w+)', r'final_norm.\1'),
        ),
        '^head.layers.head',
    ),
    TeacherFamily(
        'timm VisionTransformer',
        'blocks.0.attn.qkv.weight',
        (
            (r'patch_embed\.proj\.(\w+)', r'patch_embed.\1'),
            (r'(pos_embed|cls_token)', r'\1'),
            (r'blocks\.(\d+)\.norm1\.(\w+)', r'layers.\1.mixer_norm.\2'),
            (r'blocks\.(\d+)\.attn\.qkv\.(\w+)', r'layers.\1.qkv.\2'),
            (r'blocks\.(\d+)\.attn\.proj\.(\w+)', r'layers.\1.mixer_out.\2'),
            (r'blocks\.(\d+)\.ls1\.gamma', r'layers.\1.mixer_scale'),
            (r'blocks\.(\d+)\.ls2\.gamma', r'layers.\1.ffn_scale'),
            (r'blocks\.(\d+)\.norm2\.(\w+)', r'layers.\1.ffn_norm.\2'),
            (r'blocks\.(\d+)\.mlp\.fc1\.(\w+)', r'layers.\1.ffn_in.\2'),
            (r'blocks\.(\d+)\.mlp\.fc2\.(\w+)', r'layers.\1.ffn_out.\2'),
            (r'norm\.(\w+)', r'final_norm.\1'),
        ),
        'head',
    ),
]

# Tokens of a ViT that are no patches, each a parameter (1, n, C).
_EXTRA_TOKENS = ('cls_token', 'dist_token', 'reg_token')


@dataclass(frozen=True)
class TeacherWeights:
    """A teacher's tensors by role.

    Attributes:
        family (str): Name of the recognised family.
        tensors (dict[str, Tensor]): Role to tensor.
        names (dict[str, str]): Role to the teacher's parameter name.
        num_extra_tokens (int): Leading entries of its position embedding
            that belong to class and similar tokens.
    """

    family: str
    tensors: dict[str, Tensor]
    names: dict[str, str]
    num_extra_tokens: int

    @property
    def embed_dims(self) -> int:
        """int: Width of the residual stream."""
        return self.tensors['layers.0.mixer_norm.weight'].numel()

    @property
    def num_layers(self) -> int:
        """int: Number of layers."""
        return 1 + max(
            layer
            for layer, _ in map(split_role, self.tensors)
            if layer is not None
        )

    @property
    def grid(self) -> tuple[int, int]:
        """tuple[int, int]: (h, w) of the position embedding, square.

        Raises:
            TransferError: If the patch positions form no square.
        """
        count = self.tensors['pos_embed'].shape[1] - self.num_extra_tokens
        side = math.isqrt(count)
        if not _is_square(count):
            raise TransferError(
                f"the teacher's position embedding has {count} patch "
                f'positions, which form no square grid to resize from'
            )
        return side, side


def read_teacher(state_dict: Mapping[str, Tensor]) -> TeacherWeights:
    """Recognises a Transformer in a state dict and names its tensors.

    Args:
        state_dict (Mapping[str, Tensor]): Weights of a teacher, with or
            without a prefix.

    Returns:
        TeacherWeights: The tensors by role.

    Raises:
        TransferError: If no known family fits.
    """
    for family in FAMILIES:
        matches = [k for k in state_dict if k.endswith(family.signature)]
        if matches:
            prefix = matches[0][: -len(family.signature)]
            return _read_family(family, prefix, state_dict)
    sample = ', '.join(list(state_dict)[:3])
    raise TransferError(
        f'no known Transformer in this checkpoint (looked for '
        f'{" or ".join(f.signature for f in FAMILIES)}; it starts with '
        f'{sample}). Check teacher_ckpt, or describe the teacher by a '
        f'TeacherFamily in transmamba_mm/transfer/families.py'
    )


def _read_family(
    family: TeacherFamily, prefix: str, state_dict: Mapping[str, Tensor]
) -> TeacherWeights:
    head = family.head
    if head.startswith('^'):
        head = prefix.removesuffix('backbone.') + head[1:]
    else:
        head = prefix + head
    tensors, names, extra = {}, {}, 0
    for key, value in state_dict.items():
        role = None
        if key in (f'{head}.weight', f'{head}.bias'):
            role = 'head.' + key.rsplit('.', 1)[1]
        elif key.startswith(prefix):
            relative = key[len(prefix) :]
            if relative in _EXTRA_TOKENS:
                extra += value.shape[1]
            for pattern, candidate in family.roles:
                match = re.fullmatch(pattern, relative)
                if match:
                    role = match.expand(candidate)
                    break
        if role is not None:
            tensors[role] = value
            names[role] = key
    scaled = _fold_layer_scale(tensors, names)
    if scaled and _is_square(tensors['pos_embed'].shape[1]):
        extra = 0  # DeiT III adds positions before it adds the class token
    return TeacherWeights(family.name, tensors, names, extra)


def _is_square(count: int) -> bool:
    return math.isqrt(count) ** 2 == count


def _fold_layer_scale(
    tensors: dict[str, Tensor], names: dict[str, str]
) -> bool:
    """Multiplies a LayerScale into the projection in front of it.

    Students have none; the projection alone would be many times too large.

    Returns:
        bool: Whether there was any.
    """
    scales = [role for role in tensors if role.endswith('_scale')]
    for role in scales:
        gamma = tensors.pop(role)
        names.pop(role)
        stem = role[: -len('_scale')] + '_out'
        weight, bias = f'{stem}.weight', f'{stem}.bias'
        tensors[weight] = gamma.unsqueeze(1) * tensors[weight]
        if bias in tensors:
            tensors[bias] = gamma * tensors[bias]
    return bool(scales)
