# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Tensors that are computed once and kept."""

import functools
import operator
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes


@contextmanager
def lasting_tensors() -> Iterator[None]:
    """Makes tensors that may be kept, whatever is going on around.

    An enclosing inference mode would make tensors that training cannot use
    later, the fake mode of ``torch.export`` tensors without values, and a
    transform of ``torch.func`` wrappers that die with it.
    """
    with (
        torch.inference_mode(False),
        _disable_current_modes(),
        temporarily_clear_interpreter_stack(),
    ):
        yield


def cached_tensors(
    maxsize: int, depends: Callable[..., Any] = lambda *args: None
) -> Callable:
    """Decorates a function of plain values, to be called once for each.

    Args:
        maxsize: number of results to keep.
        depends: gives what else the result depends on, of the arguments.

    Returns:
        A decorator of functions that return a tuple of tensors. What they
        return is shared: nobody may modify it.
    """

    def decorate(make: Callable) -> Callable:
        @functools.lru_cache(maxsize)
        def cached(other: Any, *args: Any) -> tuple[Tensor, ...]:
            with lasting_tensors():
                tensors = make(*args)
            # As `mark_static` does, which imports the compiler: sizes of
            # constants are numbers, under `dynamic=True` as well.
            for tensor in tensors:
                tensor._dynamo_static_indices = set(range(tensor.dim()))
            return tensors

        def constant(*args: Any) -> tuple[Tensor, ...]:
            return cached(depends(*args), *args)

        # torch.compile then calls the function once, as it is, and its graph
        # refers to the result, which must not be a bare tensor.
        # `torch.compiler.assume_constant_result` sets nothing else, but
        # imports the compiler, which takes a second.
        constant._dynamo_marked_constant = True

        @functools.wraps(make)
        def get(*args: Any) -> tuple[Tensor, ...]:
            # To torch.compile, the second size that it sees is a symbol.
            return constant(
                *(
                    operator.index(value) if isinstance(value, int) else value
                    for value in args
                )
            )

        return get

    return decorate


class TensorCache:
    """Values computed from a tensor, kept while it lives and is unchanged.

    Tensors are told apart by identity, and changes in place by the version
    counter of autograd.
    """

    def __init__(self):
        self._entries = {}

    def get(self, tensor: Tensor, key: Any, make: Callable) -> Any:
        """Return ``make(tensor)``, which was computed at most once.

        Args:
            tensor: what the value depends on.
            key: what else it depends on.
            make: function of the tensor.
        """
        if tensor.is_inference():  # has no version counter
            return make(tensor)
        name, version = id(tensor), tensor._version
        entry = self._entries.get(name)
        if entry is None or entry[0]() is not tensor or entry[1] != version:
            reference = weakref.ref(tensor, lambda ref: self._drop(name, ref))
            entry = self._entries[name] = (reference, version, {})
        values = entry[2]
        if key not in values:
            with lasting_tensors():
                values[key] = make(tensor)
        return values[key]

    def _drop(self, name: int, reference) -> None:
        entry = self._entries.get(name)
        if entry is not None and entry[0] is reference:
            del self._entries[name]
