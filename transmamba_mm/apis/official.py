# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""From an officially released checkpoint to one of a classifier here."""

import logging
import os
import os.path as osp
from typing import Optional

from mmengine.logging import print_log
from mmpretrain import get_model

from transmamba_mm.checkpoints import (
    NOTE,
    CheckpointError,
    Source,
    read_checkpoint,
    strip_prefix,
    write_weights,
)
from transmamba_mm.checkpoints.load import (
    check_match,
    find_tensors,
    settle,
    to_classifier_names,
)
from transmamba_mm.models import MambaBackbone
from transmamba_mm.version import __version__

_BACKBONE = 'backbone.'


def convert_official(
    checkpoint: str,
    config: str,
    out: Optional[str] = None,
    family: Optional[str] = None,
    ema: Optional[bool] = None,
    drop_head: bool = False,
) -> str:
    """Converts an official checkpoint to one of this package's models.

    The tensors are renamed, loaded strictly into the model of the config,
    and written as mmpretrain writes a checkpoint. Position embeddings of
    another image size are resized.

    Args:
        checkpoint (str): Path or URL of a checkpoint that the authors of a
            backbone released.
        config (str): Config file, or name in mmpretrain's model hub, of the
            classifier it is for.
        out (str, optional): The file to write, ``.pth`` or
            ``.safetensors``. Defaults to None, the
            checkpoint's path without ``.pth``, with ``_transmamba.pth``
            appended.
        family (str, optional): Family of the checkpoint, e.g. ``'vim'`` or
            ``'videomamba'``, if nothing in the file says so. Defaults to
            None.
        ema (bool, optional): Whether to take the averaged weights. Defaults
            to None: where the authors report the accuracy of theirs, which
            is VMamba, and the file has them.
        drop_head (bool): Keep the backbone alone, e.g. to fine-tune for
            other classes. Defaults to False.

    Returns:
        str: The file written.

    Raises:
        FileNotFoundError: If the checkpoint or the config does not exist.
        ValueError: If the file cannot be read or holds more than data, the
            config has no such backbone, or the checkpoint does not fit it or
            belongs to another family.
    """
    source = Source(
        read_checkpoint(checkpoint),
        checkpoint,
        family,
        "pass family='NAME' (--family NAME)",
    )
    model = _build(config)
    backbone = model.backbone
    families = backbone.families()
    if family is not None and family not in families:
        raise ValueError(
            f'unknown family {family!r}; choose from {", ".join(families)}'
        )
    if family is not None and family != backbone.FORMAT.family:
        raise CheckpointError(
            f"'{config}' is a model of the family {backbone.FORMAT.family}, "
            f'not {family}: use a config of {families[family].__name__}'
        )
    tensors = find_tensors(backbone, source, ema)
    tensors = to_classifier_names(backbone, tensors, source)
    part = strip_prefix(tensors, _BACKBONE)
    note = part._metadata.get('', {}).get(NOTE, {})
    part = backbone.fitted(part, note)
    tensors = dict(tensors)
    tensors.update((_BACKBONE + key, value) for key, value in part.items())
    tensors, fresh = settle(backbone, tensors, source, _BACKBONE)
    result = model.state_dict()
    if drop_head:
        fresh += _drop_head(tensors, 'of the file')
        fresh += _drop_head(result, 'of the model')
    try:
        check_match(model, tensors, source, fresh)
    except CheckpointError as error:
        raise CheckpointError(
            f'{error}. For other classes drop the head: drop_head=True '
            f'(--drop-head)'
            if not drop_head
            else str(error)
        ) from None
    # The state dict shares the memory of the model.
    model.load_state_dict(tensors, strict=False)
    if out is None:
        out = f'{osp.splitext(osp.basename(checkpoint))[0]}_transmamba.pth'
        if '://' not in checkpoint:
            out = osp.join(osp.dirname(checkpoint), out)
    os.makedirs(osp.dirname(osp.abspath(out)), exist_ok=True)
    meta = dict(
        official=dict(file=osp.basename(checkpoint), layout=backbone.layout),
        transmamba_mm_version=__version__,
    )
    write_weights(out, result, meta)
    return out


def _drop_head(tensors: dict, whose: str) -> list[str]:
    """Removes all but the backbone in place, and says so."""
    dropped = [key for key in tensors if not key.startswith(_BACKBONE)]
    for key in dropped:
        del tensors[key]
    print_log(
        f'dropped, {whose}: {", ".join(dropped) or "nothing"}',
        logger='current',
        level=logging.WARNING,
    )
    return dropped


def _build(config: str):
    """The classifier of a config or a name, with random weights."""
    if osp.splitext(config)[1] == '.py' and not osp.isfile(config):
        raise FileNotFoundError(f"config file '{config}' does not exist")
    # Of an unknown name, mmpretrain says how to list the known ones.
    model = get_model(config, pretrained=False)
    if not isinstance(getattr(model, 'backbone', None), MambaBackbone):
        raise ValueError(
            f"'{config}' is no classifier with a backbone of transmamba_mm, "
            f'but a {type(model).__name__}: for the student of a '
            f'distillation use the config that trains it alone'
        )
    return model
