# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""How well texts find their videos, and videos their texts."""

from collections.abc import Iterator, Sequence
from typing import Any, Optional

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor

from transmamba_mm.checks import check_int, check_positive
from transmamba_mm.registry import METRICS


def fair_ranks(
    queries: Tensor,
    query_ids: Tensor,
    gallery: Tensor,
    gallery_ids: Tensor,
    sharpness: Optional[float] = None,
    max_scores: int = 2**24,
) -> Tensor:
    """Ranks of what each query looks for, the first is 1.

    Of several that are right the best one counts. Wrong ones of the same
    score stand half before it, half behind, so that a model that scores all
    alike gets the rank of chance. (CLIP4Clip takes one rank for each of the
    equal scores, https://github.com/ArrowLuo/CLIP4Clip, ``metrics.py``.)

    Args:
        queries (Tensor): Embeddings (Q, D).
        query_ids (Tensor): What they look for, integers (Q,).
        gallery (Tensor): Embeddings (G, D).
        gallery_ids (Tensor): What these are, integers (G,). Each id of the
            queries is among them.
        sharpness (float, optional): Of a dual softmax (CAMoE, arXiv
            2109.04290): each score is multiplied by the softmax, over all
            queries, of this many times the score. Defaults to None, none.
        max_scores (int): So many scores are in memory at a time. Defaults
            to 2 ** 24.

    Returns:
        Tensor: Ranks (Q,), multiples of one half, float64.

    Raises:
        ValueError: If an embedding is not finite; it would rank first.
    """
    for name, values in (('queries', queries), ('gallery', gallery)):
        if not values.isfinite().all():
            raise ValueError(
                f'{name} with embeddings that are not finite have no rank'
            )
    queries, gallery = queries.float(), gallery.float()
    step = max(1, max_scores // max(1, len(gallery)))

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        for ids, rows in zip(query_ids.split(step), queries.split(step)):
            yield ids, rows @ gallery.mT

    total = None
    if sharpness is not None:
        total = gallery.new_full((len(gallery),), -torch.inf)
        for _, scores in blocks():
            seen = torch.logsumexp(sharpness * scores, dim=0)
            total = torch.logaddexp(total, seen)
    ranks = []
    for ids, scores in blocks():
        if total is not None:
            scores = scores * (sharpness * scores - total).exp()
        right = ids.unsqueeze(1) == gallery_ids
        best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        wrong = scores.masked_fill(right, -torch.inf)
        before, equal = wrong > best, wrong == best
        ranks.append(1 + before.sum(1) + 0.5 * equal.sum(1).double())
    return torch.cat(ranks)


@METRICS.register_module()
class VideoTextRetrievalMetric(BaseMetric):
    """Recall and rank of text to video (t2v) and video to text (v2t).

    Data samples have ``video_id``, and from the model ``video_embedding``
    (D,) and ``text_embeddings`` (n, D), one for each caption of the video.
    Similarities are their dot products. See :func:`fair_ranks` for ties and
    for several captions. Samples of the same ``video_id`` are one video; the
    first embedding counts.

    Results, in percent and ranks from 1: ``t2v/R@1``, ``t2v/R@5``,
    ``t2v/R@10``, ``t2v/MdR`` and ``t2v/MnR``, median and mean rank, the same
    with ``v2t/``, ``num_queries``, the number of captions, and
    ``num_videos``.

    Args:
        topk (Sequence[int]): Defaults to ``(1, 5, 10)``.
        dual_softmax (float, optional): Sharpness of a dual softmax, 100 for
            cosines, by which results called ``t2v_dual_softmax/...`` and
            ``v2t_dual_softmax/...`` are reported as well. It needs all
            queries at once, so it is no retrieval of one query and not
            comparable with results without. Defaults to None, none.
        max_scores (int): See :func:`fair_ranks`.
        **kwargs: Further arguments of ``mmengine.BaseMetric``.

    Raises:
        ValueError: If an option is out of range.
    """

    default_prefix = ''

    def __init__(
        self,
        topk: Sequence[int] = (1, 5, 10),
        dual_softmax: Optional[float] = None,
        max_scores: int = 2**24,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.topk = tuple(check_int('topk', k, minimum=1) for k in topk)
        if dual_softmax is not None:
            check_positive('dual_softmax', dual_softmax)
        self.dual_softmax = dual_softmax
        self.max_scores = check_int('max_scores', max_scores, minimum=1)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keeps the embeddings of a batch.

        Args:
            data_batch (Any): Not used.
            data_samples (Sequence[dict]): See the class.
        """
        for sample in data_samples:
            self.results.append(
                (
                    sample['video_id'],
                    sample['video_embedding'].cpu(),
                    sample['text_embeddings'].cpu(),
                )
            )

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Ranks everything.

        Args:
            results (list): What :meth:`process` kept, of all processes.

        Returns:
            dict[str, float]: See the class.
        """
        places: dict[str, int] = {}
        videos, texts, owners = [], [], []
        for name, video, captions in results:
            if name not in places:
                places[name] = len(places)
                videos.append(video)
            texts.append(captions)
            owners += [places[name]] * len(captions)
        text = torch.cat(texts), torch.tensor(owners)
        video = torch.stack(videos), torch.arange(len(videos))
        found: dict[str, float] = {}
        kinds = {'': None}
        if self.dual_softmax is not None:
            kinds['_dual_softmax'] = self.dual_softmax
        for kind, sharpness in kinds.items():
            for name, query, gallery in (
                ('t2v', text, video),
                ('v2t', video, text),
            ):
                ranks = fair_ranks(
                    *(*query, *gallery), sharpness, self.max_scores
                )
                for key, value in self._summary(ranks).items():
                    found[f'{name}{kind}/{key}'] = value
        found.update(num_queries=len(owners), num_videos=len(videos))
        return found

    def _summary(self, ranks: Tensor) -> dict[str, float]:
        recalls = {
            f'R@{k}': 100 * (ranks <= k).double().mean().item()
            for k in self.topk
        }
        middle = float(np.median(ranks.numpy()))
        return dict(recalls, MdR=middle, MnR=ranks.mean().item())
