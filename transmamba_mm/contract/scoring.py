# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Scores of models that are no classifiers, and what they are made of."""

from typing import Any, Optional

from torch import nn

from .answers import Answers, answer_reader
from .embedding_head import embedding_head
from .records import Embeddings
from .sites import ANSWERS, EMBEDDINGS, LOGITS

#: Of a model that lacks a site.
LACKS = {
    EMBEDDINGS: '{} has no embeddings: they are a site of retrieval models, '
    'such as transmamba.VideoTextRetriever',
    ANSWERS: '{} has no answers: they are a site of models that answer '
    'questions, such as transmamba.TransLlava',
}


def scoring_part(model: nn.Module, site: str) -> Optional[nn.Module]:
    """The module whose output is read for a site of scores.

    Args:
        model (nn.Module): The model.
        site (str): One of :data:`~transmamba_mm.contract.sites.SCORES`.

    Returns:
        nn.Module | None: An :class:`~transmamba_mm.contract.EmbeddingHead`
        or an :class:`~transmamba_mm.contract.AnswerReader`; None if the
        model has none for this site.
    """
    found = None
    if site in (LOGITS, EMBEDDINGS):
        found = embedding_head(model)
    if found is None and site in (LOGITS, ANSWERS):
        found = answer_reader(model)
    return found


def scores_of(site: str, output: Any) -> Any:
    """The record of a site of scores, of what was read."""
    if site == LOGITS and isinstance(output, (Embeddings, Answers)):
        return output.logits
    return output
