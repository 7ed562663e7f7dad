# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The parts of ``benchmarks/gpu.py``, one module each.

A part has

* ``SECONDS``: how long it may take;
* ``run(context)``: measures, and calls ``context.save`` whenever something
  has been found, so that nothing is lost when time is up;
* ``markdown(results)``: lines of Markdown for what ``save`` was given, which
  may be incomplete.

Parts run one after the other, each in a process of its own that has not
touched the GPU yet.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import torch


@dataclass
class Context:
    """What a part is given.

    Attributes:
        out: folder for files of its own.
        tiny: whether to use the smallest sizes: there is no GPU, kernels run
            in Triton's interpreter and models on the CPU.
        save: takes all results so far, which can be written as JSON.
        seconds: how long the part may take.
        started: when it started, by ``time.monotonic``.
    """

    out: Path
    tiny: bool
    save: Callable[[dict[str, Any]], None]
    seconds: float
    started: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> torch.device:
        """Where tensors live."""
        return torch.device('cpu' if self.tiny else 'cuda')

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self.started)
