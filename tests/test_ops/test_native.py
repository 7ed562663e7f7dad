# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Building and loading the CPU kernels."""

import platform
import stat
import sys
import warnings
from pathlib import Path

import pytest
import torch

from transmamba_mm.ops.backends import cpu
from transmamba_mm.ops.native import build, library

needs_kernels = pytest.mark.skipif(
    library.unavailable() is not None, reason='the CPU kernels are missing'
)


def test_there_is_a_compiler_where_tests_run():
    """All that follows would be skipped without it."""
    if platform.machine() in build.MACHINES:
        assert library.unavailable() is None


@pytest.fixture
def load_elsewhere(monkeypatch, tmp_path):
    """Load as in a fresh process, from nowhere but a cache in tmp_path."""
    monkeypatch.setattr(build, 'LIBRARY', 'elsewhere.so')
    monkeypatch.setenv(library.CACHE_VARIABLE, str(tmp_path / 'cache'))
    monkeypatch.delenv('CXX', raising=False)
    return library.load.__wrapped__


def test_no_compiler_is_explained(load_elsewhere, monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(library.LibraryError, match='was found; install one'):
        load_elsewhere()


def test_wrong_cxx_is_named(load_elsewhere, monkeypatch):
    monkeypatch.setenv('CXX', 'nowhere-c++ -O0')
    with pytest.raises(library.LibraryError, match=r'CXX=nowhere.* is not a'):
        load_elsewhere()


def test_failing_compiler_is_quoted(load_elsewhere, monkeypatch, tmp_path):
    compiler = tmp_path / 'broken-c++'
    compiler.write_text('#!/bin/sh\necho "out of luck" >&2\nexit 1\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv('CXX', str(compiler))
    with pytest.raises(library.LibraryError, match=r'broken.*\nout of luck'):
        load_elsewhere()


@needs_kernels
def test_compiled_once_into_the_cache(load_elsewhere, monkeypatch, tmp_path):
    load_elsewhere()
    (made,) = tmp_path.glob('cache/*/elsewhere.so')
    # Nothing half-made is left beside it.
    assert [path.name for path in made.parent.iterdir()] == ['elsewhere.so']
    monkeypatch.setattr(build, 'build', None)
    load_elsewhere()


@needs_kernels
def test_left_without_openmp(load_elsewhere, monkeypatch):
    monkeypatch.setattr(build, 'OPENMP', '-fno-such-flag')
    load_elsewhere()


@needs_kernels
def test_library_of_other_sources_is_not_loaded(monkeypatch):
    path = Path(library.load()._name)
    assert library._open(path) is not None
    monkeypatch.setattr(build, 'source_key', lambda: 'another')
    assert library._open(path) is None


def test_damaged_library_is_not_loaded(tmp_path):
    path = tmp_path / build.LIBRARY
    path.write_bytes(b'\x7fELF of another kind')
    assert library._open(path) is None
    assert library._open(tmp_path / 'missing.so') is None


@needs_kernels
def test_unwritable_cache_is_explained(load_elsewhere, tmp_path):
    (tmp_path / 'cache').write_text('a file where a folder should be')
    with pytest.raises(library.LibraryError, match='cache'):
        load_elsewhere()


def test_other_processors_are_refused(monkeypatch):
    monkeypatch.setattr(platform, 'machine', lambda: 'aarch64')
    with pytest.raises(build.BuildError, match='this machine is aarch64'):
        build.find_compiler()


@needs_kernels
def test_instruction_set_can_be_chosen(monkeypatch):
    best = library.isa()
    try:
        monkeypatch.setenv(library.ISA_VARIABLE, 'avx2')
        library.load.__wrapped__()
        assert library.isa() == 'avx2'
        monkeypatch.setenv(library.ISA_VARIABLE, 'sse9')
        with pytest.raises(library.LibraryError, match='not have sse9'):
            library.load.__wrapped__()
    finally:
        library.load().tm_select_isa(best.encode())


@needs_kernels
def test_no_processor_specific_flags():
    flags = [*build.FLAGS, *sum(build.FLAGS_OF_FILE.values(), ())]
    assert not any('native' in flag for flag in flags)


@needs_kernels
def test_openmp_runtime_is_shared_with_pytorch():
    """Two runtimes in a process would fight for the cores."""
    if not sys.platform.startswith('linux'):
        pytest.skip('reads /proc')
    library.load()
    torch.ones(1 << 20).exp().sum()
    with open('/proc/self/maps') as maps:
        mapped = {line.split()[-1] for line in maps if 'gomp' in line}
    # scikit-learn brings one of its own.
    assert len([name for name in mapped if 'scikit' not in name]) <= 1


def test_one_warning_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(library, 'unavailable', lambda: 'no compiler; get one')
    cpu._warn.cache_clear()
    with pytest.warns(UserWarning, match='C.. kernel, because: no compiler'):
        cpu.probe()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert cpu.probe() == 'no compiler; get one'
