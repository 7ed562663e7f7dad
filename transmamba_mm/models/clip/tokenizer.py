# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""CLIP's byte-pair encoding over a vocabulary file that is found, or named.

The same numbers as those of OpenAI's tokenizer, which open_clip and
CLIP4Clip have as well.
"""

import gzip
import html
import os
import os.path as osp
import re
from importlib.util import find_spec
from typing import Optional

from transmamba_mm.registry import TOKENIZER

VARIABLE = 'TRANSMAMBA_CLIP_BPE'
_FILE = 'bpe_simple_vocab_16e6.txt.gz'
_MERGES = 49152 - 256 - 2
# What ftfy leaves as it is: printable ASCII, no control or HTML characters.
_PLAIN = re.compile(r"(?:[ -%'-~\t\n\r]|&(?![A-Za-z#]))*")
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_INSTALL = 'pip install transmamba_mm[video], or pip install regex ftfy'


def _byte_symbols() -> dict[int, str]:
    """A printable symbol for each byte, in the order of the vocabulary."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    named = {byte: chr(byte) for byte in shown}
    named.update((byte, chr(256 + i)) for i, byte in enumerate(others))
    return named


def find_vocabulary(path: Optional[str] = None) -> str:
    """Path of CLIP's vocabulary file.

    Args:
        path (str, optional): The file. Defaults to None: the one that the
            environment variable ``TRANSMAMBA_CLIP_BPE`` names, or else that
            of an installed open_clip, which is not imported.

    Returns:
        str: The path.

    Raises:
        FileNotFoundError: If there is none, saying what to do.
    """
    source = 'vocabulary'
    if path is None and VARIABLE in os.environ:
        path, source = os.environ[VARIABLE], f'${VARIABLE}'
    if path is not None:
        file = osp.expanduser(path)
        if osp.isfile(file):
            return file
        raise FileNotFoundError(f'{source}={path!r} of CLIPTokenizer: no file')
    spec = find_spec('open_clip')
    for folder in spec.submodule_search_locations or () if spec else ():
        if osp.isfile(file := osp.join(folder, _FILE)):
            return file
    raise FileNotFoundError(
        f'CLIPTokenizer needs the vocabulary of CLIP, {_FILE} of '
        f'github.com/openai/CLIP (folder clip): name the file by vocabulary= '
        f'or by the environment variable {VARIABLE}, or '
        f'pip install open_clip_torch, which contains it'
    )


@TOKENIZER.register_module()
class CLIPTokenizer:
    """Makes CLIP's tokens of a text.

    Args:
        vocabulary (str, optional): Path of the file of merges, plain or
            gzipped. Defaults to None, see :func:`find_vocabulary`.

    Attributes:
        vocab_size (int): Tokens that there are; the last two start and end a
            text.

    Raises:
        FileNotFoundError: If there is no vocabulary.
        ValueError: If the file is none.
        ImportError: If the package ``regex`` is missing.
    """

    def __init__(self, vocabulary: Optional[str] = None) -> None:
        try:
            import regex
        except ImportError as error:
            raise ImportError(f'CLIPTokenizer needs {_INSTALL}') from error
        self.vocabulary = find_vocabulary(vocabulary)
        merges = _read_merges(self.vocabulary)
        self._bytes = _byte_symbols()
        symbols = list(self._bytes.values())
        symbols += [f'{symbol}</w>' for symbol in symbols]
        symbols += [''.join(merge) for merge in merges]
        self._ids = {symbol: i for i, symbol in enumerate(symbols)}
        self._ranks = {merge: rank for rank, merge in enumerate(merges)}
        self._split = regex.compile(_WORDS)
        self._known: dict[str, list[int]] = {}
        self.vocab_size = len(symbols) + 2

    def __call__(self, text: str, max_words: int) -> list[int]:
        """Tokens of a text, start and end among them, not padded.

        Args:
            text (str): The text.
            max_words (int): The most tokens; of a longer text the first,
                and the end.

        Returns:
            list[int]: The tokens.

        Raises:
            ValueError: If ``max_words`` has no room for start and end.
            ImportError: If the text needs ``ftfy``, which is missing.
        """
        if max_words < 2:
            raise ValueError(
                f'max_words must be at least 2, start and end, got {max_words}'
            )
        tokens = [
            token
            for word in self._split.findall(_cleaned(text))
            for token in self._encode(word)
        ]
        start, end = self.vocab_size - 2, self.vocab_size - 1
        return [start, *tokens[: max_words - 2], end]

    def _encode(self, word: str) -> list[int]:
        if word not in self._known:
            parts = self._merged([self._bytes[x] for x in word.encode()])
            self._known[word] = [self._ids[part] for part in parts]
        return self._known[word]

    def _merged(self, parts: list[str]) -> list[str]:
        """Merges neighbours of a word, the most frequent pairs first."""
        parts[-1] += '</w>'
        while len(parts) > 1:
            pairs = set(zip(parts, parts[1:])) & self._ranks.keys()
            if not pairs:
                break
            pair, i = min(pairs, key=self._ranks.__getitem__), 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == pair:
                    parts[i : i + 2] = [''.join(pair)]
                i += 1
        return parts

    def __repr__(self) -> str:
        return f'{type(self).__name__}(vocabulary={self.vocabulary!r})'


def _cleaned(text: str) -> str:
    """Lower case, single spaces, without what was encoded twice."""
    if not _PLAIN.fullmatch(text):
        try:
            import ftfy
        except ImportError as error:
            raise ImportError(
                f'CLIP repairs texts that are not plain ASCII, such as '
                f'{text!r}, by ftfy: {_INSTALL}'
            ) from error
        text = ftfy.fix_text(text)
    text = html.unescape(html.unescape(text))
    return ' '.join(text.split()).lower()


def _read_merges(path: str) -> list[tuple[str, str]]:
    with open(path, 'rb') as file:
        content = file.read()
    try:
        if content[:2] == b'\x1f\x8b':
            content = gzip.decompress(content)
        _, *lines = content.decode().splitlines()
    except (OSError, EOFError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"'{path}' is no vocabulary of CLIP") from error
    merges = [tuple(line.split()) for line in lines if line][:_MERGES]
    if not merges or any(len(merge) != 2 for merge in merges):
        raise ValueError(
            f"'{path}' is no vocabulary of CLIP: after a first line, each "
            f'line must hold two symbols that are merged'
        )
    return merges
