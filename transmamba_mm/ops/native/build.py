# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Compile the CPU kernels to one shared library.

``setup.py`` runs this file when the package is built, :mod:`.library` imports
it when no built library is there, so it uses the standard library only.

The kernels have a plain C interface and include no header of Python or
PyTorch: one library serves all versions of both.  Each instruction set is a
source file with its own flags, chosen when the library is loaded; nothing is
compiled for the processor at hand (``-march=native``), because home
directories and wheels travel between machines.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Optional

SOURCES = Path(__file__).resolve().parent / 'csrc'
LIBRARY = 'transmamba_kernels.so'
MACHINES = ('x86_64', 'AMD64')
COMPILERS = ('c++', 'g++', 'clang++')
FLAGS = (
    *('-O3', '-std=c++17', '-fPIC', '-fvisibility=hidden'),
    # Products and sums run on different units: fused only where written so.
    '-ffp-contract=off',
)
OPENMP = '-fopenmp'
FLAGS_OF_FILE = {
    'entry.cpp': (),
    'kernels_avx2.cpp': ('-mavx2', '-mfma', '-mf16c'),
    'kernels_avx512.cpp': (
        *('-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl'),
        *('-mfma', '-mf16c', '-mprefer-vector-width=512'),
    ),
}


class BuildError(RuntimeError):
    """The kernels cannot be compiled; the message says why."""


def source_key() -> str:
    """Digest of the sources, compiled into the library."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b'\0' + path.read_bytes())
    return digest.hexdigest()[:16]


def find_compiler() -> list[str]:
    """Return the command of a C++ compiler: ``$CXX``, else a usual name.

    Raises:
        BuildError: if there is none, or the processor is not served.
    """
    if platform.machine() not in MACHINES:
        raise BuildError(
            f'the kernels are written for x86-64 with AVX2, this machine is '
            f'{platform.machine()}'
        )
    if os.environ.get('CXX'):
        command = shlex.split(os.environ['CXX'])
        if shutil.which(command[0]):
            return command
        raise BuildError(f'CXX={os.environ["CXX"]} is not a program')
    for name in COMPILERS:
        if shutil.which(name):
            return [name]
    raise BuildError(
        'no C++ compiler was found; install one, for example by `apt install '
        'g++` or `conda install gxx`, or set CXX'
    )


def build_key(compiler: list[str]) -> str:
    """Digest of all that determines the library."""
    version = _run([*compiler, '--version'])
    flags = [*FLAGS, OPENMP, *map(str, FLAGS_OF_FILE.items())]
    parts = (source_key(), version, *flags, platform.machine())
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:16]


def build(target: Path, compiler: Optional[list[str]] = None) -> None:
    """Compile the library and move it to ``target`` in one step.

    OpenMP is left out where the compiler does not have it.

    Args:
        target: file to make or replace.  Its folder is made if missing.
        compiler: command.  Default None: :func:`find_compiler`.

    Raises:
        BuildError: if there is no compiler, or it fails.
        OSError: if the folder cannot be written.
    """
    compiler = compiler or find_compiler()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        library = Path(folder) / LIBRARY
        try:
            _compile(compiler, [*FLAGS, OPENMP], library)
        except BuildError:
            _compile(compiler, list(FLAGS), library)
        # Another process may be loading an older one: never write in place.
        os.replace(library, target)


def _compile(compiler: list[str], flags: list[str], library: Path) -> None:
    key = f'-DTM_SOURCE_KEY="{source_key()}"'
    objects, jobs = [], []
    for name, own_flags in FLAGS_OF_FILE.items():
        objects.append(str(library.parent / f'{name}.o'))
        source = str(SOURCES / name)
        command = [*compiler, *flags, *own_flags, key, '-c', source]
        jobs.append(_start([*command, '-o', objects[-1]]))
    failures = [text for text in map(_finish, jobs) if text]
    if failures:
        raise BuildError(failures[0])
    link = [*compiler, *flags, '-shared', *objects, '-o', str(library)]
    failure = _finish(_start(link))
    if failure:
        raise BuildError(failure)


def _start(command: list[str]) -> subprocess.Popen:
    try:
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except OSError as error:
        raise BuildError(f'{command[0]} cannot be run: {error}') from error


def _finish(job: subprocess.Popen) -> str:
    """Wait; return an empty string, or what went wrong."""
    output, _ = job.communicate()
    if job.returncode == 0:
        return ''
    tail = '\n'.join(output.strip().splitlines()[-20:])
    return f'`{shlex.join(job.args)}` failed:\n{tail}'


def _run(command: list[str]) -> str:
    job = _start(command)
    return job.communicate()[0]
