# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Backends of the selective scan, one module each.

A backend is a module with five functions; :mod:`..dispatch` names it and
says when it is chosen.

* ``probe() -> Optional[str]``: None if it can be used on this machine, else
  one sentence with the reason and what to do about it.
* ``supports(device, dtype) -> bool``: whether it serves such inputs.
* ``states_shape(p) -> tuple[int, ...]``: shape of what :func:`forward` keeps.
* ``forward(p, keep) -> (out, last_state, states)``.
* ``backward(p, states, grad_out, needs) -> list[Optional[Tensor]]``.

``p`` is a :class:`~.problem.ScanProblem`, which defines the shapes of all of
these.  Modules are imported when first asked for, and import optional
packages only inside their functions.
"""
