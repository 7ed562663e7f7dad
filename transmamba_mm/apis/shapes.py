# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Running models whose tensors have shapes and no values.

What follows from the values of integers, the places of answers in a batch of
sequences for one, is followed: integers have values here.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_ATEN = torch.ops.aten
#: Made of values that the caller has: settings, not weights.
_OF_VALUES = (torch.tensor, torch.as_tensor, torch.linspace)
_INDEXED = (
    _ATEN.index.Tensor,
    _ATEN.index_put.default,
    _ATEN.index_put_.default,
    _ATEN._index_put_impl_.default,
)


class _SettingsStay(TorchFunctionMode):
    """Tensors of given values are on the CPU, whatever the default device."""

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _OF_VALUES:
            kwargs.setdefault('device', 'cpu')
        return func(*args, **kwargs)


@contextmanager
def on_meta() -> Iterator[None]:
    """Models built here have weights without values.

    Settings such as the mean of a data preprocessor keep theirs, unlike with
    ``torch.device('meta')`` alone.
    """
    with torch.device('meta'), _SettingsStay():
        yield


def _real(x: Any) -> bool:
    return isinstance(x, Tensor) and not isinstance(x, FakeTensor)


class ShapesAlone(FakeTensorMode):
    """Tensors of floating point have no values; integers do.

    It knows how many bytes the tensors made in it hold at a time. As on real
    devices, views and what is freed count nothing.

    Attributes:
        live (int): Bytes held now.
        peak (int): The most that were held since :meth:`forget_peak`.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.live = self.peak = 0
        self._known = weakref.WeakSet()
        self._inside = False

    def forget_peak(self) -> None:
        """Begins anew from what is held now."""
        self.peak = self.live

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [
            x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)
        ]
        if func in _INDEXED and not _real(args[0]):
            args = (args[0], _places(args[1]), *args[2:])
        # What an operator is composed of here, a kernel does at once.
        outer, self._inside = not self._inside, True
        try:
            if self._has_values(func, given, kwargs):
                found = func(*args, **kwargs)
            else:
                found = super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self._inside = not outer
        if outer:
            for x in tree_leaves(found):
                if isinstance(x, Tensor):
                    self._count(x.untyped_storage())
        return found

    @staticmethod
    def _has_values(func: Any, given: list[Tensor], kwargs: dict) -> bool:
        if given:
            return all(map(_real, given))
        dtype = kwargs.get('dtype')
        return dtype is not None and not dtype.is_floating_point

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size


def _places(indices: list) -> list:
    """Indices of places for masks, whose values say how many there are."""
    found: list = []
    for index in indices:
        if _real(index) and index.dtype == torch.bool:
            found += index.nonzero(as_tuple=True)
        else:
            found.append(index)
    return found


def without_values(
    model: nn.Module, mode: ShapesAlone, dtype: Optional[torch.dtype] = None
) -> None:
    """Gives a model of :func:`on_meta` a place on the CPU, without values.

    Integers are 0, which is a valid index.

    Args:
        model (nn.Module): The model, changed in place. What parts of it
            share, they still do.
        mode (ShapesAlone): Where it shall run.
        dtype (torch.dtype, optional): Of its weights. Defaults to None,
            their own.
    """
    made: dict[int, Tensor] = {}

    def moved(x: Tensor) -> Tensor:
        kind = x.dtype
        if x.is_floating_point():
            kind = dtype or kind
        elif not x.is_meta:
            return x
        with mode:
            y = torch.zeros(x.shape, dtype=kind, device='cpu')
        if isinstance(x, nn.Parameter):
            y = nn.Parameter(y, x.requires_grad)
        return y

    for module in model.modules():
        for kind in (module._parameters, module._buffers):
            for name, x in kind.items():
                if x is not None:
                    if id(x) not in made:
                        made[id(x)] = moved(x)
                    kind[name] = made[id(x)]
