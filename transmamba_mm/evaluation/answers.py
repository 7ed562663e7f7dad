# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Metrics of answers to questions, equal to lmms-eval's."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Optional

import mmengine
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from transmamba_mm.datasets.llava_cot import STAGES, stages_of
from transmamba_mm.registry import METRICS

from .answer_text import evalai_text, exact_text, vqa_text

_NORMALISERS: dict[str, Callable[[str], str]] = dict(
    evalai=evalai_text, vqa=vqa_text
)


class AnswerMetric(BaseMetric):
    """Judges answers; subclasses say how.

    Data samples have ``pred_answer`` of the model and ``gt_answer``, of
    which the judgement of each is gathered from all processes.

    Args:
        stage (str, optional): Read the answer from this stage of it, such as
            ``'CONCLUSION'`` of a model trained on LLaVA-CoT-100k; where it
            has no such stage, all of it is the answer. Defaults to None, all.
        **kwargs: Further arguments of ``mmengine.BaseMetric``.

    Raises:
        ValueError: If there is no such stage.
    """

    def __init__(self, stage: Optional[str] = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if stage not in (None, *STAGES):
            raise ValueError(
                f'stage must be one of {", ".join(STAGES)}, got {stage!r}'
            )
        self.stage = stage

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Judges the answers of a batch.

        Args:
            data_batch (Any): Not used.
            data_samples (Sequence[dict]): See the class.

        Raises:
            ValueError: If a sample lacks what is needed.
        """
        for sample in data_samples:
            answer = needed(sample, 'pred_answer')
            if self.stage is not None:
                answer = stages_of(answer).get(self.stage, answer)
            self.results.append(self.judge(answer.strip(), sample))

    @abstractmethod
    def judge(self, answer: str, sample: dict) -> Any:
        """What is kept of an answer.

        Args:
            answer (str): The answer, without white space around it.
            sample (dict): The data sample.
        """


class MeanMetric(AnswerMetric):
    """The mean of what ``judge`` gives, from 0 to 1, as percent.

    The results are ``accuracy`` and ``num_questions``.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Averages.

        Args:
            results (list): Of all processes.

        Returns:
            dict[str, float]: See the class.
        """
        accuracy = 100 * sum(results) / len(results)
        return dict(accuracy=accuracy, num_questions=len(results))


def needed(sample: dict, name: str) -> Any:
    """A value of a data sample.

    Raises:
        ValueError: If there is none.
    """
    if sample.get(name) is None:
        raise ValueError(
            f'question {sample.get("question_id")!r} has no {name}: name it '
            f'in algorithm_keys or meta_keys of PackInputs, and let the '
            f'model predict'
        )
    return sample[name]


@METRICS.register_module()
class ExactMatch(MeanMetric):
    """Share of answers that are the right one (GQA).

    Case and punctuation do not count. Arguments: see :class:`AnswerMetric`.
    """

    default_prefix = 'exact_match'

    def judge(self, answer: str, sample: dict) -> float:
        """1.0 if it is the right answer, else 0.0."""
        right = needed(sample, 'gt_answer')
        if not isinstance(right, str):
            raise ValueError(
                f'question {sample.get("question_id")!r} has several answers, '
                f'{right!r}: transmamba.VQAAccuracy judges by them'
            )
        return float(exact_text(answer) == exact_text(right))


@METRICS.register_module()
class VQAAccuracy(MeanMetric):
    """VQA's accuracy by ten persons' answers (TextVQA, VizWiz, VQAv2).

    An answer counts as a third for each person who gave it, at most as one;
    that is averaged over the choices of nine of the ten. Of ten persons, 1
    who agrees gives 0.3, 2 give 0.6, 3 give 0.9, and 4 give 1. (mmpretrain's
    ``VQAAcc`` has no average, so that 3 give 1.)

    Args:
        normalise (str): What of a text counts: ``'evalai'`` of TextVQA and
            VizWiz or ``'vqa'`` of VQAv2. Defaults to ``'evalai'``.
        **kwargs: See :class:`AnswerMetric`.

    Raises:
        ValueError: If there is no such rule.
    """

    default_prefix = 'vqa'

    def __init__(self, normalise: str = 'evalai', **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.normalise = _normaliser(normalise)

    def judge(self, answer: str, sample: dict) -> float:
        """The accuracy of one answer, from 0 to 1."""
        given = needed(sample, 'gt_answer')
        if isinstance(given, str) or not given:
            raise ValueError(
                f'question {sample.get("question_id")!r} wants a list with '
                f'the answer of each person, got {given!r}'
            )
        agree = list(map(self.normalise, given)).count(self.normalise(answer))
        total = len(given)
        without = agree * min(1, (agree - 1) / 3)
        return (without + (total - agree) * min(1, agree / 3)) / total


@METRICS.register_module()
class ChoiceAccuracy(MeanMetric):
    """Share of answers that name the right choice by its letter (ScienceQA).

    An answer is the letter, or begins with the capital letter and a full
    stop. All else is wrong: no letter is searched for in a text, none is
    drawn. Arguments: see :class:`AnswerMetric`.
    """

    default_prefix = 'choice'

    def judge(self, answer: str, sample: dict) -> float:
        """1.0 if it is the right choice, else 0.0."""
        right = needed(sample, 'gt_answer').strip().lower()
        if answer[:1].isupper() and answer[1:2] == '.':
            answer = answer[0]
        return float(answer.lower() == right)


@METRICS.register_module()
class AnswersFile(AnswerMetric):
    """Writes the answers to a file for a server, ``num_answers`` of them.

    It is a JSON list of ``{question_id, answer}``; answers are normalised, as
    lmms-eval does.

    Args:
        out_file (str): Path of the file.
        id_name (str): What it calls ``question_id``, ``'image'`` for
            VizWiz. Defaults to ``'question_id'``.
        normalise (str): See :class:`VQAAccuracy`. Defaults to ``'evalai'``.
        **kwargs: See :class:`AnswerMetric`.

    Raises:
        ValueError: If there is no such rule.
    """

    default_prefix = 'answers'

    def __init__(
        self,
        out_file: str,
        id_name: str = 'question_id',
        normalise: str = 'evalai',
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.out_file, self.id_name = out_file, id_name
        self.normalise = _normaliser(normalise)

    def judge(self, answer: str, sample: dict) -> dict:
        """The entry of one answer."""
        name = needed(sample, 'question_id')
        return {self.id_name: name, 'answer': self.normalise(answer)}

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Writes the file.

        Args:
            results (list): Of all processes.

        Returns:
            dict[str, float]: See the class.
        """
        mmengine.dump(results, self.out_file, file_format='json')
        print_log(f"answers are in '{self.out_file}'", logger='current')
        return dict(num_answers=len(results))


def _normaliser(name: str) -> Callable[[str], str]:
    if name not in _NORMALISERS:
        raise ValueError(
            f'normalise must be one of {", ".join(_NORMALISERS)}, got {name!r}'
        )
    return _NORMALISERS[name]
