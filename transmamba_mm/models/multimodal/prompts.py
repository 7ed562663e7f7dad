# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""From the turns of a conversation to ids, and who says which."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from transmamba_mm.contract.answers import IGNORED

#: Where an image stands in a question.
IMAGE = '<image>'
#: Its id, until the tokens of the image take its place.
IMAGE_ID = -200

#: A question and its answer, None where it is to be found.
Turn = tuple[str, Optional[str]]


@dataclass(frozen=True)
class Prompt:
    """Ids of a conversation of L tokens, an image being one.

    Attributes:
        ids (Tensor): LongTensor (L,), with :data:`IMAGE_ID`.
        labels (Tensor): LongTensor (L,), the ids of answers and of what ends
            them, else :data:`IGNORED`.
        question (Tensor): Bool (L,), True on the text of the first question.
    """

    ids: Tensor
    labels: Tensor
    question: Tensor


def turns_of(sample: BaseDataElement, num_images: int) -> list[Turn]:
    """Turns of a sample, with a place for each image.

    Args:
        sample (BaseDataElement): With ``turns``, or ``question`` and maybe
            ``gt_answer``, which is none where it is a list of several.
        num_images (int): Images of the sample, see :func:`place_images`.

    Returns:
        list[Turn]: The turns.

    Raises:
        ValueError: If there is no question, or the places are not as many as
            the images.
    """
    turns = sample.get('turns') or _single_turn(sample)
    return place_images(turns, num_images)


def place_images(turns: Sequence[Turn], num_images: int) -> list[Turn]:
    """Turns with a place for each image.

    Args:
        turns (Sequence[Turn]): The turns.
        num_images (int): How many images there are. Where no question has a
            place for one, all stand before the first.

    Returns:
        list[Turn]: The turns.

    Raises:
        ValueError: If the places are not as many as the images.
    """
    places = sum(question.count(IMAGE) for question, _ in turns)
    if places == 0:
        first, answer = turns[0]
        turns = [(f'{IMAGE}\n' * num_images + first, answer), *turns[1:]]
    elif places != num_images:
        raise ValueError(
            f'{places} x {IMAGE} in the questions, but {num_images} images: '
            f'{[question for question, _ in turns]!r}'
        )
    return list(turns)


def _single_turn(sample: BaseDataElement) -> list[Turn]:
    if 'question' not in sample:
        raise ValueError(
            f'a sample needs turns, or a question, and has {sample.all_keys()}'
        )
    answer = sample.get('gt_answer')
    if isinstance(answer, (list, tuple)):
        answer = answer[0] if len(answer) == 1 else None
    return [(sample.question, answer)]


class PromptTemplate:
    """How a conversation is written, and tokenised.

    Each answer is followed by the token that ends it. Questions and answers
    are tokenised each on their own, so that a prompt has the same tokens with
    and without the answer. A space before ``{answer}`` is the answer's, since
    words begin with it in most tokenizers.

    Args:
        tokenizer (Any): See :mod:`transmamba_mm.models.multimodal.tokenizers`.
        turn (str): A turn, with ``{question}`` before ``{answer}``.
        system (str): What precedes the first. Defaults to ``''``.

    Raises:
        ValueError: If a turn lacks one of the two.
    """

    def __init__(self, tokenizer: Any, turn: str, system: str = '') -> None:
        before, _, after = turn.partition('{question}')
        between, _, end = after.partition('{answer}')
        if turn != f'{before}{{question}}{between}{{answer}}{end}':
            raise ValueError(
                f'prompt_tmpl must have {{question}}, then {{answer}}, got '
                f'{turn!r}'
            )
        if end:
            raise ValueError(
                f'prompt_tmpl must end with {{answer}}, which the token that '
                f'ends an answer follows, got {turn!r}'
            )
        self._before, self._between = before, between.rstrip(' ')
        self._space = between[len(self._between) :]
        self._system = system
        self._tokenizer = tokenizer

    def __call__(self, turns: Sequence[Turn]) -> Prompt:
        """Tokenises a conversation.

        Args:
            turns (Sequence[Turn]): The turns; the last may lack its answer.

        Returns:
            Prompt: Up to the last answer, or to where it would begin.

        Raises:
            ValueError: If another turn lacks its answer.
        """
        encode, bos = self._tokenizer.encode, self._tokenizer.bos_token_id
        parts = [([] if bos is None else [bos], False, False)]
        for i, (question, answer) in enumerate(turns):
            text = f'{self._before}{question}{self._between}'
            for place, piece in enumerate(text.split(IMAGE)):
                if place:
                    parts.append(([IMAGE_ID], False, False))
                piece = piece if i or place else self._system + piece
                parts.append((encode(piece), False, i == 0))
            if answer is not None:
                ids = encode(f'{self._space}{answer}')
                ids.append(self._tokenizer.eos_token_id)
                parts.append((ids, True, False))
            elif i + 1 < len(turns):
                raise ValueError(f'no answer to {question!r}')
        ids = torch.tensor([x for part, _, _ in parts for x in part])
        said, asked = (
            torch.tensor([part[k] for part in parts for _ in part[0]])
            for k in (1, 2)
        )
        return Prompt(ids, ids.masked_fill(~said, IGNORED), asked)
