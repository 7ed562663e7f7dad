# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Choice of the engine which computes the selective scan.

To add one, write a module in :mod:`.backends`, whose documentation lists the
functions, and name it in ``_MODULES``.
"""

import contextlib
import contextvars
import functools
import importlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple, Optional

import torch

from . import triton_launch
from .backends.problem import ScanProblem
from .native import library

ENVIRONMENT_VARIABLE = 'TRANSMAMBA_SCAN_BACKEND'

# Fastest first: 'auto' takes the first that is available and serves the
# inputs.
_MODULES = {
    'cpu': 'cpu',
    'mamba_ssm': 'mamba_ssm_cuda',
    'triton': 'triton_scan',
    'torch': 'torch_chunked',
    'reference': 'reference',
}
# Which of these is faster depends on the shape: they are timed.
_RIVALS = ('mamba_ssm', 'triton')

# What :func:`requested` makes of 'auto': the first backend that serves the
# problem, or the winner of a race where there are rivals.  A compiled graph
# takes the first: its forward and backward pass, fake or real, must come to
# the same choice, and what is fake cannot be timed.
FIRST, FASTEST = '<first>', '<fastest>'

_forced: contextvars.ContextVar[Optional[str]] = contextvars.ContextVar(
    'transmamba_scan_backend', default=None
)


class BackendStatus(NamedTuple):
    """Whether a backend can be used on this machine.

    Attributes:
        available: True if it can.
        reason: if not, why, and what to do about it; else empty.
    """

    available: bool
    reason: str


def scan_backends() -> dict[str, BackendStatus]:
    """List the backends, in the order in which 'auto' considers them.

    Looks at the machine again; scans remember what it was like before.

    Returns:
        dict[str, BackendStatus]: name -> (available, reason).
    """
    forget_probes()
    reasons = {name: _probe(name) for name in _MODULES}
    return {
        name: BackendStatus(reason is None, reason or '')
        for name, reason in reasons.items()
    }


@contextlib.contextmanager
def use_scan_backend(name: str) -> Iterator[None]:
    """Force a backend for the calls inside the ``with`` block.

    An explicit ``backend=`` argument still wins; the environment variable
    does not.  ``'auto'`` restores the automatic choice.  The backward pass
    uses the backend of its forward pass.

    Args:
        name: a name listed by :func:`scan_backends`, or ``'auto'``.

    Raises:
        ValueError: if there is no such backend.
        RuntimeError: if it cannot be used on this machine.
    """
    if name != 'auto':
        _require(name)
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def selected_backend(
    device='cpu', dtype: torch.dtype = torch.float32, backend: str = 'auto'
) -> str:
    """Name the backend which would serve inputs of this device and dtype.

    The first of these that is not ``'auto'`` decides: the argument
    ``backend``, :func:`use_scan_backend`, the environment variable
    ``TRANSMAMBA_SCAN_BACKEND``.  Otherwise it is the fastest one that is
    available and supports the inputs.  A scan that this one does not do (as
    the others, it may for instance refuse ``B`` and ``C`` that are constant
    in time) goes to the next.

    Args:
        device: device of the inputs.  Default 'cpu'.
        dtype: dtype of ``u``.  Default ``torch.float32``.
        backend: as for :func:`selective_scan`.  Default 'auto'.

    Returns:
        str: the backend's name.

    Raises:
        ValueError: if there is no such backend, or it does not support these
            inputs.
        RuntimeError: if it cannot be used on this machine.
    """
    device = torch.device(device)
    name = requested(backend)
    if name in (FIRST, FASTEST):
        return _candidates(device, dtype)[0]
    _require_support(name, device, dtype)
    return name


def requested(backend: str, automatic: str = FIRST) -> str:
    """Return the name that the argument or the surroundings ask for.

    Args:
        backend: 'auto', or a name.
        automatic: what to return where nothing is asked for.
    """
    name = backend
    if name == 'auto':
        name = _forced.get() or os.environ.get(ENVIRONMENT_VARIABLE) or 'auto'
    return automatic if name == 'auto' else name


def is_differentiable(name: str) -> bool:
    """Whether a backend of this name is plain autograd, double as well."""
    if name in (FIRST, FASTEST):
        return False
    if name not in _MODULES:
        _require(name)
    return getattr(_module(name), 'DIFFERENTIABLE', False)


def choose(name: str, p: ScanProblem, keep: bool) -> ModuleType:
    """Return the backend which computes a problem.

    Args:
        name: of :func:`requested`.
        p: the problem.
        keep: whether there will be a backward pass.

    Raises:
        ValueError: if there is no such backend, or it does not do this.
        RuntimeError: if it cannot be used on this machine.
    """
    device, dtype = p.u.device, p.u.dtype
    if name not in (FIRST, FASTEST):
        _require_support(name, device, dtype)
        module = _module(name)
        reason = _refusal(module, p)
        if reason is not None:
            raise ValueError(
                f'scan backend {name!r} does not do this: {reason}; use '
                f'backend="auto"'
            )
        return module
    names = _candidates(device, dtype)
    if name == FASTEST and device.type == 'cuda':
        rivals = [x for x in names if x in _RIVALS and _serves(x, p)]
        if len(rivals) > 1:
            from .backends.race import winner

            return winner([_module(x) for x in rivals], p, keep)
    return _module(next(x for x in names if _serves(x, p)))


def forget_probes() -> None:
    """Look at the machine again when a backend is next asked for."""
    _module.cache_clear()
    _probe.cache_clear()
    _candidates.cache_clear()
    library.forget()
    triton_launch.forget()


@functools.cache
def _probe(name: str) -> Optional[str]:
    return _module(name).probe()


@functools.cache
def _candidates(device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """Backends that are available and support such inputs."""
    return tuple(
        name
        for name in _MODULES
        if _probe(name) is None
        and _module(name).supports(device, dtype)
        # On CPU it is Triton's interpreter, which is for tests.
        and not (name == 'triton' and device.type == 'cpu')
    )


@functools.cache
def _module(name: str) -> ModuleType:
    package = __name__.rpartition('.')[0]
    return importlib.import_module(f'{package}.backends.{_MODULES[name]}')


def _refusal(module: ModuleType, p: ScanProblem) -> Optional[str]:
    refuses = getattr(module, 'refuses', None)
    return None if refuses is None else refuses(p)


def _serves(name: str, p: ScanProblem) -> bool:
    return _refusal(_module(name), p) is None


def _require(name: str) -> None:
    """Raise unless the backend exists and can be used."""
    if name not in _MODULES:
        known = ', '.join(repr(x) for x in ('auto', *_MODULES))
        raise ValueError(
            f'unknown scan backend {name!r}; expected one of {known}'
        )
    reason = _probe(name)
    if reason is not None:
        raise RuntimeError(f'scan backend {name!r} is unavailable: {reason}')


def _require_support(name, device, dtype) -> None:
    _require(name)
    if not _module(name).supports(device, dtype):
        raise ValueError(
            f'scan backend {name!r} does not support {dtype} on '
            f'{device.type!r}; use backend="auto"'
        )
