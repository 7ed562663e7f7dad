# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Text and images as one batch of sequences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn

from transmamba_mm.contract.answers import IGNORED

from .prompts import IMAGE_ID, Prompt


@dataclass(frozen=True)
class MergedSequences:
    """A batch of sequences for a language model.

    Attributes:
        inputs_embeds (Tensor): Embedded tokens (B, L, C).
        attention_mask (Tensor): Bool (B, L), False on padding.
        image_mask (Tensor): Bool (B, L), True on the tokens of images.
        question_mask (Tensor): Bool (B, L), True on the text of the first
            question.
        labels (Tensor): LongTensor (B, L), ids of answers, elsewhere -100.
    """

    inputs_embeds: Tensor
    attention_mask: Tensor
    image_mask: Tensor
    question_mask: Tensor
    labels: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        """dict: What a language model reads."""
        return dict(
            inputs_embeds=self.inputs_embeds,
            attention_mask=self.attention_mask,
            image_mask=self.image_mask,
            question_mask=self.question_mask,
        )


def merge(
    prompts: Sequence[Prompt],
    images: Sequence[Tensor],
    embed: nn.Module,
    max_length: Optional[int] = None,
    pad_left: bool = False,
) -> MergedSequences:
    """Puts the tokens of images into the places that prompts have for them.

    Args:
        prompts (Sequence[Prompt]): The texts.
        images (Sequence[Tensor]): Tokens of the images of each prompt
            (n, N, C).
        embed (nn.Embedding): Embeds ids.
        max_length (int, optional): Tokens after which a sequence is cut.
            Defaults to None, nowhere.
        pad_left (bool): Whether to pad on the left, to generate. Defaults to
            False, on the right.

    Returns:
        MergedSequences: The batch.
    """
    rows, features = [], []
    for prompt, tokens in zip(prompts, images):
        repeats = torch.ones_like(prompt.ids)
        repeats[prompt.ids == IMAGE_ID] = tokens.shape[1]
        row = torch.stack(
            [
                prompt.ids,
                prompt.labels,
                prompt.question.long(),
                torch.ones_like(prompt.ids),
            ],
            dim=1,
        )
        row = row.repeat_interleave(repeats, dim=0)[:max_length]
        kept = int((row[:, 0] == IMAGE_ID).sum())
        features.append(tokens.flatten(0, 1)[:kept])
        rows.append(row.flip(0) if pad_left else row)
    batch = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    if pad_left:
        batch = batch.flip(1)
    ids, labels, question, valid = batch.to(features[0].device).unbind(-1)
    image, valid = ids == IMAGE_ID, valid.bool()
    embeds = embed(ids.clamp(min=0))
    found = torch.cat(features).to(embeds.dtype)
    return MergedSequences(
        # Row after row, as the features are, whatever the padding.
        embeds.masked_scatter(image.unsqueeze(-1), found),
        valid,
        image,
        question.bool(),
        labels.masked_fill(~valid, IGNORED),
    )
