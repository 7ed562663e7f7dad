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

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

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
WORKSPACE = 'transmamba_build_'  # how folders of builds under way are called
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
    wanted = os.environ.get('CXX')
    if wanted:
        try:
            command = shlex.split(wanted)
        except ValueError as error:
            raise BuildError(f'CXX={wanted} cannot be read: {error}') from None
        if command and shutil.which(command[0]):
            return command
        raise BuildError(f'CXX={wanted!r} is not a program')
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

    OpenMP is left out where the compiler does not have it.  Size and digest
    are stored beside it, for :func:`is_whole`.

    Args:
        target: file to make or replace.  Its folder is made if missing.
        compiler: command.  Default None: :func:`find_compiler`.

    Raises:
        BuildError: if there is no compiler, or it fails.
        OSError: if the folder cannot be written.
    """
    compiler = compiler or find_compiler()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _workspace(target.parent) as folder:
        library = folder / LIBRARY
        try:
            _compile(compiler, [*FLAGS, OPENMP], library)
        except BuildError:
            _compile(compiler, list(FLAGS), library)
        library.chmod(0o755)
        seal = folder / 'seal'
        seal.write_bytes(_seal(library))
        seal.chmod(0o644)
        # Another process may be loading an older one: never write in place.
        for made, place in ((library, target), (seal, seal_of(target))):
            with open(made, 'rb+') as file:
                os.fsync(file.fileno())
            os.replace(made, place)


def seal_of(library: Path) -> Path:
    """Return where the digest and the size of a library are stored."""
    return library.with_name(library.name + '.sha256')


def is_whole(library: Path) -> bool:
    """Tell whether a library is what was built, to the last byte.

    A processor that runs into the end of a shortened one kills the process.
    """
    try:
        return seal_of(library).read_bytes() == _seal(library)
    except OSError:
        return False


def _seal(library: Path) -> bytes:
    content = library.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return f'{digest} {len(content)}\n'.encode()


@contextlib.contextmanager
def _workspace(parent: Path) -> Iterator[Path]:
    """Make a folder, locked while in use, and remove it afterwards."""
    sweep(parent)
    with (
        tempfile.TemporaryDirectory(prefix=WORKSPACE, dir=parent) as folder,
        open(Path(folder) / 'lock', 'w') as lock,
    ):
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(folder)


def sweep(parent: Path) -> None:
    """Remove folders of builds that were killed."""
    if fcntl is None:
        return
    for folder in parent.glob(f'{WORKSPACE}*'):
        with contextlib.suppress(OSError):  # in use, or gone by now
            state = folder.lstat()
            if state.st_uid != os.geteuid():
                continue
            if not (folder / 'lock').exists():
                # Killed between two lines, if not made just now.
                if time.time() - state.st_mtime > 3600:
                    folder.rmdir()
                continue
            with open(folder / 'lock') as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)


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
            errors='replace',
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
