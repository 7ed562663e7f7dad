# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Images per second of whole backbones, beside timm's DeiT."""

import itertools
from typing import Any, Callable, Optional

import backbone_peers
import torch
from torch import nn

from transmamba_mm.ops.backends import triton_tiling
from transmamba_mm.registry import MODELS

from . import Context
from .times import in_parallel
from .timing import peak_mib, wall_ms

SECONDS = 240
# name: (class, preset, further settings, batches)
BACKBONES = {
    'ViM-T': ('VisionMamba', 'tiny', {}, (64, 256)),
    'ViM-S': ('VisionMamba', 'small', {}, (64, 256)),
    'PMamba-T': ('PlainMamba', 'pmamba-tiny', {}, (64, 256)),
    'PMamba-S': ('PlainMamba', 'pmamba-small', {}, (64, 256)),
    'VMamba-T': ('VMamba', 'tiny-s1l8', {}, (64, 256)),
    'VideoMamba-T, 8 frames': (
        *('VideoMamba', 'tiny', dict(num_frames=8)),
        (16, 64),
    ),
    'VideoMamba-T, 32 frames': (
        *('VideoMamba', 'tiny', dict(num_frames=32)),
        (4, 16),
    ),
}
DEITS = {
    'DeiT-T': ('deit_tiny_patch16_224', (64, 256)),
    'DeiT-S': ('deit_small_patch16_224', (64, 256)),
}
COMPILED = ('DeiT-T', 'ViM-T', 'PMamba-T', 'VMamba-T')
RIVALS = ('ViM-T', 'DeiT-T')
SIDES = (224, 320, 416, 512, 640, 768, 1024)
SIDE_BATCH = 16
MODES = ('training', 'inference')


def build(name: str, side: int) -> Optional[nn.Module]:
    """Build a backbone on the CPU; None for a DeiT without timm."""
    if name in DEITS:
        return backbone_peers.deit(DEITS[name][0], side, our_linear=False)
    family, arch, more, _ = BACKBONES[name]
    settings = dict(img_size=side, **more)
    return MODELS.build(
        dict(type=f'transmamba.{family}', arch=arch, **settings)
    )


def tiny_build(name: str, side: int) -> nn.Module:
    """Build the smallest backbone of that family."""
    family, *_ = BACKBONES[name]
    settings = dict(
        arch=dict(embed_dims=8, num_layers=1), patch_size=side // 2
    )
    if family == 'VMamba':
        settings = dict(arch=dict(embed_dims=8, depths=(1, 1, 1, 1)))
    return MODELS.build(
        dict(
            type=f'transmamba.{family}',
            img_size=side,
            init_cfg=[],
            **settings,
        )
    )


class Case:
    """A backbone with a batch of images.

    Args:
        model: the backbone.
        name: its name; a video model's has the number of frames.
        batch: images, or videos.
        side: their height and width.
        device: where it runs; under autocast to bfloat16 on a GPU.
    """

    def __init__(self, model, name: str, batch: int, side: int, device):
        self.model = model.to(device)
        more = BACKBONES[name][2] if name in BACKBONES else {}
        frames = (more['num_frames'],) if 'num_frames' in more else ()
        shape = (batch, 3, *frames, side, side)
        self.images = torch.randn(shape, device=device)
        self.amp = torch.autocast(
            device.type, torch.bfloat16, enabled=device.type == 'cuda'
        )

    def _last(self) -> torch.Tensor:
        out = self.model(self.images)
        return out[-1] if isinstance(out, tuple) else out

    def inference(self) -> None:
        """Run without gradients."""
        self.model.eval()
        with torch.inference_mode(), self.amp:
            self._last()

    def training(self) -> None:
        """Run forward and backward."""
        self.model.train()
        with self.amp:
            loss = self._last().float().square().mean()
        loss.backward()
        self.model.zero_grad(set_to_none=True)


