# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Building and loading the CPU kernels."""

import os
import platform
import shutil
import stat
import sys
import warnings
from pathlib import Path

import pytest
import torch

from transmamba_mm.ops import scan_backends
from transmamba_mm.ops.backends import cpu
from transmamba_mm.ops.native import build, library
from transmamba_mm.ops.native.trust import (
    UnsafeFolderError,
    is_own,
    private_folder,
)

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
    monkeypatch.setattr(build, 'FLAGS', ('-O0', *build.FLAGS[1:]))  # quick
    monkeypatch.setenv(library.CACHE_VARIABLE, str(tmp_path / 'cache'))
    monkeypatch.delenv('CXX', raising=False)
    return library.load.__wrapped__


def test_no_compiler_is_explained(load_elsewhere, monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(library.LibraryError, match='was found; install one'):
        load_elsewhere()


def test_wrong_cxx_is_named(load_elsewhere, monkeypatch):
    monkeypatch.setenv('CXX', 'nowhere-c++ -O0')
    with pytest.raises(library.LibraryError, match=r'CXX=.nowhere.* is not a'):
        load_elsewhere()


@pytest.mark.parametrize('command', [' ', "g++ '-O2", '""'])
def test_cxx_that_is_no_command(load_elsewhere, monkeypatch, command):
    monkeypatch.setenv('CXX', command)
    with pytest.raises(library.LibraryError, match='CXX='):
        load_elsewhere()


def test_compiler_of_strange_letters(load_elsewhere, monkeypatch, tmp_path):
    compiler = tmp_path / 'c++'
    compiler.write_bytes(b'#!/bin/sh\nprintf "\\377 wrong"\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv('CXX', str(compiler))
    with pytest.raises(library.LibraryError, match='wrong'):
        load_elsewhere()


def test_failing_compiler_is_quoted(load_elsewhere, monkeypatch, tmp_path):
    compiler = tmp_path / 'broken-c++'
    compiler.write_text('#!/bin/sh\necho "out of luck" >&2\nexit 1\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv('CXX', str(compiler))
    with pytest.raises(library.LibraryError, match=r'broken.*\nout of luck'):
        load_elsewhere()


@pytest.fixture
def built(monkeypatch):
    """Targets of builds, which copy what is compiled already."""
    compiled, targets = Path(library.load()._name), []

    def copy(compiler, flags, target):
        targets.append(target)
        shutil.copy(compiled, target)

    monkeypatch.setattr(build, '_compile', copy)
    return targets


@needs_kernels
def test_compiled_once_into_the_cache(load_elsewhere, monkeypatch, tmp_path):
    old = os.umask(0)
    try:
        load_elsewhere()
    finally:
        os.umask(old)
    (made,) = tmp_path.glob('cache/*/elsewhere.so')
    # Nothing half-made is left beside it.
    assert {path.name for path in made.parent.iterdir()} == {
        'elsewhere.so',
        'elsewhere.so.sha256',
    }
    for folder in (made.parent, tmp_path / 'cache'):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.setattr(build, 'build', None)
    load_elsewhere()


@needs_kernels
@pytest.mark.parametrize('damage', ['cut', 'byte', 'unsealed', 'writable'])
def test_damaged_cache_is_built_again(
    load_elsewhere, built, tmp_path, damage, monkeypatch
):
    """Cut short, the library would kill each process by SIGBUS."""
    load_elsewhere()
    (made,) = tmp_path.glob('cache/*/elsewhere.so')
    content = made.read_bytes()
    if damage == 'unsealed':
        build.seal_of(made).unlink()
    else:
        # Not in place: this process has it in its memory.
        made.unlink()
        end = bytes([content[-1] ^ 1]) if damage == 'byte' else content[-1:]
        made.write_bytes(content[: 99 if damage == 'cut' else -1] + end)
        made.chmod(0o666 if damage == 'writable' else 0o600)
    load_elsewhere()
    assert len(built) == 2 and made.read_bytes() == content
    assert is_own(made)


def spoil(place, how):
    """Let other users put code into a folder."""
    if how == 'owner':
        if os.geteuid():
            pytest.skip('only root can give files away')
        os.chown(place, 12345, 12345)
    else:
        place.chmod(how)


@needs_kernels
@pytest.mark.parametrize('how', [0o777, 0o770, 0o702, 0o1777, 'owner'])
@pytest.mark.parametrize('which', ['cache', 'key'])
def test_cache_that_others_write_is_not_used(
    load_elsewhere, built, tmp_path, how, which
):
    load_elsewhere()
    (made,) = tmp_path.glob('cache/*/elsewhere.so')
    spoil(made.parent if which == 'key' else made.parent.parent, how)
    # What would be run were it loaded.
    made.unlink()
    made.write_bytes(b'planted')
    build.seal_of(made).write_bytes(build._seal(made))
    with pytest.warns(UserWarning, match='for this process alone') as caught:
        load_elsewhere()
    assert len(caught) == 1 and made.read_bytes() == b'planted'
    # The private one is gone, and was never among what others write.
    assert not built[-1].exists() and tmp_path not in built[-1].parents


@pytest.mark.parametrize('how', [0o777, 'owner'])
def test_folders_above_must_be_safe_too(tmp_path, how):
    above = tmp_path / 'above'
    above.mkdir()
    private_folder(above / 'cache', 'key')
    spoil(above, how)
    for root in (above / 'cache', tmp_path / 'link'):
        if not root.exists():
            root.symlink_to(above / 'cache')
        with pytest.raises(UnsafeFolderError, match='above, above'):
            private_folder(root, 'key')
    if how != 'owner':
        above.chmod(0o1777)  # as /tmp: nobody can replace a folder of ours
        private_folder(above / 'cache', 'key')


@needs_kernels
def test_leftovers_of_killed_builds_are_swept(load_elsewhere, built, tmp_path):
    load_elsewhere()
    (made,) = tmp_path.glob('cache/*/elsewhere.so')
    dead, others = made.parent / f'{build.WORKSPACE}1', made.parent / 'mine'
    for folder in (dead, others):
        folder.mkdir()
        (folder / 'lock').touch()
        (folder / 'entry.cpp.o').touch()
    with build._workspace(made.parent) as living:
        load_elsewhere()
        assert living.exists() and others.exists() and not dead.exists()
    dead.mkdir()  # killed, or to be locked in a moment
    load_elsewhere()
    assert dead.exists()
    os.utime(dead, (0, 0))
    load_elsewhere()
    assert not dead.exists() and not living.exists()


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
def test_without_a_cache_each_process_compiles(
    load_elsewhere, built, tmp_path, monkeypatch
):
    (tmp_path / 'cache').write_text('a file where a folder should be')
    with pytest.warns(
        UserWarning, match='process alone, .* Not a directory: '
    ):
        load_elsewhere()

    def homeless():
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.delenv(library.CACHE_VARIABLE)
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr(Path, 'home', homeless)
    with pytest.warns(UserWarning, match='process alone, .* home directory'):
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


def test_a_compiler_is_looked_for_again(monkeypatch):
    def fails():
        raise library.LibraryError('no compiler yet')

    library.forget()
    with monkeypatch.context() as patched:
        patched.setattr(library, 'load', fails)
        assert scan_backends()['cpu'] == (False, 'no compiler yet')
    assert scan_backends()['cpu'].available == (library.unavailable() is None)
    assert library.unavailable() != 'no compiler yet'
