# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Token relations, and what is not seen (ViT-Linearizer, arXiv 2504.00037).

The student sees an image of which most patches are masked, the teacher all
of it. Which tokens resemble which is compared among the visible tokens alone:
those of masked patches would leak what is to be predicted. From its last
tokens at masked places the student predicts the teacher's, by a smooth L1.

What is masked, and where: the loss runs the student's backbone once more, and
only there a learned token takes the place of masked patches, behind the patch
embedding and before positions and class tokens. The pass that gives the task
loss, and all other methods read, is untouched. So this costs another forward
and backward pass of the student, and statistics of a BatchNorm move twice.

Interpreted: a linear map stands before the prediction only where the widths
differ; class tokens are left out. A stem of overlapping convolutions sees a
little of masked neighbours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transmamba_mm.checks import check_number
from transmamba_mm.contract import (
    GridStudent,
    Pair,
    Student,
    TokenRecord,
)
from transmamba_mm.contract.sites import IMAGES, LAYERS, TOKENS
from transmamba_mm.registry import MODELS, TASK_UTILS

from .base import Reading
from .relation import TokenRelationLoss, TokenRelations, relation_error


def random_mask(like: Tensor, ratio: float) -> Tensor:
    """Masks as many tokens of each image, at random places.

    Args:
        like (Tensor): Tokens (B, L, C).
        ratio (float): Share of the tokens; at least one is masked, and one
            is not.

    Returns:
        Tensor: Bool (B, L), True for masked ones.

    Raises:
        ValueError: If there are less than two tokens.
    """
    num = like.shape[1]
    if num < 2:
        raise ValueError('an image of one patch cannot be masked in part')
    masked = min(max(round(ratio * num), 1), num - 1)
    places = torch.rand(like.shape[:2], device=like.device).argsort(dim=1)
    return places < masked


@contextmanager
def masking(
    embed: nn.Module, token: Tensor, ratio: float
) -> Iterator[list[Tensor]]:
    """Lets a patch embedding give a token in place of masked patches.

    Args:
        embed (nn.Module): Gives patches (B, L, C) and their grid.
        token (Tensor): (C,).
        ratio (float): See :func:`random_mask`.

    Yields:
        list[Tensor]: The masks (B, L) of the passes so far.
    """
    masks = []

    def replace(module: nn.Module, inputs: tuple, output: tuple) -> tuple:
        patches, grid = output
        masks.append(random_mask(patches, ratio))
        masked = masks[-1].unsqueeze(-1)
        return torch.where(masked, token.to(patches.dtype), patches), grid

    handle = embed.register_forward_hook(replace)
    try:
        yield masks
    finally:
        handle.remove()


def _chosen(record: TokenRecord, mask: Tensor) -> Tensor:
    """Tokens (B, N, C) at the N places of each row of a mask (B, L)."""
    return record.tokens[mask].unflatten(0, (len(mask), -1))


@MODELS.register_module()
class MaskedRelationLoss(TokenRelationLoss):
    """Relations of visible tokens, and a prediction of masked ones.

    Args:
        mask_ratio (float): Share of the patches that is masked. Defaults to
            0.75.
        prediction_weight (float): Factor of the prediction. Defaults to 1.
        **kwargs: See :class:`TokenRelationLoss`.

    Raises:
        ValueError: If ``mask_ratio`` is not between 0 and 1, or the student
            does not keep the grid of its patches.
    """

    def __init__(
        self,
        mask_ratio: float = 0.75,
        prediction_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 < check_number('mask_ratio', mask_ratio) < 1:
            raise ValueError(
                f'mask_ratio must lie between 0 and 1, got {mask_ratio}'
            )
        self.mask_ratio = mask_ratio
        self.prediction_weight = check_number(
            'prediction_weight', prediction_weight, 0
        )
        self.predict: Optional[nn.Module] = None
        self._student: tuple[Student, ...] = ()
        self._parts: dict[str, Tensor] = {}

    def prepare(self, pair: Pair) -> None:
        """See :meth:`LayerPairLoss.prepare`."""
        super().prepare(pair)
        student = pair.student(self.student_backbone)
        backbone, teacher = (
            student.backbone,
            pair.teacher(self.teacher_backbone),
        )
        if not isinstance(backbone, GridStudent) or backbone.hierarchical:
            raise ValueError(
                f'{type(backbone).__name__} does not keep the grid of its '
                f'patches, so tokens cannot be told to be masked: use '
                f'transmamba.TokenRelations, which masks none'
            )
        first, last = backbone.layer_dims[0], backbone.layer_dims[-1]
        self.mask_token = nn.Parameter(torch.empty(first))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.predict = nn.Identity()
        if last != teacher.embed_dims:
            self.predict = nn.Linear(last, teacher.embed_dims)
        # In a tuple, as the student's parameters are not this module's.
        self._student = (student,)

    def forward(
        self,
        images: Tensor,
        layers: list[TokenRecord],
        tokens: list[TokenRecord],
    ) -> Tensor:
        """Computes the loss.

        Args:
            images (Tensor): What the student is shown.
            layers (list[TokenRecord]): The teacher's layers. Those on
                another grid than the student's are interpolated.
            tokens (list[TokenRecord]): Its last tokens, likewise.

        Returns:
            Tensor: Scalar.
        """
        (student,) = self._student
        backbone = student.backbone
        embed, ratio = backbone.patch_embed, self.mask_ratio
        with masking(embed, self.mask_token, ratio) as masks:
            found = student.look(LAYERS, images)
        (mask,) = masks
        errors = {
            layer: relation_error(
                _chosen(found[layer], ~mask),
                _chosen(layers[source].resized(found[layer].grid), ~mask),
            )
            for layer, source in self.pairs.items()
        }
        guess = self.predict(backbone.normalise(_chosen(found[-1], mask)))
        truth = _chosen(tokens[-1].resized(found[-1].grid), mask)
        prediction = F.smooth_l1_loss(guess.float(), truth.detach().float())
        relations = self._average(errors)
        self._parts = dict(
            relations=relations.detach(), prediction=prediction.detach()
        )
        weight = self.loss_weight * self.prediction_weight
        return relations + weight * prediction

    def statistics(self) -> dict[str, Tensor]:
        """See :meth:`DistillLoss.statistics`."""
        return self._parts


@TASK_UTILS.register_module()
class MaskedTokenRelations(TokenRelations):
    """Matches relations of what is seen, and predicts what is not.

    Args:
        mask_ratio (float): See :class:`MaskedRelationLoss`. Defaults to
            0.75.
        prediction_weight (float): See there. Defaults to 1.
        **kwargs: See :class:`TokenRelations`.
    """

    NAME = 'masked_relations'

    def __init__(
        self,
        mask_ratio: float = 0.75,
        prediction_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.mask_ratio = mask_ratio
        self.prediction_weight = prediction_weight

    def loss(self) -> dict:
        """See :meth:`DistillMethod.loss`."""
        return dict(
            super().loss(),
            type='transmamba.MaskedRelationLoss',
            mask_ratio=self.mask_ratio,
            prediction_weight=self.prediction_weight,
        )

    def reads(self) -> dict[str, Reading]:
        """See :meth:`DistillMethod.reads`."""
        return dict(
            images=self.student(IMAGES),
            layers=self.teacher(LAYERS),
            tokens=self.teacher(TOKENS),
        )