def measure(case: Case, batch: int) -> dict[str, Any]:
    """Images per second and memory, training and inference."""
    row = {}
    for mode in MODES:
        step: Callable = getattr(case, mode)
        row[mode] = 1e3 * batch / wall_ms(step)
        row[f'{mode}_mib'] = peak_mib(step)
    return row


def warm(job) -> Optional[str]:
    """Fill Triton's cache with what a backbone needs."""
    name, side = job
    try:
        # As for the full batch, few images as these are.
        triton_tiling.MOST_SEGMENTS = 1
        case = Case(build(name, side), name, 2, side, torch.device('cuda'))
        case.training()
        case.inference()
        torch.cuda.synchronize()
    except Exception as error:
        return f'{job}: {type(error).__name__}: {error}'[:300]
    return None


def jobs(context: Context) -> list[tuple[str, int, int, str]]:
    """(name, side, batch, kind of row) in order."""
    if context.tiny:
        return [(name, 32, 2, 'eager') for name in list(BACKBONES)[:5]]
    everything = {
        **{name: batches for name, (_, batches) in DEITS.items()},
        **{name: x[3] for name, x in BACKBONES.items()},
    }
    firsts = [(name, 224, b[-1], 'eager') for name, b in everything.items()]
    seconds = [(name, 224, b[0], 'eager') for name, b in everything.items()]
    sides = [
        (name, side, SIDE_BATCH, 'resolution')
        for side, name in itertools.product(SIDES, RIVALS)
    ]
    compiled = [(name, 224, 64, 'compiled') for name in COMPILED]
    return [*firsts, *sides, *seconds, *compiled]


def run(context: Context) -> None:
    """Measure row after row."""
    wanted = jobs(context)
    errors = []
    if not context.tiny:
        ours = [x[:2] for x in wanted if x[0] not in DEITS]
        errors = in_parallel(warm, list(dict.fromkeys(ours)))
    results = dict(warm_errors=errors, rows=[])
    context.save(results)
    for name, side, batch, kind in wanted:
        # Compiling takes long, in training above all.
        if context.left < (60 if kind == 'compiled' else 10):
            results['stopped'] = 'time was up'
            break
        row = dict(name=name, side=side, batch=batch, kind=kind)
        try:
            model = (tiny_build if context.tiny else build)(name, side)
            if model is None:
                continue
            case = Case(model, name, batch, side, context.device)
            if kind == 'compiled':
                case.model.compile()
            row.update(measure(case, batch))
        except Exception as error:
            row['error'] = f'{type(error).__name__}: {error}'[:300]
        results['rows'].append(row)
        context.save(results)
        case = model = None
        if not context.tiny:
            torch.cuda.empty_cache()


def markdown(results: dict) -> list[str]:
    """One table of throughput, one of image sizes."""
    rows = results['rows']
    lines = [
        '| backbone | batch | | training, images/s | inference, images/s | '
        'training, MiB |',
        '|---|---|---|---|---|---|',
    ]
    for row in rows:
        if row['kind'] != 'resolution':
            head = f'| {row["name"]} | {row["batch"]} | {row["kind"]} |'
            lines.append(f'{head} {cells(row)} |')
    sides = [row for row in rows if row['kind'] == 'resolution']
    if sides:
        lines += [
            '',
            f'Batch {SIDE_BATCH} over the size of the image:',
            '',
            '| pixels | backbone | training, images/s | inference, images/s '
            '| training, MiB |',
            '|---|---|---|---|---|',
            *(
                f'| {row["side"]} | {row["name"]} | {cells(row)} |'
                for row in sides
            ),
        ]
    return lines


def cells(row: dict) -> str:
    """Throughput and memory of a row, or its error."""
    if 'error' in row:
        return f'{row["error"][:100]} | | '
    memory = row['training_mib']
    return (
        f'{row["training"]:.0f} | {row["inference"]:.0f} | '
        f'{"-" if memory is None else round(memory)}'
    )
