# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Load the CPU kernels, compiling them if need be.

Tried in turn: the library that ``setup.py`` put beside this file, the one in
the user's cache, and compiling it into that cache.  ``TRANSMAMBA_CACHE_DIR``
moves the cache (default: ``transmamba_mm`` in ``$XDG_CACHE_HOME`` or
``~/.cache``); where others could put code into it (:mod:`.trust`), or it
cannot be written, each process compiles its own.  ``TRANSMAMBA_ISA``
(``avx512`` or ``avx2``) restricts the instruction set.
"""

import ctypes
import functools
import os
import tempfile
import warnings
from ctypes import c_char_p, c_double, c_int64, c_void_p
from pathlib import Path
from typing import Optional

import torch
from torch import Tensor

from . import build
from .trust import UnsafeFolderError, is_own, private_folder

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # abi.h
CHUNK = 32  # TM_CHUNK of csrc/abi.h
FOLDER = Path(__file__).resolve().parent
ISA_VARIABLE = 'TRANSMAMBA_ISA'
CACHE_VARIABLE = 'TRANSMAMBA_CACHE_DIR'


class LibraryError(RuntimeError):
    """The kernels cannot be used on this machine; the message says why."""


class Tokens(ctypes.Structure):
    """``TmTokens`` of csrc/abi.h."""

    _fields_ = [('data', c_void_p)] + [
        (name, c_int64) for name in ('dtype', 'sb', 'sk', 'sl', 'sd')
    ]


class Coefs(ctypes.Structure):
    """``TmCoefs`` of csrc/abi.h."""

    _fields_ = [('data', c_void_p)] + [
        (name, c_int64) for name in ('dtype', 'sb', 'sk', 'sg', 'sl', 'sn')
    ]


class Scan(ctypes.Structure):
    """``TmScan`` of csrc/abi.h."""

    _fields_ = [
        *((name, c_int64) for name in ('B', 'K', 'G', 'L', 'D', 'N')),
        *((name, Tokens) for name in ('u', 'delta', 'z', 'out')),
        *((name, Coefs) for name in ('b', 'c')),
        ('a', c_void_p),
        ('a_sk', c_int64),
        ('d', c_void_p),
        ('d_sk', c_int64),
        ('bias', c_void_p),
        ('bias_sk', c_int64),
        ('orders', c_void_p),
        ('reverse', c_int64),
        ('softplus', c_int64),
        ('by_step', c_int64),
        ('last', c_void_p),
        ('states', c_void_p),
        ('grad_out', Tokens),
        ('grad_u', Tokens),
        ('grad_delta', Tokens),
        ('grad_z', Tokens),
        *((f'grad_{name}', c_void_p) for name in ('b', 'c', 'a', 'd', 'bias')),
        ('parts', c_int64),
        ('threads', c_int64),
    ]


class Conv(ctypes.Structure):
    """``TmConv`` of csrc/abi.h."""

    _fields_ = [
        *(
            (name, c_int64)
            for name in ('B', 'L', 'D', 'width', 'reverse', 'threads')
        ),
        ('x', Tokens),
        ('out', Tokens),
        ('weight', c_void_p),
        ('bias', c_void_p),
        ('grad_out', Tokens),
        ('grad_x', Tokens),
        ('grad_weight', c_void_p),
        ('grad_bias', c_void_p),
    ]


class Norm(ctypes.Structure):
    """``TmNorm`` of csrc/abi.h."""

    _fields_ = [
        *((name, c_int64) for name in ('rows', 'D', 'threads', 'parts')),
        *((name, c_void_p) for name in ('x', 'weight', 'out', 'rstd')),
        ('eps', c_double),
        *((name, c_void_p) for name in ('grad_out', 'grad_x', 'grad_weight')),
    ]


FUNCTIONS = {
    'tm_scan_forward': Scan,
    'tm_scan_backward': Scan,
    'tm_conv_forward': Conv,
    'tm_conv_backward': Conv,
    'tm_norm_forward': Norm,
    'tm_norm_backward': Norm,
}


@functools.cache
def _load_error() -> Optional[str]:
    try:
        load()
    except LibraryError as error:
        return str(error)
    return None


def forget() -> None:
    """Try again, if it failed, when it is next asked for."""
    _load_error.cache_clear()


def unavailable() -> Optional[str]:
    """Tell why :func:`load` fails on this machine; None if it does not."""
    return _load_error()


# torch.compile then asks once, instead of tracing how a library is loaded.
# `torch.compiler.assume_constant_result` sets nothing else, but imports the
# compiler, which takes a second.
unavailable._dynamo_marked_constant = True


@functools.cache
def load() -> ctypes.CDLL:
    """Return the library, ready for use.

    Raises:
        LibraryError: if it can neither be found nor built, or this processor
            has none of the instruction sets.
    """
    library = _open(FOLDER / build.LIBRARY) or _open_cached()
    wanted = os.environ.get(ISA_VARIABLE, '')
    if not library.tm_select_isa(wanted.encode()):
        raise LibraryError(
            f'this processor does not have {wanted or "AVX2"}'
            + (f', which {ISA_VARIABLE} asks for' if wanted else '')
        )
    _keep_freed_memory()
    return library


def _keep_freed_memory() -> None:
    """Spare the results of the kernels the cost of fresh pages.

    The GNU C library hands freed memory back to the system above a threshold
    that starts low, and fresh pages then cost as much as a scan.  It raises
    the threshold to twice the size of the largest block of up to 32 MiB that
    it has freed.  Any training run gets there; this does so at once, with a
    block that is never touched and so takes no memory.
    """
    torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8)


def isa() -> str:
    """Name the instruction set in use: 'avx512' or 'avx2'."""
    return load().tm_isa().decode()


def call(name: str, arguments: ctypes.Structure) -> None:
    """Run a kernel.

    Raises:
        MemoryError: if its work buffer cannot be had.
    """
    if getattr(load(), name)(arguments):
        raise MemoryError(f'{name}: no memory for a work buffer')


def tokens(x: Optional[Tensor]) -> tuple[int, ...]:
    """Fields of ``TmTokens`` for a tensor (B, K, L, D), or for its absence.

    An axis K of size 1 gets the stride 0: all directions share the tensor.
    """
    if x is None:
        return ()
    sb, sk, sl, sd = x.stride()
    sk = 0 if x.shape[1] == 1 else sk
    return x.data_ptr(), DTYPES[x.dtype], sb, sk, sl, sd


def coefs(x: Tensor) -> tuple[int, ...]:
    """Fields of ``TmCoefs`` for a tensor (B, K, G, L, N)."""
    sb, sk, sg, sl, sn = x.stride()
    sk = 0 if x.shape[1] == 1 else sk
    return x.data_ptr(), DTYPES[x.dtype], sb, sk, sg, sl, sn


def _open(path: Path) -> Optional[ctypes.CDLL]:
    """Load a library if it was built from the sources at hand."""
    if not build.is_whole(path):
        return None
    try:
        # PyTorch, imported by now, has loaded the OpenMP runtime to share.
        library = ctypes.CDLL(str(path))
        library.tm_source_key.restype = c_char_p
        if library.tm_source_key().decode() != build.source_key():
            return None
    except (OSError, AttributeError):
        return None
    for name in ('tm_select_isa', 'tm_isa'):
        getattr(library, name).restype = c_char_p
    library.tm_select_isa.argtypes = [c_char_p]
    library.tm_chunk.restype = c_int64
    mirrored = [library.tm_chunk() == CHUNK]
    for name, arguments in FUNCTIONS.items():
        getattr(library, name).argtypes = [ctypes.POINTER(arguments)]
        sizeof = getattr(library, name.rpartition('_')[0] + '_sizeof')
        sizeof.restype = c_int64
        mirrored.append(sizeof() == ctypes.sizeof(arguments))
    if not all(mirrored):
        raise AssertionError('library.py does not mirror csrc/abi.h')
    return library


def _open_cached() -> ctypes.CDLL:
    try:
        compiler = build.find_compiler()
        key = build.build_key(compiler)
        try:
            path = private_folder(_cache(), key) / build.LIBRARY
            return _open_or_build(path, compiler)
        except (OSError, RuntimeError) as error:
            if isinstance(error, build.BuildError):
                raise
            warnings.warn(
                f'The CPU kernels are compiled for this process alone, which '
                f'takes some seconds each time, because: {error}. To keep '
                f'them, set {CACHE_VARIABLE} to a folder of your own.',
                stacklevel=2,
            )
        with tempfile.TemporaryDirectory(prefix='transmamba_mm_') as folder:
            path = private_folder(Path(folder), key) / build.LIBRARY
            return _open_or_build(path, compiler)
    except (build.BuildError, UnsafeFolderError, OSError) as error:
        raise LibraryError(str(error)) from error


def _open_or_build(path: Path, compiler: list[str]) -> ctypes.CDLL:
    build.sweep(path.parent)
    library = _open(path) if is_own(path) else None
    if library is None:
        build.build(path, compiler)
        library = _open(path)
    if library is None:
        raise build.BuildError(f'{path} was built but cannot be loaded')
    return library


def _cache() -> Path:
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE]).expanduser()
    base = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(base) / 'transmamba_mm'
