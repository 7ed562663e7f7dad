# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Makes a start for mmpretrain's TimmClassifier from a timm checkpoint.

Positions are resized to another image size. Of an ImageNet-1k head the rows
of some classes may be kept, in the alphabetical order of their WordNet ids,
which is that of folders in a CustomDataset.

Example::

    python tools/model_converters/timm_to_classifier.py \
        vit_tiny_patch16_224 vit_tiny.safetensors vit-tiny_96.pth \
        --img-size 96 --classes data/tiny_imagenet/train
"""

import argparse
from pathlib import Path

import timm
from timm.data import ImageNetInfo
from torch import Tensor

from transmamba_mm.checkpoints import (
    CheckpointError,
    read_checkpoint,
    unwrap_state_dict,
    write_weights,
)
from transmamba_mm.utils import cli


def convert(
    name: str,
    checkpoint: str,
    img_size: int = 224,
    classes: str = '',
) -> dict[str, Tensor]:
    """Reads a timm checkpoint of ImageNet-1k for another size and head.

    Args:
        name (str): timm's name of the model.
        checkpoint (str): Path of its weights.
        img_size (int): Image size in pixels. Defaults to 224.
        classes (str): Folder whose subfolders are the WordNet ids of the
            classes to keep. Defaults to ``''``, all 1000.

    Returns:
        dict[str, Tensor]: Weights under timm's names, in float32.

    Raises:
        ValueError: If the checkpoint cannot be read or is of another model,
            or a class is none of ImageNet-1k.
    """
    content = read_checkpoint(checkpoint)
    # Averaged weights if there are any, as timm takes them.
    weights = unwrap_state_dict(content, checkpoint, 'model_ema' in content)
    try:
        model = timm.create_model(
            name,
            pretrained=True,
            pretrained_cfg_overlay=dict(state_dict=weights),
            img_size=img_size,
        )
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"'{checkpoint}', {name}: {error}") from error
    state = {key: value.float() for key, value in model.state_dict().items()}
    if classes:
        known = ImageNetInfo().label_names()
        wanted = sorted(p.name for p in Path(classes).iterdir() if p.is_dir())
        if unknown := set(wanted) - set(known):
            raise ValueError(
                f'{classes} holds {sorted(unknown)[:3]}, which are no classes '
                f'of ImageNet-1k'
            )
        rows = [known.index(wnid) for wnid in wanted]
        for key in ('head.weight', 'head.bias'):
            state[key] = state[key][rows]
    return state


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('name', help="timm's name of the model")
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument('out', help='file to write')
    parser.add_argument('--img-size', type=int, default=224)
    parser.add_argument(
        '--classes', default='', help='folder of the classes to keep'
    )
    args = vars(parser.parse_args())
    out = Path(args.pop('out'))
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        state = convert(**args)
    except (OSError, ValueError) as error:
        raise cli.UsageError(str(error)) from error
    write_weights(str(out), state, meta={})
    print(f'written to {out}')


if __name__ == '__main__':
    cli.run_main(main)
