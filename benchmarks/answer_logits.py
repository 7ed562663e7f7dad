# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Soft logits of answers over LLaMA-3's vocabulary, in chunks and plain.

Run from the repository root, with the package installed::

    OMP_NUM_THREADS=1 python benchmarks/answer_logits.py

1,024 tokens of answers, 128,256 scores each, loss and gradient. Models are 64
channels wide, so that memory and time are those of the scores. The gradient of
the student's head, V times its width, comes on top: once of the plain loss,
three times of chunks, which add up theirs.
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
    rows, vocab = (64, 4096) if args.quick else (1024, 128256)
    labels = torch.randint(vocab, (rows,))
    sides = []
    for _ in range(2):
        head = nn.Linear(64, vocab, bias=False)
        sides.append(Answers(torch.randn(rows, 64), labels, head))
    student, teacher = sides
    teacher.head.requires_grad_(False)
    plain = MODELS.build(LogitsKD().loss())
    chunked = AnswerLogitsLoss(max_scores=rows * vocab // 4)

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
