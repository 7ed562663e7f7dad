# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Captions as tokens."""

import torch
from mmcv.transforms import BaseTransform

from transmamba_mm.checks import check_int
from transmamba_mm.registry import TOKENIZER, TRANSFORMS


@TRANSFORMS.register_module()
class TokenizeText(BaseTransform):
    """Makes tokens of captions.

    Reads ``texts``, a list of captions; adds ``tokens``, a LongTensor
    (num_captions, max_words) with zeros behind the end of each.

    Args:
        tokenizer (dict): Config of a callable
            ``(text, max_words) -> list[int]``, whose ids include those of
            start and end and are at most ``max_words``.
        max_words (int): The most tokens of a caption. Defaults to 32.

    Raises:
        ValueError: If ``max_words`` leaves no place between start and end,
            or the tokenizer gives too many tokens.
    """

    def __init__(self, tokenizer: dict, max_words: int = 32) -> None:
        self.max_words = check_int('max_words', max_words, minimum=3)
        self.tokenizer = TOKENIZER.build(tokenizer)

    def transform(self, results: dict) -> dict:
        """Tokenizes the captions of a sample."""
        texts = results['texts']
        tokens = torch.zeros(len(texts), self.max_words, dtype=torch.long)
        for row, text in zip(tokens, texts):
            ids = self.tokenizer(text, self.max_words)
            if len(ids) > self.max_words:
                raise ValueError(
                    f'{type(self.tokenizer).__name__} gives {len(ids)} tokens '
                    f'for {text!r}, more than max_words={self.max_words}'
                )
            row[: len(ids)] = torch.as_tensor(ids)
        results['tokens'] = tokens
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(tokenizer={self.tokenizer}, '
            f'max_words={self.max_words})'
        )
