# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Which Transformer a model or state dict holds, and whether a row fits it.

Names alone say little: Swin's first stage, a ViT with gated FFNs and one that
normalises after attention share them with a plain ViT. So what a layer
computes must be known: of a live model by its class. To copy weights, a row
must account for every tensor as well, and shapes must agree.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Optional

from torch import Tensor, nn

from ..roles import AXES, HIDDEN, INNER, RESIDUAL, split_role
from .base import FAMILIES, Found, TeacherError

_SCALES = ('mixer_scale', 'ffn_scale')


def find_transformer(
    tensors: Mapping[str, Tensor],
    backbone: Optional[str],
    where: str,
    modules: Optional[Mapping[str, nn.Module]] = None,
    to_copy: bool = True,
) -> Found:
    """Finds the one known Transformer that is meant.

    Args:
        tensors (Mapping[str, Tensor]): Parameters, and buffers, by name.
        backbone (str, optional): Name of its module, or of one around it,
            where there are several. Without it a language model comes before
            the towers that it reads.
        where (str): What the names belong to, for messages.
        modules (Mapping[str, nn.Module], optional): The modules of a live
            model by name.
        to_copy (bool): Whether its weights will be copied; else it is only
            watched. Defaults to True.

    Returns:
        Found: The Transformer.

    Raises:
        TeacherError: If there is none, or more than one.
    """
    found = [x for family in FAMILIES.values() for x in family.find(tensors)]
    if backbone is not None:
        inside = [x for x in found if x.prefix.startswith(f'{backbone}.')]
        named = [x for x in inside if x.prefix == f'{backbone}.']
        found = named or inside
    if modules is not None:
        found = [x for x in found if not _other_class(x, modules)] or found
    else:
        found = [x for x in found if not x.family.not_copied]
    flaws = [next(_flaws(x, tensors, modules, to_copy), None) for x in found]
    fitting = [x for x, flaw in zip(found, flaws) if flaw is None]
    if len(fitting) > 1:
        fitting = [x for x in fitting if x.is_language_model] or fitting
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise TeacherError(
            f'{where} holds several Transformers, '
            f'{[x.prefix.rstrip(".") for x in fitting]}: say by name which is '
            f'the teacher (teacher or teacher_backbone of a method, backbone '
            f'of a recorder)'
        )
    called = '' if backbone is None else f' called {backbone!r}'
    row = (
        'describe it by a row of its own: copy a file of '
        'transmamba_mm/contract/families and register it, see '
        'docs/guides/extending.md'
    )
    if flaws:
        reasons = '; '.join(
            f'it is no {x.family.name}, as {flaw}'
            for x, flaw in list(zip(found, flaws))[:3]
        )
        raise TeacherError(
            f'no known Transformer{called} in {where}: {reasons}. Nothing is '
            f'copied from, or recorded in, what is not fully known. Choose '
            f'another teacher, or {row}'
        )
    raise TeacherError(
        f'no known Transformer{called} in {where} (looked for '
        f'{" or ".join(family.example for family in FAMILIES.values())}; it '
        f'starts with {", ".join(list(tensors)[:3])}). Known are '
        f'{", ".join(FAMILIES)}. Check the checkpoint, or {row}'
    )


def _flaws(
    found: Found,
    tensors: Mapping[str, Tensor],
    modules: Optional[Mapping[str, nn.Module]],
    to_copy: bool,
) -> Iterator[str]:
    """What speaks against a candidate, the plainest first."""
    yield from _missing(found, tensors, modules is None, to_copy)
    if to_copy:
        if found.family.not_copied:
            yield found.family.not_copied
        yield from _unknown(found, tensors)
        yield from _misshapen(found, tensors)
    if modules is not None and (name := _other_class(found, modules)):
        yield f'{found.layers[0]} computes what {name} does'


def _other_class(found: Found, modules: Mapping[str, nn.Module]) -> str:
    """Class that a layer has its ``forward`` of, if it is not known."""
    classes = found.family.layer_classes
    for layer in found.layers if classes else ():
        kinds = type(modules[layer]).__mro__
        owner = next(kind for kind in kinds if 'forward' in vars(kind))
        name = f'{owner.__module__}.{owner.__qualname__}'
        if name not in classes:
            return name
    return ''


