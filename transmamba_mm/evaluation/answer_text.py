# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What of an answer's text counts, by the rules of lmms-eval 0.7.

https://github.com/EvolvingLMMs-Lab/lmms-eval; theirs are those of VQA's
official evaluation and of EvalAI's server.
"""

import re
import string
from functools import lru_cache

from mmpretrain.evaluation.metrics.vqa import _process_digit_article

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA = re.compile(r'(?<=\d),+(?=\d)')
_PERIOD = re.compile(r'\.(?!\d)')
_NO_MARKS = str.maketrans('', '', string.punctuation)


def exact_text(answer: str) -> str:
    """Small letters, without punctuation (GQA)."""
    return answer.lower().translate(_NO_MARKS)


def _without_marks(text: str) -> str:
    joined = _COMMA.search(text) is not None
    found = text
    for mark in _MARKS:
        free = joined or f'{mark} ' in text or f' {mark}' in text
        found = found.replace(mark, '' if free else ' ')
    # The original has re.UNICODE in the place of the count: 32.
    return _PERIOD.sub('', found, count=32)


@lru_cache(maxsize=2**16)
def vqa_text(answer: str) -> str:
    """VQA's text: no marks and articles, digits, apostrophes (VQAv2)."""
    answer = answer.replace('\n', ' ').replace('\t', ' ').strip()
    return _process_digit_article(_without_marks(answer))


@lru_cache(maxsize=2**16)
def evalai_text(answer: str) -> str:
    """EvalAI's: VQA's after commas and question marks (TextVQA, VizWiz)."""
    answer = answer.lower().replace(',', '').replace('?', '')
    return vqa_text(answer.replace("'s", " 's").strip())
