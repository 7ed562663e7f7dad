# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What the backbones are compared with: DeiT, and themselves on plain loops.

``timm`` is used if it can be imported; it is not needed otherwise.
"""

import contextlib
import copy
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any, Callable, Optional

import peers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transmamba_mm import ops
from transmamba_mm.models.backbones import MambaBackbone

try:
    import timm
except ImportError:
    timm = None

NO_TIMM = (
    'timm is missing: nothing is compared with DeiT. To have that, '
    '`pip install --no-deps --target /tmp/peers timm` and run with '
    'PYTHONPATH=/tmp/peers'
)
# Parameters without the classifier.
DEITS = {
    'deit_tiny_patch16_224': 5_524_416,
    'deit_small_patch16_224': 21_665_664,
    'deit_base_patch16_224': 85_798_656,
}


def nearest_deit(parameters: int) -> str:
    """Name timm's DeiT whose number of parameters is nearest."""
    return min(DEITS, key=lambda name: abs(DEITS[name] - parameters))


def deit(name: str, side: int, our_linear: bool) -> Optional[nn.Module]:
    """Build a DeiT without its classifier; None if timm is missing.

    Args:
        name: timm's.
        side: height and width of the images.
        our_linear: whether it uses our linear map instead of PyTorch's.
    """
    if timm is None:
        return None
    model = timm.create_model(name, img_size=side, num_classes=0)
    if our_linear:
        model.forward = partial(ops.with_fast_linears, model.forward)
    return model


def conv1d_silu(x, weight, bias=None, reverse=False) -> Tensor:
    """``causal_conv1d_silu`` by flipped copies and PyTorch's functions."""
    x = x.flip(1).mT if reverse else x.mT
    channels, width = weight.shape
    padding = width - 1
    out = F.conv1d(x, weight[:, None], bias, padding=padding, groups=channels)
    out = F.silu(out[..., :-padding]).mT
    return out.flip(1) if reverse else out


def loop_scan(
    u,
    delta,
    A,
    B,
    C,
    D=None,
    z=None,
    delta_bias=None,
    delta_softplus=False,
    *,
    orders=None,
    reverse=(False,),
    by_step=False,
    merge='sum',
) -> Tensor:
    """``multi_scan`` by copies in each order and a loop over the tokens.

    It serves what the backbones ask for: one group, softplus, ``D``.
    """
    assert delta_softplus, 'the loop always applies softplus'
    reverse = [reverse] if isinstance(reverse, bool) else list(reverse)
    if orders is not None and len(reverse) == 1:
        reverse = reverse * len(orders)
    outs = []
    for k, backwards in enumerate(reverse):

        def own(x, shared_dims, k=k):
            return x if x.dim() == shared_dims else x.select(x.dim() - 3, k)

        def rate(x, shared_dims, k=k):
            return x if x.dim() == shared_dims else x[k]

        def visit(x, k=k, backwards=backwards):
            x = x if orders is None else x[..., orders[k].long()]
            return x.flip(-1) if backwards else x

        def put_back(y, k=k, backwards=backwards):
            y = y.flip(-1) if backwards else y
            return y if orders is None else y[..., orders[k].argsort()]

        steps = [own(x, 3) for x in (delta, B, C)]
        if not by_step:
            steps = [visit(x) for x in steps]
        delta_k, B_k, C_k = steps
        y = peers.ref(
            *(visit(own(u, 3)), delta_k, rate(A, 2), B_k, C_k),
            *(rate(D, 1), rate(delta_bias, 1)),
        )
        y = put_back(y)
        outs.append(y if z is None else y * F.silu(own(z, 3)))
    return sum(outs) if merge == 'sum' else torch.stack(outs, 1)


def _one_scan(*args, order=None, **kwargs) -> Tensor:
    orders = None if order is None else order[None]
    return loop_scan(*args, orders=orders, **kwargs)


def _rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


# By identity, as not everything a module holds can be hashed.
_PLAIN: dict[int, Callable] = {
    id(ops.causal_conv1d_silu): conv1d_silu,
    id(ops.linear): F.linear,
    id(ops.multi_scan): loop_scan,
    id(ops.rms_norm): _rms_norm,
    id(ops.selective_scan): _one_scan,
}


@contextlib.contextmanager
def plain_operators() -> Iterator[None]:
    """Let the models run in PyTorch's operations and a loop over tokens.

    That is what official code does on a CPU, where its kernels do not exist:
    ``selective_scan_ref``, ``conv1d``, ``silu``, ``linear`` and flipped or
    permuted copies.  Every module of the package that has imported one of
    our operators gets the plain one instead.
    """
    found = [
        (module, name, value)
        for key, module in list(sys.modules.items())
        if key.split('.')[0] == 'transmamba_mm'
        for name, value in list(vars(module).items())
        if id(value) in _PLAIN
    ]
    for module, name, value in found:
        setattr(module, name, _PLAIN[id(value)])
    try:
        yield
    finally:
        for module, name, value in found:
            setattr(module, name, value)


def shallow_archs(
    family: type[MambaBackbone], preset: str
) -> Optional[list[tuple[dict[str, Any], int]]]:
    """Presets of one block per stage, and with one block more in each.

    Args:
        family: class of the backbone.
        preset: one of its ``ARCHS``.

    Returns:
        list: pairs of an ``arch`` and a weight; the sum of weighted times is
        an estimate of the full model's time.  None if the preset states its
        depth in no known way.
    """
    arch = dict(copy.deepcopy(family.ARCHS[preset]))
    key = next((k for k in ('num_layers', 'depths') if k in arch), None)
    if key is None:
        return None
    depths = arch[key]
    flat = isinstance(depths, int)
    depths = [depths] if flat else list(depths)

    def with_depths(counts):
        return {**arch, key: counts[0] if flat else type(arch[key])(counts)}

    ones = [1] * len(depths)
    more = [
        ([1 + (i == j) for j in range(len(depths))], depth - 1)
        for i, depth in enumerate(depths)
        if depth > 1
    ]
    pairs = [(ones, 1 - sum(weight for _, weight in more)), *more]
    return [(with_depths(counts), weight) for counts, weight in pairs]
