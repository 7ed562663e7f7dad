# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What norms and FFNs compute, whatever they are called.

Copied weights mean the same only where the function around them is the same:
RMSNorm takes LayerNorm's weights without a word, and GELU those that were
learned with QuickGELU. So each is run on numbers that tell them apart, with
weights of ones and identities.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .roles import split_role

# Eps of 1e-5 and 1e-6, or GELU and its approximation by tanh, are the same;
# GELU and QuickGELU are 2e-2 apart.
_TOLERANCE = 2e-3
# Norms of tokens; that of patches may be one of maps.
_NORMS = ('mixer_norm', 'ffn_norm', 'final_norm')
_PROBES = (-3.0, -1.0, -0.3, 0.3, 1.0, 3.0)


class Function(NamedTuple):
    """What a module computes, apart from its weights.

    Attributes:
        name (str): What to call it in messages.
        values (Tensor): Of a norm, mean and root mean square of its output
            for tokens of mean 1 and variance 1; of an FFN, the outputs of
            its activation.
    """

    name: str
    values: Tensor

    def is_like(self, other: 'Function') -> bool:
        """Whether the two agree, but for rounding and a usual eps."""
        limits = dict(rtol=0.0, atol=_TOLERANCE)
        return torch.allclose(self.values, other.values, **limits)


#: What a file tells: LayerNorms have a bias, RMSNorms have none.
LAYER_NORM = Function('LayerNorm', torch.tensor([0.0, 1.0]).double())
RMS_NORM = Function(
    'RMSNorm (its norms have no bias)', torch.tensor([0.5**0.5, 1.0]).double()
)


def functions_of(
    names: Mapping[str, str],
    modules: Optional[Mapping[str, nn.Module]] = None,
) -> dict[str, Function]:
    """What the norms and FFNs of a teacher or student compute.

    Args:
        names (Mapping[str, str]): Role to name of the parameter.
        modules (Mapping[str, nn.Module], optional): All modules by name.
            Defaults to None, a file: it tells kinds of norms alone.

    Returns:
        dict[str, Function]: By role without its leaf, ``layers.0.ffn_norm``;
        that of an FFN under ``ffn_in``.
    """
    found = {}
    for role in names:
        stem, _, leaf = role.rpartition('.')
        if leaf != 'weight':
            continue
        if stem.endswith(_NORMS):
            if modules is None:
                has_bias = f'{stem}.bias' in names
                found[stem] = LAYER_NORM if has_bias else RMS_NORM
            else:
                found[stem] = _norm(modules[_module(names[role])])
        elif split_role(stem)[1] == 'ffn_in' and modules is not None:
            layer = stem.removesuffix('in')
            maps = [
                _module(names[f'{layer}{part}.weight'])
                for part in ('in', 'gate', 'out')
                if f'{layer}{part}.weight' in names
            ]
            around = _around(maps)
            inside = modules[around].named_parameters(around)
            # It may be a whole layer, of which this is but a part.
            if {_module(name) for name, _ in inside} == set(maps):
                found[stem] = _ffn(modules[around])
    return found


def _around(names: Sequence[str]) -> str:
    """The innermost module that holds all these."""
    parts = zip(*(name.split('.') for name in names))
    shared = takewhile(lambda same: len(set(same)) == 1, parts)
    return '.'.join(same[0] for same in shared)


def _module(parameter: str) -> str:
    return parameter.rpartition('.')[0]


def _norm(norm: nn.Module) -> Function:
    (width,) = norm.weight.shape
    x = torch.arange(width).double()
    x = (x - x.mean()) / x.std(correction=0) + 1
    y = _run(norm, x.view(1, 1, -1))
    values = torch.stack([y.mean(), y.square().mean().sqrt()])
    eps = f', eps {norm.eps:g}' if isinstance(norm, nn.LayerNorm) else ''
    return Function(type(norm).__name__ + eps, values)


def _ffn(ffn: nn.Module) -> Function:
    width = next(x for x in ffn.parameters() if x.dim() == 2).shape[1]
    x = torch.tensor(_PROBES).double().view(1, -1, 1).expand(-1, -1, width)
    values = _run(ffn, x)[0, :, 0]
    shown = dict(zip(_PROBES, values.tolist()))
    name = f'f(-1) = {shown[-1.0]:.3f}, f(1) = {shown[1.0]:.3f}'
    return Function(name, values)


@torch.no_grad()
def _run(module: nn.Module, x: Tensor) -> Tensor:
    """Its output with matrices of identity, weights of one, no biases.

    Its own weights are not touched: they may be on any device, or on none.
    In float64, for which no kernel need be compiled.
    """
    weights = {}
    for name, value in module.named_parameters():
        if value.dim() == 2:
            weights[name] = torch.eye(*value.shape, dtype=x.dtype)
        else:
            fill = 0.0 if name.endswith('bias') else 1.0
            weights[name] = x.new_full(value.shape, fill)
    training = [each for each in module.modules() if each.training]
    module.eval()
    try:
        return functional_call(module, weights, (x,))
    finally:
        for each in training:
            each.training = True


def difference(
    role: str,
    theirs: Mapping[str, Function],
    their_role: str,
    ours: Mapping[str, Function],
) -> str:
    """What a copied parameter's module computes in another way.

    Args:
        role (str): The student's role, with its leaf.
        theirs (Mapping[str, Function]): The teacher's functions.
        their_role (str): The teacher's role, with its leaf.
        ours (Mapping[str, Function]): The student's functions.

    Returns:
        str: A sentence; ``''`` if nothing, or where one is not known.
    """
    a, b = theirs.get(_module(their_role)), ours.get(_module(role))
    if a is None or b is None or a.is_like(b):
        return ''
    what = 'its activation' if 'ffn_in' in role else 'the norm'
    return f'{what} is {a.name} in the teacher, {b.name} in the student'
