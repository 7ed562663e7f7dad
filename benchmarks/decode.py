# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Time and memory of a new token: ours against a LLaMA with a KV cache.

Both have as many parameters, layers and channels. The cache is filled with
random keys and values instead of reading a context, which makes no difference
to time or size. The two run in turn, in one process; medians::

    OMP_NUM_THREADS=1 python benchmarks/decode.py --plot decode.png
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from common import environment
from torch import nn

import transmamba_mm  # noqa: F401  (first: it makes mmrazor importable)
from transmamba_mm.models import TransMambaLM

DIMS, LAYERS, HEADS, VOCAB = 512, 8, 8, 8192


def ours() -> TransMambaLM:
    """The Mamba, 30 M parameters."""
    arch = dict(embed_dims=DIMS, num_layers=LAYERS, vocab_size=VOCAB)
    return TransMambaLM(dict(arch, ffn_dims=1552)).eval()


def theirs() -> nn.Module:
    """The LLaMA, 30 M parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=DIMS,
        intermediate_size=1408,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=1 << 20,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def mamba_step(model: TransMambaLM) -> tuple[Callable, int]:
    """What reads a token, and the bytes of what it remembers."""
    states = model.new_states(1)
    token = torch.zeros(1, dtype=torch.long)
    held = sum(x.conv.nbytes + x.ssm.nbytes for x in states)
    return lambda: model.step(token, states), held


def llama_step(model: nn.Module, context: int) -> tuple[Callable, int]:
    """The same behind a context."""
    from transformers import DynamicCache

    cache = DynamicCache()
    shape = (1, HEADS, context, DIMS // HEADS)
    for layer in range(LAYERS):
        cache.update(torch.randn(shape), torch.randn(shape), layer)
    held = LAYERS * 2 * 4 * context * DIMS
    token = torch.zeros(1, 1, dtype=torch.long)

    def step() -> None:
        model(input_ids=token, past_key_values=cache, use_cache=True)

    return step, held


@torch.no_grad()
def measure(contexts: list[int], rounds: int) -> list[dict]:
    """Milliseconds of a token and bytes held, by context."""
    mamba, llama = ours(), theirs()
    rows = []
    for context in contexts:
        steps = dict(mamba=mamba_step(mamba), llama=llama_step(llama, context))
        times = {name: [] for name in steps}
        for turn in range(rounds + 2):
            for name, (step, _) in steps.items():
                start = time.perf_counter()
                step()
                if turn > 1:  # warm
                    times[name].append(time.perf_counter() - start)
        row = dict(context=context)
        for name, (_, held) in steps.items():
            row[f'{name}_ms'] = 1e3 * statistics.median(times[name])
            row[f'{name}_bytes'] = held
        row['ratio'] = row['llama_ms'] / row['mamba_ms']
        rows.append(row)
        print(
            f'{context:>7}{row["mamba_ms"]:>10.2f} ms{row["llama_ms"]:>10.2f}'
            f' ms{row["ratio"]:>8.2f}{row["mamba_bytes"] / 2**20:>9.2f} MiB'
            f'{row["llama_bytes"] / 2**20:>9.2f} MiB',
            flush=True,
        )
    return rows


def plot(rows: list[dict], path: str) -> None:
    """Draws time and memory over the context."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5))
    contexts = [row['context'] for row in rows]
    for name, label in (('mamba', 'TransMambaLM'), ('llama', 'LLaMA')):
        for axis, what, unit in zip(axes, ('ms', 'bytes'), (1, 2**20)):
            values = [row[f'{name}_{what}'] / unit for row in rows]
            axis.loglog(contexts, values, marker='o', label=label)
    for axis, label in zip(axes, ('ms per token', 'MiB of state or cache')):
        axis.set(xlabel='tokens of context', ylabel=label)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    contexts = [256, 1024, 4096, 16384]
    parser.add_argument('--contexts', type=int, nargs='+', default=contexts)
    parser.add_argument('--rounds', type=int, default=30)
    parser.add_argument('--json', metavar='FILE')
    parser.add_argument('--plot', metavar='PNG')
    args = parser.parse_args()
    torch.manual_seed(0)
    print(f'on {environment()}')
    for model in (ours(), theirs()):
        size = sum(p.numel() for p in model.parameters())
        print(f'{type(model).__name__}: {size:,} parameters')
    print('context   TransMambaLM      LLaMA   ratio     state      cache')
    rows = measure(args.contexts, args.rounds)
    faster = [row['context'] for row in rows if row['ratio'] > 1]
    print(f'TransMambaLM is faster from {min(faster, default=None)} tokens on')
    if args.json:
        with open(args.json, 'w', encoding='utf-8') as file:
            json.dump(rows, file, indent=1)
    if args.plot:
        plot(rows, args.plot)


if __name__ == '__main__':
    main()
