# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Loading checkpoints, officially released ones included, strictly.

MMEngine loads without ``strict`` and only warns of what does not fit, so
that a model may start from nothing by mistake.
"""

import logging
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, Optional

from mmengine.logging import print_log
from torch import Tensor, nn

from .evidence import check_class_token, check_converted, check_official
from .files import (
    CONVERTER,
    CheckpointError,
    Source,
    lookup,
    read_checkpoint,
    strip_prefix,
    unwrap_state_dict,
)
from .layout import NOTE, Stored, check_layout

_BACKBONE = 'backbone.'
_SHOWN = 4  # names in an error message


# ---------------------------------------------------------------- the names


def find_tensors(
    backbone: Stored, source: Source, ema: Optional[bool] = None
) -> 'OrderedDict[str, Tensor]':
    """Takes the state dict, the averaged one or not, from a file's content.

    Args:
        backbone (Stored): The backbone it is for.
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
        ema = both and backbone.FORMAT.averaged
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


def to_classifier_names(
    backbone: Stored,
    state_dict: 'OrderedDict[str, Tensor]',
    source: Source,
) -> 'OrderedDict[str, Tensor]':
    """Names tensors as a classifier of this backbone does.

    Args:
        backbone (Stored): The backbone they are for.
        state_dict (OrderedDict[str, Tensor]): Tensors of a classifier, of a
            backbone alone, or of an official file.
        source (Source): Where they come from.

    Returns:
        OrderedDict[str, Tensor]: The tensors under ``backbone.`` and
        ``head.``.

    Raises:
        CheckpointError: If a file belongs to another family.
    """
    refuse_distillation(state_dict, source)
    state_dict = drop_ema_buffers(state_dict)
    metadata = getattr(state_dict, '_metadata', None) or {}
    if any(key.startswith(_BACKBONE) for key in state_dict):
        check_converted(backbone, source)
        official = lookup(lookup(source.content, 'meta'), 'official')
        if NOTE not in metadata.get(_BACKBONE[:-1], {}) and not official:
            part = strip_prefix(state_dict, _BACKBONE)
            check_class_token(backbone, part, source)
        return state_dict
    alone = NOTE in metadata.get('', {})
    named = state_dict
    if not alone:
        try:
            named = backbone.FORMAT.to_classifier(state_dict)
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


def refuse_distillation(state_dict: Mapping[str, Any], source: Source) -> None:
    """Raises CheckpointError for a checkpoint of a distillation run."""
    if any(key.startswith('architecture.') for key in state_dict):
        raise CheckpointError(
            f'{source} is of a distillation run, with student and teacher: '
            f'take the student out with tools/export_student.py'
        )


