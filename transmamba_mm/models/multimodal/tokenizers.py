# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Tokenizers of language models.

:class:`TransLlava` reads of one ``encode`` (text to ids, none of them
special), ``decode``, ``bos_token_id`` (None where there is none),
``eos_token_id`` and its length.
"""

from collections.abc import Sequence
from typing import Optional

from transmamba_mm.registry import TOKENIZER


@TOKENIZER.register_module()
class ByteTokenizer:
    """A token for each byte of UTF-8, one that begins and one that ends."""

    bos_token_id = 256
    eos_token_id = 257

    def __len__(self) -> int:
        return 258

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; what is no byte is left out."""
        return bytes(i for i in ids if i < 256).decode(errors='replace')


@TOKENIZER.register_module()
class CausalTokenizer:
    """A tokenizer of transformers for a causal language model.

    Args:
        path (str): Folder of the tokenizer, or its name on the hub.
        eos_token (str, optional): What ends an answer, e.g. ``'<|eot_id|>'``
            of LLaMA-3. Defaults to None, the tokenizer's own.

    Raises:
        ValueError: If it has no such token, or no tokens at all.
    """

    def __init__(self, path: str, eos_token: Optional[str] = None) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(path)
        # Those that were not found come as empty ones, without a word.
        if len(self._tokenizer) < 3:
            raise ValueError(
                f'the tokenizer {path!r} has {len(self)} tokens: is this its '
                f'folder?'
            )
        known = self._tokenizer.get_vocab()
        eos_token = eos_token or self._tokenizer.eos_token
        if eos_token not in known:
            raise ValueError(
                f'the tokenizer {path!r} has no token {eos_token!r} to end an '
                f'answer: name one by eos_token'
            )
        self.eos_token_id: int = known[eos_token]
        self.bos_token_id: Optional[int] = self._tokenizer.bos_token_id

    def __len__(self) -> int:
        return len(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, those of start and end not among them."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special ones are left out."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)
