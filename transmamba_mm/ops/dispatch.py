# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Choice of the engine which computes the selective scan.

A backend is one module of this package with three functions:

* ``probe() -> Optional[str]``: None if it can be used on this machine, else
  one sentence with the reason and what to do about it.
* ``supports(device, dtype) -> bool``: whether it serves such inputs.
* ``selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus) ->
  (out, last_state)``: the operator on inputs which were already checked.
  ``B`` and ``C``, if both have groups, have equally many.  ``last_state``
  has no gradient.

To add one, write the module and name it in ``_MODULES``.  A module is
imported when it is first asked for, so it may import optional packages in
``probe``.
"""

import contextlib
import contextvars
import importlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple, Optional

import torch

ENVIRONMENT_VARIABLE = 'TRANSMAMBA_SCAN_BACKEND'

# Fastest first: 'auto' takes the first that is available and supports the
# inputs.
_MODULES = {
    'torch': 'torch_chunked',
    'reference': 'reference',
}

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

    Returns:
        dict[str, BackendStatus]: name -> (available, reason).
    """
    reasons = {name: _module(name).probe() for name in _MODULES}
    return {
        name: BackendStatus(reason is None, reason or '')
        for name, reason in reasons.items()
    }


@contextlib.contextmanager
def use_scan_backend(name: str) -> Iterator[None]:
    """Force a backend for the calls inside the ``with`` block.

    An explicit ``backend=`` argument still wins; the environment variable
    does not.  ``'auto'`` restores the automatic choice.

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
    available and supports the inputs.

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
    name = backend
    if name == 'auto':
        name = _forced.get() or os.environ.get(ENVIRONMENT_VARIABLE) or 'auto'
    if name == 'auto':
        for name in _MODULES:
            module = _module(name)
            if module.probe() is None and module.supports(device, dtype):
                return name
    _require(name)
    if not _module(name).supports(device, dtype):
        raise ValueError(
            f'scan backend {name!r} does not support {dtype} on '
            f'{device.type!r}; use backend="auto"'
        )
    return name


def backend_module(device: torch.device, dtype: torch.dtype, backend: str):
    """Return the module of :func:`selected_backend`."""
    return _module(selected_backend(device, dtype, backend))


def _module(name: str) -> ModuleType:
    package = __name__.rpartition('.')[0]
    return importlib.import_module(f'{package}.{_MODULES[name]}')


def _require(name: str) -> None:
    """Raise unless the backend exists and can be used."""
    if name not in _MODULES:
        known = ', '.join(repr(x) for x in ('auto', *_MODULES))
        raise ValueError(
            f'unknown scan backend {name!r}; expected one of {known}'
        )
    reason = _module(name).probe()
    if reason is not None:
        raise RuntimeError(f'scan backend {name!r} is unavailable: {reason}')
