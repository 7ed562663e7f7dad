# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Scan directions against their share of the attention.

A direction has seen, at each token, those that it visited before. Its target
is the part of the teacher's attention output that looks at these: what
several directions have visited is shared among them, a token itself and what
no direction visits (a class token the student lacks) among all. So the
targets of a layer sum to its attention output. Ours; the paper's idea, a
target for every layer and direction, with attention in place of features.
"""

from typing import Any, Optional

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from transmamba_mm.checks import check_positive
from transmamba_mm.contract import GridStudent, Pair, Teacher, TokenRecord
from transmamba_mm.contract.layer_map import LayerMap
from transmamba_mm.contract.sites import QKV, STREAMS
from transmamba_mm.contract.taps import Grid
from transmamba_mm.registry import MODELS, TASK_UTILS

from ..losses import ChannelPairLoss, normalised_mse
from .base import DistillMethod, Reading
from .mixer import check_forced_pair


def direction_shares(student: GridStudent, grid: Grid, extra: int) -> Tensor:
    """How the attention between two tokens is shared among directions.

    Args:
        student (GridStudent): Whose directions.
        grid (tuple[int, ...]): Patch grid of n patches.
        extra (int): Class tokens of the teacher, in front of the patches.

    Returns:
        Tensor: (K, extra + n, extra + n); entry (m, i, j) is the share that
        direction m has in what token i gets from token j. Sums to one over
        the directions.
    """
    patches = torch.Size(grid).numel()
    visited = []
    for direction in student.directions:
        # When each token is visited; those that are not, never.
        time = torch.full((extra + patches,), torch.inf)
        order = student.scan_order(direction, *grid).cpu()
        skip = student.class_token_positions(direction, *grid)
        steps = torch.arange(patches + len(skip))
        free = torch.ones(len(steps), dtype=torch.bool)
        free[list(skip)] = False
        time[extra + order] = steps[free].float()
        if skip and extra:
            time[0] = float(skip[0])
        visited.append(time[None, :] < time[:, None])
    seen = torch.stack(visited).float()
    by_any = seen.sum(0)
    shares = seen / by_any.clamp(min=1)
    return torch.where(by_any > 0, shares, 1 / len(shares))


def attention_by_direction(
    qkv: Tensor, heads: int, weight: Tensor, shares: Tensor
) -> Tensor:
    """Splits an attention layer's output over directions, but for its bias.

    Args:
        qkv (Tensor): Queries, keys and values (B, L, 3 C).
        heads (int): Attention heads.
        weight (Tensor): Of the output projection (C, C).
        shares (Tensor): (K, L, L), see :func:`direction_shares`.

    Returns:
        Tensor: (B, K, L, C).
    """
    with torch.autocast(qkv.device.type, enabled=False):
        return _split_attention(qkv, heads, weight, shares)


def _split_attention(
    qkv: Tensor, heads: int, weight: Tensor, shares: Tensor
) -> Tensor:
    query, key, value = (
        x.unflatten(-1, (heads, -1)).transpose(1, 2)
        for x in qkv.float().chunk(3, dim=-1)
    )
    scores = query @ key.mT / query.shape[-1] ** 0.5
    attention = scores.softmax(-1).unsqueeze(1) * shares.unsqueeze(1)
    mixed = attention @ value.unsqueeze(1)  # (B, K, heads, L, head_dims)
    return mixed.transpose(2, 3).flatten(3) @ weight.float().mT


@MODELS.register_module()
class DirectionalMixerLoss(ChannelPairLoss):
    r""":func:`normalised_mse` of each direction with its share of attention.

    The mixers run on the teacher's input.

    Args:
        tau (float, optional): Temperature of weights over the layers,
            :math:`softmax_l(e / \tau)` of each direction's errors e, as the
            paper weighs layers by their similarity. Defaults to None, all
            layers alike.
        **kwargs: See :class:`ChannelPairLoss`.

    Raises:
        ValueError: If the student is wider, only it has class tokens,
            or the teacher's attention is more than queries,
            keys and values.
    """

    def __init__(self, tau: Optional[float] = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tau = tau if tau is None else check_positive('tau', tau)
        self._pair: Optional[tuple[GridStudent, Teacher]] = None
        self._shares: dict[Grid, Tensor] = {}

    def prepare(self, pair: Pair) -> None:
        """See :meth:`ChannelPairLoss.prepare`."""
        super().prepare(pair)
        student = pair.student(self.student_backbone).backbone
        teacher = pair.teacher(self.teacher_backbone)
        check_forced_pair(student, teacher, self.pairs)
        if extra := teacher.attention_extras():
            raise ValueError(
                f'attention that has {", ".join(extra)} is not the softmax '
                f'of products of queries and keys alone: it cannot be shared '
                f'among scan directions'
            )
        # In a tuple, as the student's parameters are not this module's.
        self._pair = (student, teacher)

    def forward(
        self, streams: list[TokenRecord], qkv: list[TokenRecord]
    ) -> Tensor:
        """Computes the loss.

        Args:
            streams (list[TokenRecord]): What each teacher layer reads.
            qkv (list[TokenRecord]): Its queries, keys and values.

        Returns:
            Tensor: Scalar.
        """
        student, _ = self._pair
        errors = []
        for layer, source in self.pairs.items():
            width = student.layer_dims[layer]
            read = self.kept.of(streams[source], width)
            parts = student.mix_apart(layer, student.joined(read), read.grid)
            targets = self.kept.select(self._targets(qkv[source]), width)
            errors.append(
                torch.stack(
                    [
                        normalised_mse(
                            student.split(parts[:, m], read.grid)[1],
                            targets[:, m],
                        )
                        for m in range(parts.shape[1])
                    ]
                )
            )
        errors = torch.stack(errors)  # (layers, directions)
        if self.tau is not None:
            # Those of the global batch, so that the gradient of several
            # processes equals that of one; no-op in one.
            shared = errors.detach().clone()
            all_reduce(shared, op='mean')
            weights = torch.softmax(shared / self.tau, dim=0)
            errors = len(errors) * weights * errors
        return self._average(dict(zip(self.pairs, errors.mean(1))))

    @torch.no_grad()
    def _targets(self, qkv: TokenRecord) -> Tensor:
        """Each direction's share of a layer's attention (B, K, n, C)."""
        student, teacher = self._pair
        extra = qkv.classes.shape[1]
        if qkv.grid not in self._shares:
            shares = direction_shares(student, qkv.grid, extra)
            self._shares[qkv.grid] = shares.to(qkv.tokens.device)
        parts = attention_by_direction(
            torch.cat([qkv.classes, qkv.tokens], dim=1),
            teacher.num_heads[qkv.layer],
            teacher.mixer_out(qkv.layer),
            self._shares[qkv.grid],
        )
        return parts[:, :, extra:]


@TASK_UTILS.register_module()
class DirectionalMixerMatching(DistillMethod):
    """Matches each scan direction with its share of the attention output.

    Args:
        tau (float, optional): See :class:`DirectionalMixerLoss`. Defaults to
            None, all layers alike.
        layer_map (str | Sequence[int | None]): See
            :func:`~transmamba_mm.contract.layer_map.resolve_layer_map`.
            Defaults to ``'uniform'``.
        loss_weight (float): Factor of the loss. Defaults to 1.
        **kwargs: See :class:`DistillMethod`.
    """

    NAME = 'direction'

    def __init__(
        self,
        tau: Optional[float] = None,
        layer_map: LayerMap = 'uniform',
        loss_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._loss = dict(
            type='transmamba.DirectionalMixerLoss',
            tau=tau,
            layer_map=layer_map,
            loss_weight=loss_weight,
            **self.towers(),
        )

    def loss(self) -> dict:
        """See :meth:`DistillMethod.loss`."""
        return self._loss

    def reads(self) -> dict[str, Reading]:
        """See :meth:`DistillMethod.reads`."""
        return dict(streams=self.teacher(STREAMS), qkv=self.teacher(QKV))
