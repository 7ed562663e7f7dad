# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What ends up in the source archive, the wheel and an editable install."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from transmamba_mm.ops.native import build, library

ROOT = Path(__file__).resolve().parents[1]
SKIP = shutil.ignore_patterns(
    '*.so', '.mim', '__pycache__', '*.egg-info', 'build', 'dist', 'work_dirs'
)


def run_backend(folder, call):
    """Call a hook of the build backend, as pip does."""
    code = f'import setuptools.build_meta as backend; backend.{call}'
    subprocess.run(
        [sys.executable, '-c', code],
        cwd=folder,
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A copy of the repository, with what a release has at the least."""
    root = tmp_path_factory.mktemp('source') / 'repo'
    root.mkdir()
    for name in ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'LICENSE'):
        shutil.copy(ROOT / name, root)
    for name in ('transmamba_mm', 'requirements', 'tools', 'configs'):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, root / name, ignore=SKIP)
    (root / 'configs' / 'one').mkdir(parents=True, exist_ok=True)
    (root / 'configs' / 'one' / 'one.py').write_text('a = 1\n')
    (root / 'configs' / 'one' / 'metafile.yml').write_text('Models: []\n')
    (root / 'model-index.yml').write_text('Import: []\n')
    (root / 'README.md').write_text('# readme\n')
    (root / 'transmamba_mm' / '__init__.py').touch()
    (root / 'tools' / '__pycache__').mkdir()
    (root / 'tools' / '__pycache__' / 'a.pyc').touch()
    return root


@pytest.fixture(scope='module')
def unpacked(source, tmp_path_factory):
    """The source archive, unpacked."""
    folder = tmp_path_factory.mktemp('sdist')
    run_backend(source, f'build_sdist({str(folder)!r})')
    (archive,) = folder.glob('*.tar.gz')
    with tarfile.open(archive) as tar:
        tar.extractall(folder)
    (root,) = (path for path in folder.iterdir() if path.is_dir())
    return root


def test_sdist_holds_the_originals(unpacked):
    for name in (
        'LICENSE',
        'configs/one/one.py',
        'model-index.yml',
        'pyproject.toml',
        'requirements/constraints.txt',
        'requirements/runtime.txt',
        'tools/dist_train.sh',
        'transmamba_mm/compat/mmrazor_kd.py',
    ):
        assert (unpacked / name).is_file(), name
    assert not (unpacked / 'transmamba_mm' / '.mim').exists()
    assert not list(unpacked.rglob('*.pyc'))


def build_wheel(folder, target, **environment):
    """As `pip install transmamba_mm.tar.gz` builds it."""
    command = '-m pip wheel --no-deps --no-build-isolation --no-index -w'
    subprocess.run(
        [sys.executable, *command.split(), str(target), '.'],
        cwd=folder,
        check=True,
        capture_output=True,
        env={**os.environ, **environment},
    )
    (wheel,) = target.glob('transmamba_mm-*.whl')
    return wheel


@pytest.mark.skipif(
    library.unavailable() is not None, reason='no compiler for the kernels'
)
def test_wheel_with_kernels_serves_every_python(unpacked, tmp_path):
    wheel = build_wheel(unpacked, tmp_path / 'wheels')
    assert '-py3-none-' in wheel.name and '-any' not in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    kernels = tmp_path / 'transmamba_mm' / 'ops' / 'native' / build.LIBRARY
    assert library._open(kernels) is not None


def test_wheel_without_a_compiler(unpacked, tmp_path):
    wheel = build_wheel(unpacked, tmp_path, CXX='no-such-compiler')
    assert wheel.name.endswith('-py3-none-any.whl')
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (n for n in names if n.endswith('/METADATA'))
        metadata = archive.read(metadata).decode()
        mode = archive.getinfo('transmamba_mm/.mim/tools/dist_train.sh')
    for name in (
        'transmamba_mm/__init__.py',
        'transmamba_mm/utils/cli.py',
        'transmamba_mm/ops/native/csrc/abi.h',
        'transmamba_mm/ops/native/csrc/entry.cpp',
        'transmamba_mm/.mim/configs/one/one.py',
        'transmamba_mm/.mim/configs/one/metafile.yml',
        'transmamba_mm/.mim/tools/train.py',
        'transmamba_mm/.mim/tools/test.py',
        'transmamba_mm/.mim/tools/misc/print_config.py',
        'transmamba_mm/.mim/model-index.yml',
    ):
        assert name in names, name
    assert {name.split('/')[0] for name in names} == {
        'transmamba_mm',
        wheel.name.partition('-py3')[0] + '.dist-info',
    }
    assert not any('__pycache__' in name for name in names)
    assert mode.external_attr >> 16 & 0o100, 'launchers stay executable'
    assert 'Requires-Dist: mmrazor==1.0.0\n' in metadata
    assert 'Requires-Python: >=3.9\n' in metadata
    extras = set(re.findall(r'Provides-Extra: (\S+)', metadata))
    assert extras == {
        *('video', 'vqa', 'lmms-eval', 'demo', 'triton', 'mamba', 'energy'),
        *('docs', 'tests'),
    }
    assert 'License-Expression: Apache-2.0' in metadata


def test_editable_install_links_to_the_repository(source, tmp_path):
    run_backend(source, f'build_editable({str(tmp_path)!r})')
    mim = source / 'transmamba_mm' / '.mim'
    for name in ('configs', 'tools', 'model-index.yml'):
        assert (mim / name).is_symlink()
        assert not os.path.isabs(os.readlink(mim / name))
        assert (mim / name).resolve() == (source / name).resolve()
    # A normal build afterwards copies, and leaves the links out.
    run_backend(source, f'build_sdist({str(tmp_path)!r})')
    (archive,) = tmp_path.glob('*.tar.gz')
    with tarfile.open(archive) as tar:
        assert not [n for n in tar.getnames() if '.mim' in n]


def test_links_are_never_committed():
    ignored = (ROOT / '.gitignore').read_text().split()
    assert 'transmamba_mm/.mim/' in ignored


def read_requirements(name):
    text = (ROOT / 'requirements' / f'{name}.txt').read_text()
    lines = (line.partition('#')[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def test_constraints_pin_every_direct_dependency():
    pinned = {
        re.split(r'[=<]', line)[0] for line in read_requirements('constraints')
    }
    for part in ('runtime', 'tests'):
        for line in read_requirements(part):
            assert re.split(r'[=<>]', line)[0] in pinned, line
