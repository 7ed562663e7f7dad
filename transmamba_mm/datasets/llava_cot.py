# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""LLaVA-CoT-100k (Xu et al., arXiv 2411.10440): answers in four stages."""

import re
from collections.abc import Sequence
from typing import Any

from transmamba_mm.registry import DATASETS

from .llava import LLaVAInstructDataset

#: In the order in which an answer has them.
STAGES = ('SUMMARY', 'CAPTION', 'REASONING', 'CONCLUSION')


def stages_of(answer: str) -> dict[str, str]:
    """Texts of an answer's stages; the last may lack its end."""
    tags = '|'.join(STAGES)
    found = re.findall(rf'<({tags})>(.*?)(?:</\1>|\Z)', answer, re.S)
    return {name: text.strip() for name, text in found}


@DATASETS.register_module()
class LLaVACoTDataset(LLaVAInstructDataset):
    """Conversations of LLaVA-CoT-100k.

    Its ``train.jsonl`` has rows as LLaVA's data, whose answers are
    ``<SUMMARY> ... </SUMMARY>``, then likewise ``CAPTION``, ``REASONING`` and
    ``CONCLUSION``. Rows that lack a stage are broken.

    Args:
        stages (Sequence[str]): What is left of an answer: these stages, with
            their tags, or the text of one alone, ``('CONCLUSION',)`` being the
            plain answer. Defaults to all.
        **kwargs: See
            :class:`~transmamba_mm.datasets.llava.LLaVAInstructDataset`.

    Raises:
        ValueError: If there is no such stage.
    """

    def __init__(self, stages: Sequence[str] = STAGES, **kwargs: Any) -> None:
        self.stages = tuple(name for name in STAGES if name in stages)
        if not stages or len(self.stages) != len(stages):
            raise ValueError(
                f'stages must be some of {", ".join(STAGES)}, got {stages!r}'
            )
        super().__init__(**kwargs)

    def _sample(self, number: int, row: Any) -> dict:
        found = super()._sample(number, row)
        found['turns'] = [
            (question, None if answer is None else self._kept(answer))
            for question, answer in found['turns']
        ]
        return found

    def _kept(self, answer: str) -> str:
        found = stages_of(answer)
        lacking = [name for name in STAGES if not found.get(name)]
        if lacking:
            raise ValueError(f'an answer has no {", ".join(lacking)}')
        if self.stages == STAGES:
            return answer
        if len(self.stages) == 1:
            return found[self.stages[0]]
        return '\n\n'.join(
            f'<{name}> {found[name]} </{name}>' for name in self.stages
        )
