# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A step of AdamW with merged groups beside one with MMEngine's groups.

Run from the repository root, with the package installed::

    OMP_NUM_THREADS=1 python benchmarks/optimizer_groups.py

The parameters are those of Vim-tiny, or of a classifier's ``--config``, all
with gradients, and the options those of its schedule; gradients are not
clipped. Times are CPU
time on one thread; on a GPU, which is taken if there is one, they are wall
time until it has finished.
"""

import copy
import statistics
import time
from typing import Callable

import common
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from transmamba_mm.registry import MODELS

CONFIG = 'configs/vim/vim-tiny_8xb128-300e_imagenet1k.py'
CONSTRUCTORS = {
    'merged': 'transmamba.MergedGroupsOptimWrapperConstructor',
    'default': 'DefaultOptimWrapperConstructor',
}
# PyTorch's own choice is a loop over tensors on a CPU and `foreach` on a GPU.
VARIANTS = {
    "PyTorch's choice": {},
    'foreach': dict(foreach=True),
    'fused': dict(fused=True),
}


def make_optimizer(
    cfg: Config, constructor: str, options: dict, device: str
) -> torch.optim.Optimizer:
    """Return a config's optimizer over a model with gradients."""
    model = MODELS.build(copy.deepcopy(cfg.model)).to(device)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    settings = copy.deepcopy(cfg.optim_wrapper)
    settings.update(constructor=constructor)
    settings.optimizer.update(options)
    return build_optim_wrapper(model, settings).optimizer


def wall_times(
    candidates: dict[str, Callable[[], object]], rounds: int, runs: int = 10
) -> dict[str, float]:
    """Time the candidates in turn, until the GPU has finished.

    Args:
        candidates: name -> function of no arguments.
        rounds: samples of each, after one warm-up.
        runs: runs per sample.  Default 10.

    Returns:
        dict[str, float]: name -> median milliseconds of one run.
    """
    times = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name, function in candidates.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(runs):
                function()
            torch.cuda.synchronize()
            times[name].append(1e3 * (time.perf_counter() - start) / runs)
    return {name: statistics.median(t[1:]) for name, t in times.items()}


def main() -> None:
    """Prints a table per variant of the optimizer."""
    parser = common.make_parser(__doc__)
    parser.add_argument('--config', default=CONFIG)
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    time_all = wall_times if device == 'cuda' else common.interleaved
    cfg = Config.fromfile(args.config)
    init_default_scope(cfg.default_scope)
    # MMEngine tells the options of every parameter.
    MMLogger.get_current_instance().setLevel('ERROR')
    results = {}
    for title, options in VARIANTS.items():
        optimizers = {
            name: make_optimizer(cfg, constructor, options, device)
            for name, constructor in CONSTRUCTORS.items()
        }
        figures = time_all(
            {name: each.step for name, each in optimizers.items()},
            rounds=3 if args.quick else 15,
        )
        groups = {name: len(o.param_groups) for name, o in optimizers.items()}
        common.print_table(
            f'AdamW, {title}, {device}: groups {groups}',
            figures,
            'merged',
            'ms',
        )
        results[title] = dict(groups=groups, milliseconds=figures)
    common.write_json(args.json, results)


if __name__ == '__main__':
    main()
