# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Images and pretrained weights of the part ``transfer``, from a folder.

The folder holds ``tiny_imagenet/{train,val}/<wnid>/*.JPEG`` and weights of a
timm ViT with the 1000 classes of ImageNet. :func:`make_tiny` writes such a
folder of noise, for a machine without a GPU.
"""

import concurrent.futures
import json
import struct
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.data import ImageNetInfo
from torch import Tensor, nn

WEIGHTS = 'vit_tiny_patch16_224_augreg_in1k.fp16.safetensors'
#: Side of a resized image over the side of its crop, as timm evaluates.
MARGIN = 1 / 0.9
_DTYPES = {'F16': np.float16, 'F32': np.float32}


@dataclass
class Images:
    """Decoded images of one split, on the device.

    Attributes:
        pixels: bytes (N, 3, 64, 64).
        labels: (N,).
        side: of the crops that models see.
    """

    pixels: Tensor
    labels: Tensor
    side: int

    def __len__(self) -> int:
        return len(self.labels)

    def _enlarged(self, index: Tensor) -> Tensor:
        # Mean and deviation of timm's augreg weights are 0.5.
        side = round(self.side * MARGIN)
        images = self.pixels[index].float() / 127.5 - 1
        return F.interpolate(images, (side, side), mode='bicubic')

    def centre(self, index: Tensor) -> Tensor:
        """Central crops, to evaluate."""
        images = self._enlarged(index)
        start = (images.shape[-1] - self.side) // 2
        end = start + self.side
        return images[..., start:end, start:end]

    def augmented(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Random crops, flips, contrasts and brightnesses, to train."""
        images = self._enlarged(index)
        count, slack = len(images), images.shape[-1] - self.side + 1

        def draw(low: float, high: float, *shape: int) -> Tensor:
            values = torch.rand(
                count, *shape, generator=generator, device=images.device
            )
            return low + (high - low) * values

        steps = torch.arange(self.side, device=images.device)
        rows = steps + draw(0, slack, 1).long().clamp(max=slack - 1)
        cols = steps + draw(0, slack, 1).long().clamp(max=slack - 1)
        cols = torch.where(draw(0, 1, 1) < 0.5, cols, cols.flip(1))
        which = torch.arange(count, device=images.device)[:, None, None]
        # Two indices around a slice put the channels last.
        images = images[which, :, rows[:, :, None], cols[:, None, :]]
        images = images.permute(0, 3, 1, 2)
        contrast = draw(0.7, 1.3, 1, 1, 1)
        brightness = draw(-0.3, 0.3, 1, 1, 1)
        return (images * contrast + brightness).clamp_(-1, 1)


def read_images(
    folder: Path, side: int, device: torch.device
) -> tuple[Images, list[str]]:
    """Decodes a split; returns it and its classes, in order."""
    wnids = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = [
        (path, label)
        for label, wnid in enumerate(wnids)
        for path in sorted((folder / wnid).glob('*.JPEG'))
    ]

    def decode(file: tuple[Path, int]) -> np.ndarray:
        return cv2.imread(str(file[0]), cv2.IMREAD_COLOR)[..., ::-1]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        pixels = np.stack(list(pool.map(decode, files)))
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor([label for _, label in files])
    return Images(tensor.to(device), labels.to(device), side), wnids


# ------------------------------------------------------------------ weights


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Reads a file of tensors as float32; the format is a JSON and bytes."""
    data = path.read_bytes()
    (length,) = struct.unpack_from('<Q', data)
    header = json.loads(data[8 : 8 + length])
    found = {}
    for name, about in header.items():
        if name == '__metadata__':
            continue
        start, end = (8 + length + x for x in about['data_offsets'])
        values = np.frombuffer(data[start:end], _DTYPES[about['dtype']])
        values = values.reshape(about['shape']).astype(np.float32)
        found[name] = torch.from_numpy(values)
    return found


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes what :func:`read_safetensors` reads, in float16."""
    header, blocks, at = {}, [], 0
    for name, tensor in tensors.items():
        block = tensor.detach().half().numpy().tobytes()
        header[name] = dict(
            dtype='F16',
            shape=list(tensor.shape),
            data_offsets=[at, at + len(block)],
        )
        blocks.append(block)
        at += len(block)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(text)) + text + b''.join(blocks))


def vit(side: int, patch: int, dims: int, depth: int, classes: int):
    """A ViT of timm, with heads of 64 channels (or two heads)."""
    return timm.models.VisionTransformer(
        img_size=side,
        patch_size=patch,
        embed_dim=dims,
        depth=depth,
        num_heads=max(dims // 64, 2),
        num_classes=classes,
    )


def read_teacher_model(path: Path, wnids: list[str], **sizes) -> nn.Module:
    """A pretrained ViT whose head knows some of the 1000 classes only."""
    state = read_safetensors(path)
    every = ImageNetInfo().label_names()
    rows = torch.tensor([every.index(wnid) for wnid in wnids])
    for name in ('head.weight', 'head.bias'):
        state[name] = state[name][rows]
    model = vit(classes=len(wnids), **sizes)
    model.load_state_dict(state)
    return model


# ---------------------------------------------------------------- tiny data


def make_tiny(folder: Path, **sizes) -> None:
    """Writes a folder of noise: 4 classes, 8 + 4 images each, a random ViT."""
    rng = np.random.default_rng(0)
    for wnid in ImageNetInfo().label_names()[5:400:100]:
        for split, count in (('train', 8), ('val', 4)):
            place = folder / 'tiny_imagenet' / split / wnid
            place.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                image = rng.integers(0, 256, (64, 64, 3), np.uint8)
                cv2.imwrite(str(place / f'{wnid}_{i}.JPEG'), image)
    torch.manual_seed(0)
    model = vit(classes=1000, **sizes)
    write_safetensors(folder / WEIGHTS, model.state_dict())
