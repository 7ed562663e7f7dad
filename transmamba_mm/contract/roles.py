# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The vocabulary in which teachers and students name their parameters.

A teacher family and a student backbone each map their own parameter names to
roles (``layers.3.ffn_in.weight``). Weight subcloning then pairs equal roles
and cuts every tensor along the axes stated here. Parameters of the state
space model have the role ``layers.<i>.ssm.<name>``, without axes: a
Transformer has no counterpart for them. Nor has it one for ``lift.weight``
and ``lift.bias`` of a student whose neck widens its features. Weight decay
goes by roles as well.
"""

from collections.abc import Sequence
from typing import Optional, Union

from torch import Tensor

#: Channels of the residual stream: one index set for the whole network.
RESIDUAL = 'residual'
#: Hidden channels of an FFN: one index set per layer.
HIDDEN = 'hidden'
#: Channels between a mixer and its output projection: one set per layer.
INNER = 'inner'
#: Positions of the patch grid: resized, never selected.
TOKEN = 'token'
#: Must have the same size on both sides.
KEEP = 'keep'

_WEIGHT_AND_BIAS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    'patch_embed': ((RESIDUAL, KEEP, KEEP, KEEP), (RESIDUAL,)),
    'patch_norm': ((RESIDUAL,), (RESIDUAL,)),
    'mixer_norm': ((RESIDUAL,), (RESIDUAL,)),
    'mixer_out': ((RESIDUAL, INNER), (RESIDUAL,)),
    'ffn_norm': ((RESIDUAL,), (RESIDUAL,)),
    'ffn_in': ((HIDDEN, RESIDUAL), (HIDDEN,)),
    # What multiplies `ffn_in`, after SiLU, in a gated FFN.
    'ffn_gate': ((HIDDEN, RESIDUAL), (HIDDEN,)),
    'ffn_out': ((RESIDUAL, HIDDEN), (RESIDUAL,)),
    'final_norm': ((RESIDUAL,), (RESIDUAL,)),
    'head': ((KEEP, RESIDUAL), (KEEP,)),
}

#: Axes of each role, by role without its ``layers.<i>.`` prefix.
AXES: dict[str, tuple[str, ...]] = {
    'embed.weight': (KEEP, RESIDUAL),
    'pos_embed': (KEEP, TOKEN, RESIDUAL),
    'temporal_pos_embed': (KEEP, KEEP, RESIDUAL),
    'cls_token': (KEEP, KEEP, RESIDUAL),
}
for _stem, (_weight, _bias) in _WEIGHT_AND_BIAS.items():
    AXES[f'{_stem}.weight'] = _weight
    AXES[f'{_stem}.bias'] = _bias

#: Roles that weight decay spares, without their layer, and the names that
#: options have for them.
UNDECAYED: dict[str, str] = {
    'ssm.A': 'A',
    'ssm.D': 'D',
    'ssm.dt_proj.bias': 'dt_bias',
    'ssm.direction': 'direction',
    'pos_embed': 'pos_embed',
    'temporal_pos_embed': 'temporal_pos_embed',
    'cls_token': 'cls_token',
}

#: The teacher's fused query, key and value projection; has no counterpart in
#: a student and serves ``ssm_from='attention'`` alone.
QKV = 'qkv'


def split_role(role: str) -> tuple[Optional[int], str]:
    """Splits ``'layers.3.ffn_in.weight'`` into ``(3, 'ffn_in.weight')``.

    Args:
        role (str): The role.

    Returns:
        tuple[int | None, str]: The layer, None outside the layers, and the
        role within it.
    """
    if not role.startswith('layers.'):
        return None, role
    _, layer, rest = role.split('.', 2)
    return int(layer), rest


def is_ssm(role: str) -> bool:
    """Whether a role belongs to the state space model."""
    return split_role(role)[1].startswith('ssm.')


def in_group(role: str, group: Union[str, Sequence[str]]) -> bool:
    """Whether a role belongs to a group of parameters.

    Args:
        role (str): The role.
        group (str | Sequence[str]): ``'all'``; ``'mixers'``, the scans with
            the norms and projections around them; a role without its layer
            and leaf, e.g. ``'mixer_out'``; or several of these.

    Returns:
        bool: Whether it does.
    """
    if not isinstance(group, str):
        return any(in_group(role, each) for each in group)
    kind = split_role(role)[1].split('.')[0]
    if group == 'mixers':
        return kind in ('ssm', 'mixer_norm', 'mixer_out')
    return group in ('all', kind)


def inflated(weight: Tensor, frames: int) -> Tensor:
    """A patch embedding of images, for tubelets: it reads the middle frame.

    Args:
        weight (Tensor): (embed_dims, in_channels, h, w).
        frames (int): Frames of a tubelet.

    Returns:
        Tensor: (embed_dims, in_channels, frames, h, w), zero elsewhere.
    """
    result = weight.new_zeros(*weight.shape[:2], frames, *weight.shape[2:])
    result[:, :, frames // 2] = weight
    return result