def refuse_foreign(
    module: nn.Module, state_dict: Mapping[str, Any], source: Source
) -> None:
    """Refuses a checkpoint that loaders which are not strict would ignore.

    Args:
        module (nn.Module): A whole model.
        state_dict (Mapping[str, Any]): What is to be loaded into it.
        source (Source): Where it is from.

    Raises:
        CheckpointError: If it is of a distillation run, or no tensor of it
            has a name of the model's.
    """
    refuse_distillation(state_dict, source)
    if state_dict and not state_dict.keys() & module.state_dict().keys():
        raise CheckpointError(
            f'{source} holds nothing for {type(module).__name__}: its '
            f'tensors are {", ".join(list(state_dict)[:4])}, ...'
        )


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
    backbone: Stored, path: str, prefix: Optional[str] = None
) -> None:
    """Loads a file strictly into a backbone; a head in it is ignored.

    Args:
        backbone (Stored): The backbone.
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
    note = metadata.get('', {}).get(NOTE, {})
    check_layout(backbone, note, source)
    tensors = backbone.fitted(tensors, note)
    tensors, fresh = settle(backbone, tensors, source)
    check_match(backbone, tensors, source, fresh)
    # What it may be mistaken for has been ruled out.
    tensors = OrderedDict(tensors)
    tensors._metadata = {'': {NOTE: backbone.layout}}
    backbone.load_state_dict(tensors, strict=False)
    print_log(
        f'loaded {len(tensors)} tensors of {source} into '
        f'{type(backbone).__name__}',
        logger='current',
    )


def read_classifier_state(
    backbone: Stored, state_dict: Mapping[str, Tensor], prefix: str = ''
) -> 'OrderedDict[str, Tensor]':
    """Makes a checkpoint fit the classifier around a backbone.

    MMEngine only warns of what does not fit. So the backbone's part of an
    official file, or of a state dict that notes a layout, is checked here.
    What a user has put together, which has no note, may lack tensors, but
    none may be of another shape or name, or clearly of another model.

    Args:
        backbone (Stored): The backbone of the classifier.
        state_dict (Mapping[str, Tensor]): What is to be loaded into the
            classifier; not changed.
        prefix (str): Prefix of the classifier. Defaults to ``''``.

    Returns:
        OrderedDict[str, Tensor]: The tensors by the classifier's names, the
        backbone's as they will be loaded.

    Raises:
        CheckpointError: If the tensors do not fit the backbone.
    """
    own = f'{prefix}{_BACKBONE}'
    content = OrderedDict(state_dict)
    content._metadata = getattr(state_dict, '_metadata', None) or {}
    source = Source(content)
    renamed = prefix == '' and not _is_of_classifier(state_dict)
    if renamed:
        named = find_tensors(backbone, source)
        named = to_classifier_names(backbone, named, source)
    else:
        named = drop_ema_buffers(content)
    part = strip_prefix(named, own)
    note = part._metadata.get('', {}).get(NOTE, {})
    check_layout(backbone, note)
    part, fresh = settle(backbone, backbone.fitted(part, note), source)
    if not renamed and not note:
        check_class_token(backbone, part, source)
        fresh = backbone.state_dict()
    check_match(backbone, part, source, fresh)
    result = OrderedDict(
        (key, value) for key, value in named.items() if not key.startswith(own)
    )
    result.update((own + key, value) for key, value in part.items())
    return result


def filter_classifier_state(
    backbone: Stored, state_dict: dict, prefix: str
) -> None:
    """Checks, renames and drops tensors in place before they are loaded.

    What keeps its name is left as it is: the backbone itself makes it fit
    when it is loaded, by the note that PyTorch hands to it, once.

    Args:
        backbone (Stored): The backbone of the classifier.
        state_dict (dict): What is loaded into the classifier.
        prefix (str): Prefix of the classifier.

    Raises:
        CheckpointError: See :func:`read_classifier_state`.
    """
    read = read_classifier_state(backbone, state_dict, prefix)
    for key in list(state_dict):
        if key not in read:
            del state_dict[key]
        elif key.startswith(f'{prefix}{_BACKBONE}'):
            read[key] = state_dict[key]
    state_dict.update(read)


def _is_of_classifier(state_dict: Mapping[str, Any]) -> bool:
    """Whether tensors are named as a classifier's, or are its head's."""
    return any(key.startswith(_BACKBONE) for key in state_dict) or all(
        key.startswith(('head.', 'neck.', 'data_preprocessor.'))
        for key in state_dict
    )


def settle(
    backbone: Stored,
    tensors: Mapping[str, Tensor],
    source: Any,
    prefix: str = '',
) -> tuple[dict[str, Tensor], list[str]]:
    """Drops tensors that a backbone need not have, and tells so.

    Args:
        backbone (Stored): The backbone.
        tensors (Mapping[str, Tensor]): What is to be loaded.
        source (Any): Where it comes from.
        prefix (str): Prefix of the backbone there. Defaults to ``''``.

    Returns:
        tuple[dict[str, Tensor], list[str]]: The tensors left, and names of
        those that may be missing because they keep their start values.
    """
    own = {f'{prefix}{key}' for key in backbone.state_dict()}
    optional = f'{re.escape(prefix)}(?:{backbone.FORMAT.optional})'
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
