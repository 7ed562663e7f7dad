# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Where the parameters of the state space model come from.

The paper leaves them fresh, or takes them from a pretrained (Video)Mamba.
``'attention'`` goes beyond it, as an ablation: the value projection becomes
the ``x`` half of ``in_proj``, and the key and query projections become the
``B`` and ``C`` rows of ``x_proj``.
"""

from collections.abc import Mapping, Sequence
from typing import Optional

import torch
from torch import Tensor

from transmamba_mm.contract.roles import INNER, QKV, RESIDUAL, split_role

from .pairing import Pairing
from .plan import TransferEntry, TransferError


class SSMSource:
    """Fresh SSM parameters; optionally re-drawn convolutions.

    Args:
        conv_init (str, optional): ``'normal'`` draws the convolutions from
            N(0, ``conv_std``), as the paper does for language models. None
            keeps the backbone's own initialisation. Defaults to None.
        conv_std (float): Standard deviation of that draw. Defaults to 1.
        seed (int): Seed of that draw. Defaults to 0.

    Raises:
        TransferError: If ``conv_init`` is unknown.
    """

    def __init__(
        self,
        conv_init: Optional[str] = None,
        conv_std: float = 1.0,
        seed: int = 0,
    ) -> None:
        if conv_init not in (None, 'normal'):
            raise TransferError(
                f"conv_init must be None or 'normal', got {conv_init!r}"
            )
        self.conv_init = conv_init
        self.conv_std = conv_std
        self.generator = torch.Generator().manual_seed(seed)

    def describe(self) -> str:
        """What to call this source in a plan."""
        return 'fresh'

    def fill(self, entry: TransferEntry, role: str, pairing: Pairing) -> None:
        """Decides rule and value of one SSM parameter.

        Args:
            entry (TransferEntry): The entry to complete.
            role (str): ``layers.<i>.ssm.<name>``.
            pairing (Pairing): Gives the teacher and the index sets.
        """
        kind = split_role(role)[1]
        if self.conv_init == 'normal' and kind == 'ssm.conv.weight':
            entry.rule = 'init'
            entry.note = f'conv_init: N(0, {self.conv_std:g})'
            entry.value = self.conv_std * torch.randn(
                entry.shape, generator=self.generator
            )
        elif entry.value is None and not entry.note:
            entry.note = 'SSM'

    def check(self, entries: Sequence[TransferEntry]) -> None:
        """Refuses a plan in which this source could not do its part.

        Args:
            entries (Sequence[TransferEntry]): All entries of the plan.
        """


class PretrainedSSM(SSMSource):
    """SSM parameters of a pretrained Mamba of the student's own family.

    It also gives the output projection of a mixer where the attention's does
    not fit, and it serves all layers, whatever ``early_layers`` says of the
    teacher.

    Args:
        state_dict (Mapping[str, Tensor]): Its weights, under any prefix.
        **kwargs: See :class:`SSMSource`.
    """

    def __init__(self, state_dict: Mapping[str, Tensor], **kwargs) -> None:
        super().__init__(**kwargs)
        self.state_dict = state_dict

    def describe(self) -> str:
        """What to call this source in a plan."""
        return 'pretrained Mamba'

    def fill(self, entry: TransferEntry, role: str, pairing: Pairing) -> None:
        """Copies the parameter of the same name and shape."""
        name = entry.name.split('backbone.', 1)[-1]
        for key, value in self.state_dict.items():
            if key == name or key.endswith('.' + name):
                if value.shape == torch.Size(entry.shape):
                    entry.rule, entry.source, entry.value = 'ssm', key, value
                else:
                    entry.note = (
                        f'SSM; the pretrained one is {tuple(value.shape)}'
                    )
                break
        super().fill(entry, role, pairing)

    def check(self, entries: Sequence[TransferEntry]) -> None:
        """Refuses a pretrained Mamba that fits no parameter.

        Raises:
            TransferError: If no SSM parameter was copied.
        """
        if not any(entry.rule == 'ssm' for entry in entries):
            sample = ', '.join(list(self.state_dict)[:3])
            raise TransferError(
                f'ssm_from fits no SSM parameter of the student by name and '
                f'shape (it starts with {sample}): give the checkpoint of a '
                f"Mamba of the student's own family and size"
            )


class AttentionSSM(SSMSource):
    """SSM projections taken from the teacher's attention.

    ``in_proj`` rows of ``x`` are the value projection (repeated where
    ``d_inner`` exceeds the attention width). ``B`` and ``C`` read the
    convolved ``x`` instead of the residual stream, so their rows are the
    least-squares solutions of ``W_B W_V = W_K`` and ``W_C W_V = W_Q`` on the
    kept channels; both keep the same ``d_state`` attention channels, chosen
    by the importance of the layer's inner axis.

    Args:
        **kwargs: See :class:`SSMSource`.
    """

    def describe(self) -> str:
        """What to call this source in a plan."""
        return 'attention'

    def fill(self, entry: TransferEntry, role: str, pairing: Pairing) -> None:
        """Fills ``in_proj`` and ``x_proj``; all else stays fresh."""
        layer, kind = split_role(role)
        source, reason = pairing.source_layer(layer)
        qkv = pairing.teacher.tensors.get(f'layers.{source}.{QKV}.weight')
        wanted = ('ssm.in_proj.weight', 'ssm.in_proj.bias')
        if reason:
            entry.note = reason
        elif kind == 'ssm.x_proj.weight':
            self._fill_x_proj(entry, layer, source, qkv, pairing)
        elif kind in wanted:
            self._fill_in_proj(entry, layer, source, kind, pairing)
        super().fill(entry, role, pairing)

    @staticmethod
    def _value_rows(d_inner: int, source: int, sub: Pairing) -> Tensor:
        """Attention channels behind the ``d_inner`` channels of ``x``."""
        width = sub.teacher.layer_dims[source]
        if d_inner < width:
            return sub.indices(INNER, source, d_inner)
        return torch.arange(d_inner) % width

    @staticmethod
    def _columns(weight: Tensor, dims: int, sub: Pairing) -> Tensor:
        """Keeps the student's residual channels of a projection."""
        if dims == weight.shape[1]:
            return weight
        return weight.index_select(1, sub.indices(RESIDUAL, None, dims))

    def _fill_in_proj(
        self,
        entry: TransferEntry,
        layer: int,
        source: int,
        kind: str,
        sub: Pairing,
    ) -> None:
        leaf = kind.rsplit('.', 1)[1]
        key = f'layers.{source}.{QKV}.{leaf}'
        qkv = sub.teacher.tensors.get(key)
        if qkv is None:
            entry.note = 'SSM; the teacher has no such projection'
            return
        d_inner = self._size(layer, 'ssm.conv.weight', 0, sub)
        value = qkv.chunk(3)[2][self._value_rows(d_inner, source, sub)]
        if value.dim() == 2:
            value = self._columns(value, entry.shape[1], sub)
        entry.rule, entry.value = 'attention', value
        entry.source = sub.teacher.names[key]
        entry.index = (slice(0, d_inner),)
        entry.note = (
            'from V'
            if entry.shape[0] == d_inner
            else 'x half from V; z half fresh'
        )

    def _fill_x_proj(
        self,
        entry: TransferEntry,
        layer: int,
        source: int,
        qkv: Optional[Tensor],
        sub: Pairing,
    ) -> None:
        if qkv is None:
            entry.note = 'SSM; the teacher has no such projection'
            return
        dims = sub.backbone.layer_dims[layer]
        d_state = self._size(layer, 'ssm.A', -1, sub)
        width = qkv.shape[0] // 3
        if d_state > width:
            entry.note = f'SSM; d_state {d_state} > attention width {width}'
            return
        query, key, value = qkv.double().chunk(3)
        rows = self._value_rows(entry.shape[-1], source, sub)
        back = torch.linalg.pinv(self._columns(value[rows], dims, sub))
        states = (
            torch.arange(width)
            if d_state == width
            else sub.indices(INNER, source, d_state)
        )
        blocks = [
            self._columns(weight[states], dims, sub) @ back
            for weight in (key, query)
        ]
        # One copy for each direction where they have projections of their own.
        directions, rows = entry.shape[:-2], entry.shape[-2]
        value = torch.cat(blocks).to(qkv.dtype)
        entry.rule, entry.value = (
            'attention',
            value.expand(*directions, -1, -1),
        )
        entry.source = sub.teacher.names[f'layers.{source}.{QKV}.weight']
        entry.index = (
            *(slice(0, size) for size in directions),
            slice(rows - 2 * d_state, rows),
        )
        entry.note = 'B from K, C from Q; dt rows fresh'

    @staticmethod
    def _size(layer: int, role: str, dim: int, sub: Pairing) -> int:
        """Size of the layer's first parameter whose role starts so."""
        start = f'layers.{layer}.{role}'
        parameters = dict(sub.student.named_parameters())
        for name, own in sub.roles.items():
            if own.startswith(start):
                return parameters[name].shape[dim]
        raise TransferError(
            f"ssm_from='attention' needs the role {start!r}, which no "
            f'parameter of {type(sub.backbone).__name__} has'
        )


def build_ssm_source(
    ssm_from: Optional[str], state_dict: Optional[Mapping] = None, **kwargs
) -> SSMSource:
    """Builds the source that ``ssm_from`` names.

    Args:
        ssm_from (str, optional): None for fresh parameters, ``'attention'``,
            or the path that ``state_dict`` was read from.
        state_dict (Mapping, optional): Weights of the pretrained Mamba.
        **kwargs: See :class:`SSMSource`.
    """
    if ssm_from is None:
        return SSMSource(**kwargs)
    if ssm_from == 'attention':
        return AttentionSSM(**kwargs)
    return PretrainedSSM(state_dict, **kwargs)