def _missing(
    found: Found, tensors: Mapping[str, Tensor], by_file: bool, to_copy: bool
) -> Iterator[str]:
    family, prefix = found.family, found.prefix
    # Numbers of stages, and of blocks in each, must start at 0.
    blocks = Counter(place[:-1] for place in found.places)
    stages = sorted(blocks)
    counted = [(*stage, i) for stage in stages for i in range(blocks[stage])]
    numbered = [(), *((i,) for i in range(len(stages)))]
    if list(found.places) != counted or not set(stages) <= set(numbered):
        yield f'its layers are not numbered through: {found.layers[:4]}'
    needed = [
        prefix + name
        for name, role in family.outer.items()
        if role in ('patch_embed', 'embed')
    ]
    for name, role in family.inner.items():
        optional = role in _SCALES or role.endswith('bias')
        if to_copy:
            wanted = not optional or (by_file and name in family.requires)
        else:
            wanted = role == 'mixer_norm'
        needed += [f'{layer}.{name}' for layer in found.layers if wanted]
    for name in needed:
        if name not in tensors and f'{name}.weight' not in tensors:
            yield f'there is no {name}'


def _unknown(found: Found, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    family = found.family
    known = {'', '.weight', '.bias'}
    outer = {x + leaf for x in family.outer for leaf in known}
    outer.update(family.extra_tokens)
    inner = {x + leaf for x in family.inner for leaf in known}
    inner.add(family.signature)
    start = re.compile(
        re.escape(f'{found.prefix}{family.layers}.').replace(r'\{\}', r'\d+')
    )
    heads = [
        *family.places(family.head, found.prefix),
        *family.places(family.before_head, found.prefix),
    ]
    for name, tensor in tensors.items():
        if not name.startswith(found.prefix) or not (
            tensor.is_floating_point()
        ):
            continue
        match = start.match(name)
        rest = name[match.end() :] if match else name[len(found.prefix) :]
        ignored = any(re.fullmatch(x, rest) for x in family.ignores)
        in_head = any(f'{name}.'.startswith(f'{head}.') for head in heads)
        if rest in (inner if match else outer) or ignored or in_head:
            continue
        yield f'it has {name} ({_shape(tensor)})'


def _misshapen(found: Found, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Channels of an axis that do not agree among its tensors."""
    roles = found.roles(tensors)
    last = len(found.places) - 1
    sizes: dict[tuple, tuple[int, str]] = {}
    for role, name in roles.items():
        layer, kind = split_role(role)
        tensor, axes = tensors[name], AXES.get(kind, ())
        if kind in _SCALES:
            axes = (RESIDUAL,)
        elif kind == 'qkv.weight':
            axes = (INNER, RESIDUAL)
        elif kind.startswith('head.'):
            continue  # it may read something else, see Found.head
        if kind == 'pos_embed' and tensor.dim() == 2:
            axes = axes[1:]
        elif kind == 'cls_token':
            axes = (RESIDUAL,) if tensor.dim() == 1 else axes
        if axes and tensor.dim() != len(axes):
            yield f'{name} is of shape {_shape(tensor)}'
            continue
        for axis, size in zip(axes, tensor.shape):
            if axis not in (RESIDUAL, HIDDEN, INNER):
                continue
            if kind == 'qkv.weight' and axis == INNER:
                size = size / 3
            if axis == RESIDUAL:
                ends = last if kind.startswith('final_norm') else 0
                place = found.places[ends if layer is None else layer]
                key = (axis, *place[:-1])  # one width in a stage
            else:
                key = (axis, layer)
            size, other = sizes.setdefault(key, (size, name)), size
            if size[0] != other:
                yield (
                    f'{size[1]} is made for {size[0]:g} {axis} channels, '
                    f'{name} for {other:g}'
                )


def _shape(tensor: Tensor) -> str:
    return 'x'.join(map(str, tensor.shape)) or 'scalar'
