# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What a text remembers of an image: Cross-Mamba against Mamba.

An image of a few tokens holds a key and a value in each. Text follows, and at
last the keys, of each of which the value is asked for. The second of two
layers is Mamba or Cross-Mamba; both models have the same parameters, start
values and batches. Embeddings start at N(0, 1), PyTorch's, and the head has
weights of its own: from a language model's small and shared ones, neither
learns much in so few steps.
A cell that is in the output folder is not run again::

    python benchmarks/cross_mamba_recall.py --fillers 3 48 --seeds 3 --out DIR
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from common import environment
from torch import Tensor

import transmamba_mm  # noqa: F401  (first: it makes mmrazor importable)
from transmamba_mm.models import TransMambaLM

KEYS = VALUES = WORDS = 16
VOCAB = KEYS + VALUES + WORDS
MIXERS = {
    'mamba': {},
    'cross': dict(cross_layers=(1,)),
    'cross, both ways': dict(
        cross_layers=(1,), cross_cfg=dict(bidirectional_kv=True)
    ),
}


def batch(
    size: int, pairs: int, fillers: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Two ids (B, L, 2) of each token, the image's mask, answers (B, pairs).

    A token of the image is a key and a value, one of the text a word twice.
    The last tokens are the keys in another order.
    """

    def drawn(choices: int) -> Tensor:
        return torch.rand(size, choices, generator=generator).argsort(1)

    keys, asked = drawn(KEYS)[:, :pairs], drawn(pairs)
    values = torch.randint(VALUES, (size, pairs), generator=generator)
    words = torch.randint(WORDS, (size, fillers), generator=generator)
    words, values = words + KEYS + VALUES, values + KEYS
    text = torch.cat([words, keys.gather(1, asked)], 1)
    ids = torch.stack([torch.cat([x, text], 1) for x in (keys, values)], 2)
    image = torch.arange(ids.shape[1]).expand(size, -1) < pairs
    return ids, image, values.gather(1, asked)


def run(mixer: str, fillers: int, seed: int, args) -> dict:
    """Trains one model and tests it on what it has not seen."""
    torch.manual_seed(seed)
    arch = dict(embed_dims=args.dims, num_layers=2, vocab_size=VOCAB)
    arch.update(expand=2, tie_embeddings=False)
    model = TransMambaLM(arch, **MIXERS[mixer])
    model.embed_tokens.reset_parameters()
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, (0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, args.steps, pct_start=0.1
    )
    generator = torch.Generator().manual_seed(seed)

    def answers(size: int) -> tuple[Tensor, Tensor]:
        ids, mask, answer = batch(size, args.pairs, fillers, generator)
        tokens = model.embed_tokens(ids).mean(2)
        found = model.features(inputs_embeds=tokens, image_mask=mask)
        logits = model.head(found[:, -args.pairs :])
        return logits.flatten(0, 1), answer.flatten()

    start = time.perf_counter()
    for _ in range(args.steps):
        loss = F.cross_entropy(*answers(args.batch))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        logits, answer = answers(4096)
    accuracy = (logits.argmax(1) == answer).float().mean().item()
    return dict(
        mixer=mixer,
        fillers=fillers,
        seed=seed,
        accuracy=round(accuracy, 4),
        loss=round(loss.item(), 4),
        seconds=round(time.perf_counter() - start, 1),
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--fillers', type=int, nargs='+', default=[3, 48])
    parser.add_argument('--seeds', type=int, default=2)
    parser.add_argument('--mixers', nargs='+', default=list(MIXERS))
    parser.add_argument('--pairs', type=int, default=6)
    parser.add_argument('--dims', type=int, default=48)
    parser.add_argument('--steps', type=int, default=1500)
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--lr', type=float, default=5e-3)
    parser.add_argument('--out', type=Path, default='work_dirs/recall')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    options = ('pairs', 'dims', 'steps', 'batch', 'lr')
    cells = [
        (mixer, fillers, seed)
        for fillers in args.fillers
        for seed in range(args.seeds)
        for mixer in args.mixers
    ]
    print(f'on {environment()}, chance is {1 / VALUES:.3f}')
    for cell in cells:
        settings = {name: getattr(args, name) for name in options}
        words = [*cell, *(f'{k}{v}' for k, v in settings.items())]
        name = '-'.join(map(str, words)).replace(' ', '').replace(',', '_')
        file = args.out / f'{name}.json'
        if not file.exists():
            found = dict(run(*cell, args), **settings)
            found['environment'] = environment()
            file.write_text(json.dumps(found) + '\n')
        print(file.read_text(), end='', flush=True)


if __name__ == '__main__':
    main()
