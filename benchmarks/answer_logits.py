# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Soft logits of answers over LLaMA-3's vocabulary, in chunks and plain.

Run from the repository root, with the package installed::

    OMP_NUM_THREADS=1 python benchmarks/answer_logits.py

128 tokens of answers, the widths of the 600 M student and of LLaMA-3.2-3B,
128,256 scores each, loss and gradient. Memory is what is allocated at most
beyond the weights, the gradient of the student's head (1,002 MiB) included.
"""

import common
import torch
from torch import nn

from transmamba_mm.contract import Answers
from transmamba_mm.distill.methods import AnswerLogitsLoss, LogitsKD
from transmamba_mm.registry import MODELS


def main() -> None:
    """Prints seconds and memory."""
    args = common.parse_args(__doc__)
    torch.set_num_threads(1)
    rows, vocab = (64, 4096) if args.quick else (128, 128256)
    labels = torch.randint(vocab, (rows,))
    sides = []
    for width in (2048, 3072):
        head = nn.Linear(width, vocab, bias=False)
        sides.append(Answers(torch.randn(rows, width), labels, head))
    student, teacher = sides
    teacher.head.requires_grad_(False)
    plain = MODELS.build(LogitsKD().loss())
    chunked = AnswerLogitsLoss(max_scores=16 * vocab)

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, student.head.weight)[0]

    runs = dict(
        chunks=lambda: gradient(chunked(student, teacher)),
        plain=lambda: gradient(plain(student.logits, teacher.logits)),
    )
    memory = {name: common.extra_peak_mb(run) for name, run in runs.items()}
    seconds = {name: common.cpu_seconds(run) for name, run in runs.items()}
    title = f'{rows} tokens, {vocab} scores'
    common.print_table(title, seconds, 'chunks', 's')
    if None not in memory.values():
        common.print_table(f'{title}, peak memory', memory, 'chunks', 'MiB')
    common.write_json(args.json, dict(seconds=seconds, mib=memory))


if __name__ == '__main__':
    main()
