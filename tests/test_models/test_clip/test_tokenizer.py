# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""CLIP's tokens: of a tiny vocabulary by hand, of the real one as open_clip's.

The latter where open_clip is installed.
"""

import gzip
import pickle
import sys
from importlib.util import find_spec

import pytest

from transmamba_mm.models.clip.tokenizer import (
    VARIABLE,
    CLIPTokenizer,
    find_vocabulary,
)
from transmamba_mm.registry import TOKENIZER

MERGES = ['#version', 'l o', 'lo w</w>', 'e r</w>', 'n e', 'lo w', '']
# 256 bytes, 256 of them that end a word, then merges, start and end.
LO, LOW_END, ER_END, NE, LOW, START, END = range(512, 519)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / 'merges.txt'
    path.write_text('\n'.join(MERGES))
    return path


@pytest.fixture
def tokenizer(file):
    return TOKENIZER.build(
        dict(type='transmamba.CLIPTokenizer', vocabulary=str(file))
    )


def byte(char, ends=False):
    """The number of a printable byte, which are counted from ``!``."""
    return ord(char) - ord('!') + 256 * ends


QUOTE, LAST_S = byte("'"), byte('s', ends=True)


@pytest.mark.parametrize(
    ('text', 'tokens'),
    [
        ('low', [LOW_END]),
        ('LOWER  low', [LOW, ER_END, LOW_END]),
        ('newer', [NE, byte('w'), ER_END]),
        # An ending of its own, and each digit for itself.
        ("low's 1", [LOW_END, QUOTE, LAST_S, byte('1', ends=True)]),
        ('10', [byte('1', ends=True), byte('0', ends=True)]),
        # Merges are of whole ends only.
        ('lo?!', [byte('l'), byte('o', True), byte('?'), byte('!', True)]),
        ('', []),
    ],
)
def test_merges(tokenizer, text, tokens):
    assert tokenizer(text, 77) == [START, *tokens, END]


def test_long_texts_are_cut_and_keep_their_end(tokenizer):
    assert tokenizer('low low low', 4) == [START, LOW_END, LOW_END, END]
    assert tokenizer('low', 2) == [START, END]
    with pytest.raises(ValueError, match='at least 2'):
        tokenizer('low', 1)


def test_gzip_and_pickle(tokenizer, file, tmp_path):
    path = tmp_path / 'merges.txt.gz'
    path.write_bytes(gzip.compress(file.read_bytes()))
    packed = CLIPTokenizer(str(path))
    assert packed('newer low', 9) == tokenizer('newer low', 9)
    assert pickle.loads(pickle.dumps(packed))('low', 9) == packed('low', 9)
    assert packed.vocab_size == 519


def test_where_the_vocabulary_is_found(file, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(FileNotFoundError, match='pip install open_clip'):
        find_vocabulary()
    package = tmp_path / 'open_clip'
    package.mkdir()
    (package / '__init__.py').write_text('raise ImportError')
    with pytest.raises(FileNotFoundError, match=r'github\.com/openai/CLIP'):
        find_vocabulary()
    held = package / 'bpe_simple_vocab_16e6.txt.gz'
    held.write_bytes(b'')
    assert find_vocabulary() == str(held)
    monkeypatch.setenv(VARIABLE, str(file))
    assert find_vocabulary() == str(file)
    assert find_vocabulary(str(held)) == str(held)
    monkeypatch.setenv(VARIABLE, 'nowhere')
    with pytest.raises(FileNotFoundError, match=r"\$TRANSMAMBA_CLIP_BPE='no"):
        find_vocabulary()


@pytest.mark.parametrize('content', [b'', b'one\ntwo words here\n', b'\xff'])
def test_other_files_are_no_vocabulary(tmp_path, content):
    path = tmp_path / 'other'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='is no vocabulary of CLIP'):
        CLIPTokenizer(str(path))


@pytest.mark.skipif(find_spec('ftfy') is not None, reason='has ftfy')
@pytest.mark.parametrize('text', ['caf\u00e9', 'a &amp; b', '\x1b[0m'])
def test_what_only_ftfy_can_repair_is_an_error(tokenizer, text):
    with pytest.raises(ImportError, match='pip install'):
        tokenizer(text, 9)


TEXTS = [
    'A man is playing the guitar, and then he\'ll stop & sing!',
    "the dog's 3 puppies DON'T   run\tor jump\nat 10:45pm -- they've gone",
    'black & white photo_of #1 (a \u201cquoted\u201d caf\u00e9) \u00bd price',
    '&lt;b&gt;bold&lt;/b&gt; &amp;amp; schÃ¶n \u4e2d\u6587 \U0001f600 x\u00b2',
    'we' * 60 + ' ' + 'supercalifragilistic ' * 40,
    '',
]  # fmt: skip


@pytest.mark.skipif(find_spec('open_clip') is None, reason='no open_clip')
@pytest.mark.parametrize('text', TEXTS)
def test_same_numbers_as_open_clip(text):
    open_clip = pytest.importorskip('open_clip')
    for words in (8, 32, 77):
        theirs = open_clip.tokenize([text], words)[0].tolist()
        ours = CLIPTokenizer()(text, words)
        assert ours + [0] * (words - len(ours)) == theirs
