# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Metrics of benchmarks whose answers are yes and no, equal to lmms-eval's."""

from collections import defaultdict
from typing import Any

from transmamba_mm.datasets.mme import COGNITION, PERCEPTION
from transmamba_mm.registry import METRICS

from .answers import AnswerMetric, needed


def read_yes_no(answer: str) -> str:
    """``'yes'``, ``'no'`` or ``'other'``, as lmms-eval's MME reads it.

    What decides are the first four letters, full stops left out.
    """
    answer = answer.lower().strip().replace('.', '')
    if len(answer) == 1:
        return dict(y='yes', n='no').get(answer, 'other')
    start = answer[:4]
    return 'yes' if 'yes' in start else 'no' if 'no' in start else 'other'


@METRICS.register_module()
class MMEScore(AnswerMetric):
    """MME: accuracy by questions and by images, of each category.

    Of a category, ``acc`` is the percentage of right answers, ``acc+`` that
    of images both of whose questions are answered right, and its score the
    sum. ``perception`` and ``cognition`` are the sums over ten and four
    categories, at most 2000 and 800.

    Data samples have ``category`` and, as ``question_id``, the image.
    Arguments: see :class:`AnswerMetric`.
    """

    default_prefix = 'mme'

    def judge(self, answer: str, sample: dict) -> tuple[str, str, bool]:
        """Category, image, and whether the answer is right."""
        right = needed(sample, 'gt_answer').lower().strip().replace('.', '')
        keys = (needed(sample, key) for key in ('category', 'question_id'))
        return *keys, read_yes_no(answer) == right

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Sums up.

        Args:
            results (list): Of all processes.

        Returns:
            dict[str, float]: ``perception``, ``cognition``, and of each
            category that was asked ``<category>``, ``<category>/acc`` and
            ``<category>/acc+``.

        Raises:
            ValueError: If an image has not two answers, or a category is
                unknown.
        """
        images: dict = defaultdict(lambda: defaultdict(list))
        for category, image, right in results:
            images[category][image].append(right)
        unknown = images.keys() - {*PERCEPTION, *COGNITION}
        if unknown:
            raise ValueError(f'MME has no category {sorted(unknown)}')
        found, sums = {}, {}
        for part, names in (
            ('perception', PERCEPTION),
            ('cognition', COGNITION),
        ):
            sums[part] = 0.0
            for name in filter(images.__contains__, names):
                pairs = images[name]
                odd = [image for image, x in pairs.items() if len(x) != 2]
                if odd:
                    raise ValueError(
                        f'MME asks two questions about an image, but '
                        f'{odd[0]!r} has {len(pairs[odd[0]])} answers'
                    )
                count = len(pairs)
                acc = 50 * sum(map(sum, pairs.values())) / count
                both = 100 * sum(map(all, pairs.values())) / count
                found[name] = acc + both
                found[f'{name}/acc'], found[f'{name}/acc+'] = acc, both
                sums[part] += acc + both
        return {**sums, **found}


@METRICS.register_module()
class POPEScore(AnswerMetric):
    """POPE: accuracy, precision, recall, F1 and share of yes, in percent.

    An answer is ``yes`` or ``no`` and nothing else, but for its case. As in
    lmms-eval, what is neither counts as wrong in ``accuracy`` and not at all
    in ``recall``; ``answered`` says how many are one of the two.
    ``yes_ratio`` is the share of answers that are yes, as POPE's paper has it
    (lmms-eval's is that of right answers, which says nothing of the model).

    Each result is given for all questions, and of each category as
    ``<category>/...`` where samples have a ``category``. Arguments: see
    :class:`AnswerMetric`.
    """

    default_prefix = 'pope'

    def judge(self, answer: str, sample: dict) -> tuple[Any, str, str]:
        """Category, answer and right answer."""
        right = needed(sample, 'gt_answer').lower().strip()
        return sample.get('category'), answer.lower(), right

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Counts.

        Args:
            results (list): Of all processes.

        Returns:
            dict[str, float]: See the class.
        """
        parts = defaultdict(list)
        for category, answer, right in results:
            parts[''].append((answer, right))
            if category is not None:
                parts[f'{category}/'].append((answer, right))
        return {
            f'{part}{name}': 100 * value
            for part, pairs in parts.items()
            for name, value in _rates(pairs).items()
        }


def _rates(pairs: list[tuple[str, str]]) -> dict[str, float]:
    hits = pairs.count(('yes', 'yes'))
    precision = _ratio(hits, hits + pairs.count(('yes', 'no')))
    recall = _ratio(hits, hits + pairs.count(('no', 'yes')))
    said = [answer for answer, _ in pairs]
    yes = said.count('yes')
    return dict(
        accuracy=_ratio(hits + pairs.count(('no', 'no')), len(pairs)),
        precision=precision,
        recall=recall,
        f1=_ratio(2 * precision * recall, precision + recall),
        yes_ratio=_ratio(yes, len(pairs)),
        answered=_ratio(yes + said.count('no'), len(pairs)),
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
