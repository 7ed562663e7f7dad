# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Backends of the selective scan, one module each.

A backend is a module with these functions; :mod:`..dispatch` names it and
says when it is chosen.

* ``probe() -> Optional[str]``: None if it can be used on this machine, else
  one sentence with the reason and what to do about it.
* ``supports(device, dtype) -> bool``: whether it serves such inputs.
* ``refuses(p) -> Optional[str]``: if there is such a function, the reason
  why it does not do this problem, or None.
* ``states_shape(p) -> tuple[int, ...]``: shape of what :func:`forward` keeps.
  Sizes may be symbolic.
* ``forward(p, keep) -> (out, last_state, states)``.
* ``backward(p, states, grad_out, needs) -> list[Optional[Tensor]]``.

``p`` is a :class:`~.problem.ScanProblem`, which defines the shapes of all of
these.  It has at least one token; autocast is off.  A module with
``DIFFERENTIABLE = True`` is plain autograd instead: its ``forward`` is called
directly and not in the operator, and it needs no ``states_shape`` and no
``backward``.

Modules are imported when first asked for, and import optional packages only
inside their functions.
"""
