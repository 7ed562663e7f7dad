# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Loading checkpoints, officially released ones included, strictly.

MMEngine loads without ``strict`` and only warns of what does not fit, so
that a model may start from nothing by mistake.
"""

import logging
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Optional

from mmengine.logging import print_log
from torch import Tensor, nn

from transmamba_mm.utils.checkpoint import (
    read_checkpoint,
    strip_prefix,
    unwrap_state_dict,
)

from .official import (
    CONVERTER,
    NOTE,
    CheckpointError,
    Source,
    check_class_token,
    check_converted,
    check_layout,
    check_official,
    lookup,
)

if TYPE_CHECKING:
    from .backbones import MambaBackbone

_BACKBONE = 'backbone.'
_SHOWN = 4  # names in an error message


# ---------------------------------------------------------------- the names


def find_tensors(
    backbone: 'MambaBackbone', source: Source, ema: Optional[bool] = None
) -> 'OrderedDict[str, Tensor]':
    """Takes the state dict, the averaged one or not, from a file's content.

    Args:
        backbone (MambaBackbone): The backbone it is for.
        source (Source): Where it comes from.
        ema (bool, optional): Whether to take the averaged weights. Defaults
            to None: if there are any, and the reported accuracies of the
            family are theirs.

    Returns:
        OrderedDict[str, Tensor]: The tensors.

    Raises:
        ValueError: If there are none.
    """
    both = isinstance(lookup(source.content, 'model_ema'), Mapping)
    if ema is None:
        ema = both and backbone.OFFICIAL.averaged
    if both:
        taken, left = ('averaged', 'last') if ema else ('last', 'averaged')
        print_log(
            f'{source} holds averaged weights (model_ema) and those of the '
            f'last step (model): the {taken} ones are loaded. '
            f'{CONVERTER} takes the {left} ones with '
            f'{"--no-ema" if ema else "--ema"}',
            logger='current',
            level=logging.WARNING,
        )
    return unwrap_state_dict(source.content, source.path or 'given', ema)


def name_as_classifier(
    state_dict: Mapping[str, Tensor], renamed: Mapping[str, str]
) -> dict[str, Tensor]:
    """Names an official state dict's tensors as an mmpretrain classifier's.

    Args:
        state_dict (Mapping[str, Tensor]): The state dict.
        renamed (Mapping[str, str]): New beginnings of names by old ones;
            all other names get ``backbone.`` in front.

    Returns:
        dict[str, Tensor]: The same tensors under new names.
    """
    converted = {}
    for key, value in state_dict.items():
        for old, new in renamed.items():
            if key.startswith(old):
                converted[new + key[len(old) :]] = value
                break
        else:
            converted[f'{_BACKBONE}{key}'] = value
    return converted


def to_classifier_names(
    backbone: 'MambaBackbone',
    state_dict: 'OrderedDict[str, Tensor]',
    source: Source,
) -> 'OrderedDict[str, Tensor]':
    """Names tensors as a classifier of this backbone does.

    Args:
        backbone (MambaBackbone): The backbone they are for.
        state_dict (OrderedDict[str, Tensor]): Tensors of a classifier, of a
            backbone alone, or of an official file.
        source (Source): Where they come from.

    Returns:
        OrderedDict[str, Tensor]: The tensors under ``backbone.`` and
        ``head.``.

    Raises:
        CheckpointError: If a file belongs to another family.
    """
    if any(key.startswith('architecture.') for key in state_dict):
        raise CheckpointError(
            f'{source} is of a distillation run, with student and teacher: '
            f'take the student out with tools/export_student.py'
        )
    state_dict = drop_ema_buffers(state_dict)
    metadata = getattr(state_dict, '_metadata', None) or {}
    if any(key.startswith(_BACKBONE) for key in state_dict):
        check_converted(backbone, source)
        return state_dict
    alone = NOTE in metadata.get('', {})
    named = state_dict
    if not alone:
        try:
            named = backbone.convert_official(state_dict)
        except KeyError as error:
            raise CheckpointError(
                f'{source} is no complete checkpoint of '
                f'{type(backbone).__name__}: it lacks {error}'
            ) from error
    if not any(key.startswith(_BACKBONE) for key in named):
        named = {f'{_BACKBONE}{key}': value for key, value in named.items()}
    if not backbone.state_dict().keys() & {
        key[len(_BACKBONE) :] for key in named
    }:
        raise CheckpointError(
            f'{source} holds nothing for {type(backbone).__name__}: its '
            f'tensors are {_some(state_dict)}. If they are those of a part '
            f'of a larger model, give its backbone init_cfg=dict('
            f"type='Pretrained', checkpoint=..., prefix=...); official "
            f'checkpoints can be converted with {CONVERTER}'
        )
    if not alone:
        check_official(backbone, state_dict, source)
    named = OrderedDict(named)
    named._metadata = OrderedDict(
        (f'{_BACKBONE}{name}'.rstrip('.'), note)
        for name, note in metadata.items()
        if alone
    )
    return named


def drop_ema_buffers(
    state_dict: Mapping[str, Tensor],
) -> 'OrderedDict[str, Tensor]':
    """Drops the copies that EMA hooks of older OpenMMLab versions store.

    A buffer ``ema_a_b`` stands beside the ``a.b`` it belongs to.
    """
    copies = {f'ema_{key.replace(".", "_")}' for key in state_dict}
    kept = OrderedDict(
        (key, value) for key, value in state_dict.items() if key not in copies
    )
    kept._metadata = getattr(state_dict, '_metadata', None) or OrderedDict()
    return kept


# ----------------------------------------------------------- strict loading


def fit(
    backbone: 'MambaBackbone',
    tensors: Mapping[str, Tensor],
    metadata: Mapping,
    prefix: str = '',
) -> dict[str, Tensor]:
    """Runs the hooks that make tensors fit a backbone before a load.

    They run again when the tensors are loaded, and change nothing then.

    Args:
        backbone (MambaBackbone): The backbone.
        tensors (Mapping[str, Tensor]): What is to be loaded.
        metadata (Mapping): What torch stored with it, by name of a module.
        prefix (str): Prefix of the backbone there. Defaults to ``''``.

    Returns:
        dict[str, Tensor]: The tensors as they will be loaded.
    """
    tensors = dict(tensors)
    for name, child in backbone.named_modules():
        own = f'{prefix}{name}.' if name else prefix
        note = metadata.get(own[:-1], {})
        for hook in child._load_state_dict_pre_hooks.values():
            hook(tensors, own, note, True, [], [], [])
    return tensors


def check_match(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    source: Any,
    fresh: Iterable[str] = (),
) -> None:
    """Refuses tensors that are not exactly those of a module.

    Args:
        module (nn.Module): The module to load into.
        tensors (Mapping[str, Tensor]): The tensors.
        source (Any): Where they come from, for the message.
        fresh (Iterable[str]): Tensors that may be missing.

    Raises:
        CheckpointError: Listing what does not fit and what to check.
    """
    own = module.state_dict()
    fresh = set(fresh)
    missing = [
        key
        for key in own
        # As for MMEngine: older files do not have these counters.
        if key not in tensors
        and key not in fresh
        and not key.endswith('num_batches_tracked')
    ]
    unexpected = [key for key in tensors if key not in own]
    shapes = [
        f'{key} ({list(tensors[key].shape)}, not {list(own[key].shape)})'
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    problems = [
        f'{len(names)} {what}: {_some(names)}'
        for names, what in (
            (missing, 'missing'),
            (unexpected, 'unexpected'),
            (shapes, 'of another shape'),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f'{source} does not fit {type(module).__name__}; '
            f'{"; ".join(problems)}. Check that the preset (depth, width), '
            f'the number of classes, the patches and the image size are '
            f'those of the file. (To load a part of it, save that alone: a '
            f'plain dict of tensors need not hold all.)'
        )


def load_backbone(
    backbone: 'MambaBackbone', path: str, prefix: Optional[str] = None
) -> None:
    """Loads a file strictly into a backbone; a head in it is ignored.

    Args:
        backbone (MambaBackbone): The backbone.
        path (str): A checkpoint of a classifier or of a backbone alone, of
            this package or an official one.
        prefix (str, optional): Prefix of the backbone in the file. Defaults
            to None, which is ``'backbone.'`` if there are such tensors.

    Raises:
        CheckpointError: If the file does not fit.
    """
    source = Source(read_checkpoint(path), path)
    state_dict = find_tensors(backbone, source)
    if prefix == '' or prefix is None:
        prefix = _BACKBONE  # tensors of a backbone alone get it, too
    prefix = f'{prefix.rstrip(".")}.'
    if prefix == _BACKBONE:
        state_dict = to_classifier_names(backbone, state_dict, source)
    elif not any(key.startswith(prefix) for key in state_dict):
        raise CheckpointError(
            f"no tensor of {source} starts with '{prefix}'; its tensors "
            f'are {_some(state_dict)}'
        )
    tensors = strip_prefix(state_dict, prefix)
    metadata = tensors._metadata
    check_layout(backbone, metadata.get('', {}).get(NOTE, {}), source)
    tensors = fit(backbone, tensors, metadata)
    tensors, fresh = settle(backbone, tensors, source)
    check_match(backbone, tensors, source, fresh)
    backbone.load_state_dict(tensors, strict=False)
    print_log(
        f'loaded {len(tensors)} tensors of {source} into '
        f'{type(backbone).__name__}',
        logger='current',
    )


def filter_classifier_state(
    backbone: 'MambaBackbone', state_dict: dict, prefix: str
) -> None:
    """Makes a checkpoint fit the classifier around a backbone, in place.

    MMEngine only warns of what does not fit. So the backbone's part of an
    official file, or of a state dict that notes a layout, is checked here.
    What a user has put together, which has no note, may lack tensors, but
    none may be of another shape or name, or clearly of another model.

    Args:
        backbone (MambaBackbone): The backbone of the classifier.
        state_dict (dict): What is loaded into the classifier.
        prefix (str): Prefix of the classifier.

    Raises:
        CheckpointError: If the tensors do not fit the backbone.
    """
    own = f'{prefix}{_BACKBONE}'
    content = OrderedDict(state_dict)
    content._metadata = getattr(state_dict, '_metadata', None) or {}
    source = Source(content)
    whole = NOTE in content._metadata.get(own[:-1], {})
    if prefix == '' and not _is_of_classifier(state_dict):
        tensors = find_tensors(backbone, source)
        tensors = to_classifier_names(backbone, tensors, source)
        # The caller looks for the note of a backbone alone elsewhere.
        content._metadata = tensors._metadata
        note = content._metadata.get(_BACKBONE[:-1], {}).get(NOTE, {})
        check_layout(backbone, note, source)
        state_dict.clear()
        state_dict.update(tensors)
        whole = True
    for key in content.keys() - drop_ema_buffers(content).keys():
        state_dict.pop(key, None)
    part = {
        key[len(own) :]: state_dict.pop(key)
        for key in list(state_dict)
        if key.startswith(own)
    }
    notes = strip_prefix(content, own)._metadata
    part, fresh = settle(backbone, fit(backbone, part, notes), source)
    if not whole:
        check_class_token(backbone, part, source)
        fresh = backbone.state_dict()
    check_match(backbone, part, source, fresh)
    state_dict.update((f'{own}{key}', value) for key, value in part.items())


def _is_of_classifier(state_dict: Mapping[str, Any]) -> bool:
    """Whether tensors are named as a classifier's, or are its head's."""
    return any(key.startswith(_BACKBONE) for key in state_dict) or all(
        key.startswith(('head.', 'neck.', 'data_preprocessor.'))
        for key in state_dict
    )


def settle(
    backbone: 'MambaBackbone',
    tensors: Mapping[str, Tensor],
    source: Any,
    prefix: str = '',
) -> tuple[dict[str, Tensor], list[str]]:
    """Drops tensors that a backbone need not have, and tells so.

    Args:
        backbone (MambaBackbone): The backbone.
        tensors (Mapping[str, Tensor]): What is to be loaded.
        source (Any): Where it comes from.
        prefix (str): Prefix of the backbone there. Defaults to ``''``.

    Returns:
        tuple[dict[str, Tensor], list[str]]: The tensors left, and names of
        those that may be missing because they keep their start values.
    """
    own = {f'{prefix}{key}' for key in backbone.state_dict()}
    optional = f'{re.escape(prefix)}(?:{backbone.OPTIONAL_KEYS})'
    # Without a final norm, that of the file is not needed.
    unused = rf'{optional}|{re.escape(prefix)}{backbone.FINAL_NORM}\.'
    left = [k for k in tensors if k not in own and re.match(unused, k)]
    fresh = sorted(
        k for k in own if k not in tensors and re.match(optional, k)
    )
    for names, what in (
        (fresh, 'not in it and keep their start values'),
        (left, 'not in the model and left out'),
    ):
        if names:
            print_log(f'{source}: {_some(names)} are {what}', logger='current')
    return {k: v for k, v in tensors.items() if k not in left}, fresh


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - _SHOWN
    return ', '.join(names[:_SHOWN]) + (f' and {more} more' * (more > 0))
