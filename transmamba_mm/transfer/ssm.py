# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Where the parameters of the state space model come from.

The paper leaves them fresh, or takes them from a pretrained (Video)Mamba.
``'attention'`` goes beyond it, as an ablation: the value projection becomes
the ``x`` half of ``in_proj``, and the key and query projections become the
``B`` and ``C`` rows of ``x_proj``.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Optional

import torch
from torch import Tensor

from transmamba_mm.checkpoints import LazyTensors
from transmamba_mm.contract.layer_map import resolve_layer_map
from transmamba_mm.contract.roles import INNER, QKV, RESIDUAL, split_role

from .donor import Donor
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


#: A Mamba-1 under the names of ``mamba_ssm``, and the roles of its tensors.
_MAMBA = re.compile(
    r'(?:.*\.)?layers\.(\d+)\.mixer\.'
    r'(?:(in|x|dt|out)_proj|(conv)1d|(A)_log|(D))(\.weight|\.bias)?'
)


def read_mamba(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of a Mamba-1's parameters by role, none if there is no Mamba.

    Args:
        state_dict (Mapping[str, Tensor]): Weights under the names of
            ``mamba_ssm``, with any prefix. Of Vim they are its forward
            direction.

    Returns:
        dict[str, str]: Role to name.
    """
    names = {}
    for key in state_dict:
        match = _MAMBA.fullmatch(key)
        if match:
            layer, projection, *others, leaf = match.groups(default='')
            kind = f'ssm.{projection}_proj' if projection else 'ssm.'
            kind = 'mixer_out' if projection == 'out' else kind
            names[f'layers.{layer}.{kind}{"".join(others)}{leaf}'] = key
    return names


class PretrainedSSM(SSMSource):
    """SSM parameters of a pretrained Mamba.

    One of the student's own family gives the tensors of the same names. Of
    a Mamba-1 (or Vim) under the names of ``mamba_ssm``, all directions of a
    student's layer take the forward scan of one of its layers, which are
    spread evenly over the student's. A tensor that does not fit is cut if
    the donor is larger in all sizes; see :class:`~.donor.Donor`.

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
        self._mamba = read_mamba(state_dict)
        layers = [split_role(role)[0] for role in self._mamba]
        self._depth = max(layers, default=-1) + 1
        self._donor = Donor(state_dict, self._mamba)

    def describe(self) -> str:
        """What to call this source in a plan."""
        return 'pretrained Mamba'

    def fill(self, entry: TransferEntry, role: str, pairing: Pairing) -> None:
        """Copies the parameter that stands for this one, if it fits.

        Raises:
            TransferError: If one of the two normalises B, C and step sizes,
                as far as this is known.
        """
        self._check_norm(pairing)
        key = self._find(entry, role, pairing)
        if key is not None:
            value = self.state_dict[key]
            shape = torch.Size(entry.shape)
            if value.shape == shape[-value.dim() :]:
                entry.rule, entry.source = 'ssm', key
                # One copy for each direction where they have their own.
                entry.value = value.expand(shape)
            elif cut := self._cut(key, entry, role, pairing):
                entry.rule, entry.source = 'ssm', key
                entry.value, entry.note = cut
            else:
                entry.note = f'SSM; the pretrained one is {tuple(value.shape)}'
        super().fill(entry, role, pairing)

    def _check_norm(self, pairing: Pairing) -> None:
        kind = ''
        if isinstance(self.state_dict, LazyTensors):
            kind = self.state_dict.model_type
        norm = pairing.backbone.mixers()[0].norm_bc_dt
        wanted = {'falcon_mamba': True, 'mamba': False}.get(kind)
        if wanted is not None and wanted != (norm is not None):
            raise TransferError(
                f'ssm_from is a {kind}, which '
                f'{"normalises" if wanted else "does not normalise"} B, C and '
                f'step sizes, and the student has norm_bc_dt={norm}: set '
                f'mixer_cfg=dict(norm_bc_dt={"1e-6" if wanted else None})'
            )

    def _cut(
        self, key: str, entry: TransferEntry, role: str, pairing: Pairing
    ) -> Optional[tuple[Callable[[], Tensor], str]]:
        """See :meth:`Donor.cut`."""
        layer, kind = split_role(role)
        sources = [x for x, name in self._mamba.items() if name == key]
        if not sources:
            return None
        shapes = {}
        for name, parameter in pairing.student.named_parameters():
            place, own = split_role(pairing.roles.get(name, ''))
            if place == layer:
                shapes.setdefault(own, parameter.shape)
        source, _ = split_role(sources[0])
        return self._donor.cut(kind, source, entry.shape, shapes)

    def _find(
        self, entry: TransferEntry, role: str, pairing: Pairing
    ) -> Optional[str]:
        one_way = len(pairing.backbone.directions) == 1
        if not self._mamba or (not one_way and self._is_own(pairing)):
            name = entry.name.split('backbone.', 1)[-1]
            return self._named(name)
        layer, kind = split_role(role)
        ours = pairing.backbone.layer_dims
        spread = resolve_layer_map('uniform', ours, (0,) * self._depth)
        return self._mamba.get(f'layers.{spread[layer]}.{kind}')

    def _named(self, name: str) -> Optional[str]:
        keys = (k for k in self.state_dict if f'.{k}'.endswith(f'.{name}'))
        return next(keys, None)

    def _is_own(self, pairing: Pairing) -> bool:
        """Whether it has all names of the student's first mixer."""
        return all(
            self._named(name.split('backbone.', 1)[-1])
            for name, role in pairing.roles.items()
            if role.startswith('layers.0.ssm.')
        )

    def check(self, entries: Sequence[TransferEntry]) -> None:
        """Refuses a pretrained Mamba that fits no parameter.

        Raises:
            TransferError: If no SSM parameter was copied.
        """
        if any(entry.rule == 'ssm' for entry in entries):
            return
        pretrained = 'SSM; the pretrained one is '
        sizes = [
            f'{entry.name} is {entry.shape}, '
            f'{entry.note.removeprefix("SSM; ")}'
            for entry in entries
            if entry.note.startswith(pretrained)
        ]
        sample = ', '.join(list(self.state_dict)[:3])
        raise TransferError(
            'ssm_from fits no SSM parameter of the student by name and '
            f'shape (it starts with {sample}'
            + (f'; {"; ".join(sizes[:3])}' if sizes else '')
            + "): give the checkpoint of a Mamba of the student's own family "
            "and size, or a Mamba-1 under mamba_ssm's names that has its "
            'width, expand, d_state and dt_rank'
        )


class AttentionSSM(SSMSource):
    """SSM projections taken from the teacher's attention.

    ``in_proj`` rows of ``x`` are the value projection (repeated where
    ``d_inner`` exceeds the attention width). ``B`` and ``C`` read the
    convolved ``x`` instead of the residual stream, so their rows are the
    least-squares solutions of ``W_B W_V = W_K`` and ``W_C W_V = W_Q`` on the
    kept channels; both keep the same ``d_state`` attention channels, chosen
    by the importance of the layer's inner axis, or by ``|k| |q|`` where
    :meth:`Pairing.states` says so.

    Softmax does not see what all keys have in common, and a state sums it up
    over all tokens. ``mean_inputs`` takes it out. ``x_proj`` has no bias, and
    the bias of the keys is dropped with or without this. So the mean key is
    not subtracted: the rows of ``B`` lose their part along the mean ``x``,
    which makes the mean ``B`` zero, taken before convolution and SiLU.

    Args:
        mean_inputs (Callable, optional): Gives the mean normalised token (C,)
            of each teacher layer. Defaults to None, keys as they are.
        **kwargs: See :class:`SSMSource`.
    """

    def __init__(
        self,
        mean_inputs: Optional[Callable[[], Sequence[Tensor]]] = None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.mean_inputs = mean_inputs and cache(mean_inputs)

    def describe(self) -> str:
        """What to call this source in a plan."""
        return 'attention' + ', keys centred' * bool(self.mean_inputs)

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
        if dims > weight.shape[1]:
            raise TransferError(
                f"ssm_from='attention' needs a student that is not wider than "
                f'its teacher: {dims} and {weight.shape[1]} channels'
            )
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
        value = self._columns(value[rows], dims, sub)
        back = torch.linalg.pinv(value)
        states = torch.arange(width)
        if d_state < width:
            score = key.norm(dim=1) * query.norm(dim=1)
            states = sub.states(source, d_state, score)
        blocks = [
            self._columns(weight[states], dims, sub) @ back
            for weight in (key, query)
        ]
        if self.mean_inputs is not None:
            mean = self._mean_x(layer, source, value, rows, sub)
            mean = mean / mean.norm().clamp(min=1e-12)
            blocks[0] = blocks[0] - blocks[0] @ mean.outer(mean)
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

    def _mean_x(
        self,
        layer: int,
        source: int,
        weight: Tensor,
        rows: Tensor,
        sub: Pairing,
    ) -> Tensor:
        """The mean of ``x`` over tokens, as ``in_proj`` gives it."""
        token = self.mean_inputs()[source].double().unsqueeze(0)
        mean = weight @ self._columns(token, weight.shape[1], sub)[0]
        bias = sub.teacher.tensors.get(f'layers.{source}.{QKV}.bias')
        if bias is None or f'layers.{layer}.ssm.in_proj.bias' not in set(
            sub.roles.values()
        ):
            return mean
        return mean + bias.double().chunk(3)[2][rows]

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
    ssm_from: Optional[str],
    state_dict: Optional[Mapping] = None,
    mean_inputs: Optional[Callable[[], Sequence[Tensor]]] = None,
    **kwargs,
) -> SSMSource:
    """Builds the source that ``ssm_from`` names.

    Args:
        ssm_from (str, optional): None for fresh parameters, ``'attention'``,
            or the path that ``state_dict`` was read from.
        state_dict (Mapping, optional): Weights of the pretrained Mamba.
        mean_inputs (Callable, optional): See :class:`AttentionSSM`.
        **kwargs: See :class:`SSMSource`.

    Raises:
        TransferError: If ``mean_inputs`` is given for anything but
            ``'attention'``.
    """
    if ssm_from == 'attention':
        return AttentionSSM(mean_inputs, **kwargs)
    if mean_inputs is not None:
        raise TransferError(
            "centre_keys is an option of ssm_from='attention', got "
            f'{ssm_from=}'
        )
    if ssm_from is None:
        return SSMSource(**kwargs)
    return PretrainedSSM(state_dict, **kwargs)
