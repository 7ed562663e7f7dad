# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Prove, time and tune everything on a GPU, in one command.

On a machine with an NVIDIA GPU, from the repository root::

    python benchmarks/gpu.py --out results [--minutes 25] [--resume]

The parts (``--only NAME ...``), in this order:

``parity``
    the tests that need a GPU, against loops in float64 on the CPU;
``times``
    the scan at shapes of vision models beside the limits of the card, the
    kernels of mamba-ssm, a compiled associative scan and our PyTorch backend;
``tuning``
    sizes of tiles, per kind of shape; writes the table that
    ``transmamba_mm/ops/backends/triton_tilings.json`` is made of;
``models``
    images per second beside DeiT, and where their times cross;
``job``
    a distillation step and what it is spent on, the quickstart, a killed and
    resumed run, a distributed run;
``transfer``
    real weights on real images, if they are there.

Each part writes ``NAME.json`` into the folder as it goes, has a limit of its
own, and does not stop the next one if it fails; ``report.md`` has all
tables. ``--resume`` goes on after what is done. Nothing is downloaded:
``tools/dev/pack_gpu_kit.sh`` collects what a bare machine needs.

``--interpret`` runs the smallest sizes without a GPU.
"""

import argparse
import ctypes
import importlib
import json
import multiprocessing
import os
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Optional

PARTS = ('parity', 'times', 'tuning', 'models', 'job', 'transfer')


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--out', type=Path, required=True, help='folder')
    parser.add_argument(
        '--minutes', type=float, default=25, help='for all parts; default 25'
    )
    parser.add_argument(
        '--only', nargs='+', choices=PARTS, default=PARTS, metavar='PART'
    )
    parser.add_argument(
        '--resume', action='store_true', help='leave out what is done'
    )
    parser.add_argument(
        '--interpret', action='store_true', help='smallest sizes, no GPU'
    )
    return parser.parse_args(argv)


def prepare(interpret: bool) -> None:
    """Set what must be set before PyTorch and Triton are imported."""
    # NVML tells whether there is a GPU without touching it: a process that
    # has touched it cannot fork others that use it.
    os.environ['PYTORCH_NVML_BASED_CUDA_CHECK'] = '1'
    if interpret:
        os.environ['TRITON_INTERPRET'] = '1'
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    root = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(root / 'benchmarks'), str(root)]


def start_method() -> str:
    """Return 'fork', which saves the imports, if no CUDA was started here."""
    try:
        driver = ctypes.CDLL('libcuda.so.1')
    except OSError:
        return 'fork'
    uninitialised = 3
    return (
        'fork'
        if driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int()))
        == uninitialised
        else 'spawn'
    )


def environment() -> dict[str, Any]:
    """Describe the machine; called in a process that may use the GPU."""
    import torch
    import triton

    found = {
        'torch': torch.__version__,
        'triton': triton.__version__,
        'python': platform.python_version(),
        'cpus': os.cpu_count(),
        'date': time.strftime('%Y-%m-%d'),
    }
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found.update(
            card=card.name,
            capability=f'{card.major}.{card.minor}',
            multiprocessors=card.multi_processor_count,
            memory_gib=round(card.total_memory / 2**30, 1),
        )
    return found


def run_part(name: str, out: Path, tiny: bool, seconds: float) -> None:
    """Run a part in this process; its results go to ``NAME.json``."""
    prepare(tiny)
    from gpu_parts import Context

    with open(out / f'{name}.log', 'w') as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    started = time.monotonic()
    results: dict[str, Any] = {}

    def write(status: str, **more) -> None:
        write_json(
            out / f'{name}.json',
            dict(
                status=status,
                seconds=round(time.monotonic() - started, 1),
                environment=environment(),
                results=results,
                **more,
            ),
        )

    def save(found: dict[str, Any]) -> None:
        results.update(found)
        write('unfinished')

    try:
        part = importlib.import_module(f'gpu_parts.{name}')
        part.run(Context(out, tiny, save, seconds, started))
        write('done')
    except BaseException:
        traceback.print_exc()
        write('failed', error=traceback.format_exc()[-4000:])
        sys.exit(1)


def seconds_of(name: str) -> float:
    """Limit of a part; a minute if it cannot be imported, to report that."""
    try:
        return importlib.import_module(f'gpu_parts.{name}').SECONDS
    except Exception:
        return 60


def write_json(path: Path, content: dict) -> None:
    """Write all of a file or nothing."""
    part = path.with_suffix('.tmp')
    part.write_text(json.dumps(content, indent=1) + '\n')
    part.replace(path)


def read_json(path: Path) -> Optional[dict]:
    return json.loads(path.read_text()) if path.exists() else None


def write_report(out: Path) -> None:
    """Write ``report.md`` from what all parts have found."""
    lines = []
    for name in PARTS:
        found = read_json(out / f'{name}.json')
        if found is None:
            continue
        if not lines:
            machine = found['environment']
            lines += [f'# {machine.get("card", "No GPU")}', '']
            lines += [f'* {key}: {value}' for key, value in machine.items()]
        lines += ['', f'## {name}', '']
        if found['status'] != 'done':
            error = found.get('error', '').strip().splitlines()
            lines += [f'{found["status"]}: {error[-1] if error else ""}', '']
        try:
            part = importlib.import_module(f'gpu_parts.{name}')
            lines += part.markdown(found['results'])
        except Exception as error:
            lines += [f'incomplete results: {error!r}']
    (out / 'report.md').write_text('\n'.join(lines) + '\n')


def main(argv=None) -> int:
    args = parse_args(argv)
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    prepare(args.interpret)
    from gpu_parts import peers

    import transmamba_mm  # noqa: F401  (before the forks)

    if 'times' in args.only and not args.interpret:
        peers.start_build(args.out / 'mamba_build')
    context = multiprocessing.get_context(start_method())
    end = time.monotonic() + 60 * args.minutes
    status = {}
    for name in args.only:
        path = args.out / f'{name}.json'
        before = read_json(path)
        if args.resume and before and before['status'] == 'done':
            print(f'{name}: done before', flush=True)
            continue
        seconds = min(seconds_of(name), end - time.monotonic())
        if seconds < 5:
            print(f'{name}: no time left', flush=True)
            status[name] = 'left out'
            continue
        path.unlink(missing_ok=True)
        process = context.Process(
            target=run_part, args=(name, args.out, args.interpret, seconds)
        )
        started = time.monotonic()
        process.start()
        process.join(seconds + 5)
        if process.is_alive():
            process.kill()
            process.join()
        found = read_json(path) or dict(status='failed')
        if found['status'] == 'unfinished':
            found['error'] = f'ended after {seconds:.0f} s'
            write_json(path, found)
        status[name] = found['status']
        took = time.monotonic() - started
        print(f'{name}: {found["status"]} in {took:.0f} s', flush=True)
        write_report(args.out)
    return 1 if 'failed' in status.values() else 0


if __name__ == '__main__':
    sys.exit(main())
