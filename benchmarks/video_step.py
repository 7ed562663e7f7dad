# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""VideoMamba beside Vision Transformers, over the number of frames.

Run from the repository root, with the package and timm installed::

    OMP_NUM_THREADS=1 python benchmarks/video_step.py --json video.json

One clip of 8 to 64 frames, 112 pixels (49 patches a frame), through
VideoMamba-tiny (24 layers, 7.0 M parameters) and two Transformers of its
width with timm's blocks (12 layers, 5.5 M): ``joint`` attends to all patches
of all frames, as VideoMamba scans them; ``per_frame`` looks at each frame
alone, as CLIP4Clip's tower does. Each runs as inference and as training
(forward and backward); peak memory beside the time. On a GPU, which is taken
if there is one, at 224 pixels and in wall time.
"""

import statistics
import time
from typing import Callable

import common
import torch
from mmengine.logging import MMLogger
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from transmamba_mm.models import VideoMamba

FRAMES = (8, 16, 32, 64)
WIDTH, PATCH = 192, 16


class Transformer(nn.Module):
    """Patches of all frames, or of each, through 12 of ViT-Ti's blocks."""

    def __init__(self, side: int, frames: int, joint: bool) -> None:
        super().__init__()
        self.joint = joint
        self.patch_embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        count = (side // PATCH) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, 1, count, WIDTH))
        self.time_embed = nn.Parameter(torch.zeros(1, frames, 1, WIDTH))
        self.blocks = nn.Sequential(
            *(Block(WIDTH, 3, qkv_bias=True) for _ in range(12))
        )
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, video: Tensor) -> Tensor:
        """A feature of each frame (B, T, 192) of videos (B, 3, T, H, W)."""
        batch, _, frames = video.shape[:3]
        x = self.patch_embed(video.transpose(1, 2).flatten(0, 1))
        x = x.flatten(2).mT.unflatten(0, (batch, frames))
        x = x + self.pos_embed + self.time_embed
        x = x.flatten(1, 2) if self.joint else x.flatten(0, 1)
        x = self.norm(self.blocks(x))
        return x.reshape(batch, frames, -1, WIDTH).mean(2)


def models(side: int, frames: int) -> dict[str, nn.Module]:
    """All candidates, for clips of so many frames."""
    mamba = VideoMamba(
        'tiny',
        img_size=side,
        num_frames=frames,
        out_type='pooled',
        keep_temporal=True,
    )
    mamba.init_weights()
    return dict(
        mamba=mamba,
        joint=Transformer(side, frames, joint=True),
        per_frame=Transformer(side, frames, joint=False),
    )


def steps(model: nn.Module, video: Tensor) -> dict[str, Callable[[], object]]:
    """Inference and training with one clip."""

    def inference() -> None:
        with torch.no_grad():
            model.eval()(video)

    def training() -> None:
        out = model.train()(video)
        (out[-1] if isinstance(out, tuple) else out).square().mean().backward()
        model.zero_grad()

    return dict(inference=inference, training=training)


def wall_milliseconds(
    candidates: dict[str, Callable[[], object]], rounds: int
) -> dict[str, float]:
    """Interleaved medians on a GPU, until it has finished."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds + 2):
        for name, run in candidates.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            torch.cuda.synchronize()
            times[name].append(1000 * (time.perf_counter() - start))
    return {k: statistics.median(v[2:]) for k, v in times.items()}


def peak_mib(run: Callable[[], object], device: str) -> object:
    """What a step needs beyond what was there before."""
    if device == 'cpu':
        return common.extra_peak_mb(run)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def crossover(rows: list[dict], peer: str) -> str:
    """From how many frames on the Mamba is faster than a peer."""
    faster = [row['frames'] for row in rows if row['mamba'] < row[peer]]
    if not faster:
        return f'Mamba is not faster than {peer} at any of these lengths'
    return f'Mamba is faster than {peer} from {min(faster)} frames on'


def main() -> None:
    """Prints a table for inference and one for training."""
    args = common.parse_args(__doc__)
    torch.set_num_threads(1)
    # MMEngine tells the start value of every parameter.
    MMLogger.get_current_instance().setLevel('ERROR')
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    side = 224 if device == 'cuda' else 112
    counts = FRAMES[:2] if args.quick else FRAMES
    results: dict[str, list[dict]] = dict(inference=[], training=[])
    for frames in counts:
        video = torch.randn(1, 3, frames, side, side, device=device)
        built = {k: m.to(device) for k, m in models(side, frames).items()}
        runs = {name: steps(model, video) for name, model in built.items()}
        for mode, rows in results.items():
            chosen = {name: each[mode] for name, each in runs.items()}
            if device == 'cuda':
                times = wall_milliseconds(chosen, rounds=10)
            else:
                times = common.interleaved(chosen, rounds=5, slow_rounds=3)
            memory = {
                f'{name}_mib': peak_mib(run, device)
                for name, run in chosen.items()
            }
            rows.append(dict(frames=frames, **times, **memory))
        print(f'{frames} frames: measured', flush=True)
    names = list(built)
    for mode, rows in results.items():
        common.print_markdown(
            f'{mode}, one clip, {side} pixels, {device}',
            ['frames', *(f'{n} (ms)' for n in names)]
            + [f'{n} (MiB)' for n in names],
            [
                [row['frames'], *(row[n] for n in names)]
                + [row[f'{n}_mib'] for n in names]
                for row in rows
            ],
        )
        print()
        for peer in names[1:]:
            print(crossover(rows, peer))
    common.write_json(args.json, results)


if __name__ == '__main__':
    main()
