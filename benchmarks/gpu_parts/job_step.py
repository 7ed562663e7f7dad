# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A distillation step, its parts and what it is spent on.

The model, the data preprocessor with its mixing and the optimizer are those
of a config of ``configs/transmamba``, so a step is what ``tools/train.py``
does with ``--amp``, without the loading of images.
"""

import collections
import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmpretrain.structures import DataSample
from torch import nn

from transmamba_mm.registry import MODELS
from transmamba_mm.utils import cli

from . import Context
from .timing import peak_mib, wall_ms

ROOT = Path(__file__).resolve().parents[2]
CONFIG = 'transmamba_deit-tiny_vim-tiny_8xb64-300e_imagenet100_paper.py'
BATCH = 128
PROFILED_STEPS = 3

#: Where a kernel was launched, in the order in which a step gets there.
RANGES = (
    'data',
    'teacher',
    'student forward',
    'calibration forward',
    'loss',
    'backward',
    'optimizer',
    'rest',
)
# The first pattern found in the name of a kernel (of an operator on the CPU)
# tells its kind.
_KINDS = (
    ('scan', r'scan_forward|scan_backward|scan_adjoint|selective_scan'),
    ('norm', r'norm_forward|norm_backward|layer_?norm|rms_norm'),
    ('host to device', r'memcpy.*(htod|host.*device)'),
    (
        'convolution',
        r'conv_forward|conv_backward|causal_conv|conv\w*2d|convolution|'
        r'implicit_gemm|fprop|dgrad|wgrad|cudnn',
    ),
    ('attention', r'flash|fmha|attention|dot_product'),
    (
        'matrix products',
        r'gemm|gemv|nvjet|cutlass|splitk|aten::(mm|bmm|addmm|linear)|'
        r'linear_pointwise',
    ),
    (
        'copies and casts',
        r'memcpy|memset|copy|catarray|aten::cat|index|gather|contiguous',
    ),
)
_OTHER = 'by element and sums'
KINDS = (*(kind for kind, _ in _KINDS), _OTHER)


def kind_of(name: str) -> str:
    name = name.lower()
    return next((k for k, parts in _KINDS if re.search(parts, name)), _OTHER)


# ------------------------------------------------------------------ the job


class Job:
    """The model of a config on random images.

    Args:
        tiny: smallest sizes.
        device: where it runs.
    """

    def __init__(self, tiny: bool, device: torch.device) -> None:
        init_default_scope('mmpretrain')
        cfg = Config.fromfile(ROOT / 'configs' / 'transmamba' / CONFIG)
        model, self.batch, side = cfg.model, BATCH, 224
        if tiny:
            self.batch, side = 2, 32
            size = dict(img_size=side, patch_size=8)
            model.architecture.backbone.update(
                arch=dict(embed_dims=16, num_layers=2), **size
            )
            model.architecture.head.in_channels = 16
            arch = dict(
                embed_dims=16,
                num_layers=2,
                num_heads=2,
                feedforward_channels=32,
            )
            model.teacher.backbone.update(arch=arch, **size)
            model.teacher.head.in_channels = 16
        # Random weights cost what trained ones do.
        model.teacher_ckpt = None
        model.data_preprocessor = cfg.data_preprocessor
        self.model = MODELS.build(model).to(device).train()
        cli.enable_amp(cfg)
        if not tiny:
            cfg.optim_wrapper.dtype = 'bfloat16'
        self.optimizer = build_optim_wrapper(self.model, cfg.optim_wrapper)
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch, 3, side, side)
        images = torch.randint(256, shape, generator=generator).byte()
        if not tiny:
            images = images.pin_memory()
        samples = [
            DataSample().set_gt_label(i % 100) for i in range(self.batch)
        ]
        self.raw = dict(inputs=images, data_samples=samples)
        self.ready = self.data()

    def data(self) -> dict[str, Any]:
        """Copies a batch of bytes to the device, normalises and mixes it."""
        return self.model.data_preprocessor(dict(self.raw), True)

    def step(self) -> None:
        """All of a training step, as the runner calls it."""
        self.model.train_step(self.raw, optim_wrapper=self.optimizer)

    def parts(self) -> dict[str, Callable[[], object]]:
        """The parts of a step, each to be measured alone."""
        model, ready = self.model, self.ready
        mlps = model.distiller.connectors['calibration'].mlps
        recorders = model.distiller.student_recorders
        images, samples = ready['inputs'], ready['data_samples']
        with torch.no_grad(), self._amp(), recorders:
            model.student(images, samples, mode='loss')
        taps = [
            record.tokens.detach().requires_grad_()
            for record in recorders.get_recorder('taps').get_record_data()
        ]

        def backward(*outs: torch.Tensor) -> None:
            grads = [torch.ones_like(out) for out in outs]
            torch.autograd.backward(outs, grads)
            model.zero_grad()

        def teacher() -> None:
            with torch.no_grad(), self._amp():
                model.teacher(images, samples, mode='tensor')

        def student() -> None:
            with self._amp():
                losses = model.student(images, samples, mode='loss')
            backward(losses['loss'])

        def student_with_taps() -> None:
            with self._amp(), recorders:
                losses = model.student(images, samples, mode='loss')
            seen = recorders.get_recorder('taps').get_record_data()
            backward(losses['loss'], *(record.tokens for record in seen))

        def calibration() -> None:
            with self._amp():
                outs = [mlp(tap) for mlp, tap in zip(mlps, taps)]
            backward(*outs)

        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        grads = [p for p in model.parameters() if p.grad is not None]
        fused = torch.optim.AdamW(grads, 5e-4, fused=True)

        # Before the others, which throw the gradients away.
        return {
            'AdamW of the config': self._optimizer_step,
            'fused AdamW, one group (not used)': fused.step,
            'data': self.data,
            'teacher, forward': teacher,
            'student, forward and backward': student,
            'student with taps, forward and backward': student_with_taps,
            'calibration, forward and backward': calibration,
        }

    def _optimizer_step(self) -> None:
        scaler = getattr(self.optimizer, 'loss_scaler', None)
        if scaler is not None and scaler.is_enabled():
            # It has to have seen a loss before its first step.
            scaler.scale(torch.zeros((), device=self.ready['inputs'].device))
        self.optimizer.step()

    def _amp(self) -> contextlib.AbstractContextManager:
        return self.optimizer.optim_context(self.model)


# -------------------------------------------------------------- the profile


@contextlib.contextmanager
def _ranges(job: Job) -> Iterator[None]:
    """Names what the step calls, by PyTorch's ``record_function``."""
    model, optimizer = job.model, job.optimizer
    distiller = model.distiller
    named = [
        (model.data_preprocessor, 'forward', 'data'),
        (model.teacher, 'forward', 'teacher'),
        (model.student, 'forward', 'student forward'),
        (
            distiller.connectors['calibration'],
            'forward_train',
            'calibration forward',
        ),
        (distiller, 'compute_distill_losses', 'loss'),
        (optimizer, 'backward', 'backward'),
        (optimizer, 'step', 'optimizer'),
        (optimizer, 'zero_grad', 'optimizer'),
    ]

    def wrapped(call: Callable, label: str) -> Callable:
        def inside(*args, **kwargs):
            with torch.profiler.record_function(f'range:{label}'):
                return call(*args, **kwargs)

        return inside

    for owner, name, label in named:
        # On the instance, hiding the method of its class.
        owner.__dict__[name] = wrapped(getattr(owner, name), label)
    try:
        yield
    finally:
        for owner, name, _ in named:
            del owner.__dict__[name]


def profile(job: Job, folder: Path, on_gpu: bool) -> dict[str, Any]:
    """Milliseconds of a step by range and kind of kernel.

    Kernels are told apart by where the call was made that launched them:
    autograd launches from a thread of its own, while the range of the
    backward pass is open. Without a GPU, the operators' own times.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with _ranges(job):
        job.step()
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(PROFILED_STEPS):
                job.step()
            if on_gpu:
                torch.cuda.synchronize()
    path = folder / 'job_step_trace.json'
    profiler.export_chrome_trace(str(path))
    events = json.loads(path.read_text())['traceEvents']
    path.unlink()  # tens of MiB
    events = [event for event in events if event.get('ph') == 'X']
    ranges = sorted(
        (event['ts'], event['ts'] + event['dur'], event['name'][6:])
        for event in events
        if event.get('cat') == 'user_annotation'
        and event['name'].startswith('range:')
    )
    pieces = _kernels(events) if on_gpu else _own_times(events)
    table = {r: dict.fromkeys(KINDS, 0.0) for r in RANGES}
    slowest: dict[str, list] = collections.defaultdict(lambda: [0.0, 0])
    for name, launched, us in pieces:
        ms = us / 1e3 / PROFILED_STEPS
        table[_innermost(ranges, launched)][kind_of(name)] += ms
        slowest[name[:100]][0] += ms
        slowest[name[:100]][1] += 1
    top = sorted(slowest.items(), key=lambda item: -item[1][0])[:25]
    return dict(
        table=table,
        kernel_ms=sum(sum(row.values()) for row in table.values()),
        launches=len(pieces) / PROFILED_STEPS,
        slowest=[
            dict(name=n, ms=ms, calls=count / PROFILED_STEPS)
            for n, (ms, count) in top
        ],
    )


def _innermost(ranges: list[tuple], moment: float) -> str:
    """The range that was opened last of those around a moment."""
    found = 'rest'
    for start, end, label in ranges:
        if start > moment:
            break
        if moment < end:
            found = label
    return found


def _kernels(events: list[dict]) -> list[tuple[str, float, float]]:
    """(name, time of the launch, us on the GPU) of all kernels and copies."""
    launches = {
        event['args']['correlation']: event['ts']
        for event in events
        if event.get('cat') in ('cuda_runtime', 'cuda_driver')
        and 'correlation' in event.get('args', {})
    }
    return [
        (
            event['name'],
            launches.get(event['args'].get('correlation'), -1.0),
            event['dur'],
        )
        for event in events
        if event.get('cat') in ('kernel', 'gpu_memcpy', 'gpu_memset')
    ]


def _own_times(events: list[dict]) -> list[tuple[str, float, float]]:
    """(name, start, us without the operators inside) of all operators."""
    threads: dict[Any, list[dict]] = collections.defaultdict(list)
    for event in events:
        if event.get('cat') == 'cpu_op':
            threads[event['tid']].append(event)
    found = []
    for calls in threads.values():
        calls.sort(key=lambda event: (event['ts'], -event['dur']))
        outer: list[list] = []
        for call in calls:
            while outer and outer[-1][3] <= call['ts']:
                outer.pop()
            if outer:
                outer[-1][2] -= call['dur']
            end = call['ts'] + call['dur']
            outer.append([call['name'], call['ts'], call['dur'], end])
            found.append(outer[-1])
    return [(name, start, max(us, 0.0)) for name, start, us, _ in found]


# --------------------------------------------------------------- everything


def measure(context: Context, save: Callable[[dict], None]) -> None:
    """Measures step, parts and profile, one after the other.

    Args:
        context: of the part.
        save: called with all figures so far.
    """
    job = Job(context.tiny, context.device)
    seconds = 0.05 if context.tiny else 1.0
    step_ms = wall_ms(job.step, seconds)
    found: dict[str, Any] = dict(
        batch=job.batch,
        step_ms=step_ms,
        images_per_second=1e3 * job.batch / step_ms,
        peak_mib=peak_mib(job.step),
        parameters=_count(job.model.student),
        optimizer_groups=len(job.optimizer.param_groups),
        parts_ms={},
    )
    save(found)
    for name, part in job.parts().items():
        found['parts_ms'][name] = wall_ms(part, seconds)
        save(found)
    profiled = profile(job, context.out, not context.tiny)
    found.update(profiled, busy=profiled['kernel_ms'] / step_ms)
    save(found)


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def markdown(found: dict[str, Any]) -> list[str]:
    """Step, parts, and a table of ranges and kinds."""
    memory = found['peak_mib']
    lines = [
        f'A step of {found["batch"]} images: {found["step_ms"]:.1f} ms, '
        f'{found["images_per_second"]:.0f} images/s'
        + ('' if memory is None else f', {memory:.0f} MiB at its peak')
        + f'; {found["optimizer_groups"]} groups of parameters.',
        '',
        '| part, measured alone | ms | share of the step |',
        '|---|---|---|',
    ]
    for name, ms in found['parts_ms'].items():
        lines.append(f'| {name} | {ms:.2f} | {ms / found["step_ms"]:.0%} |')
    if 'table' not in found:
        return lines
    lines += [
        '',
        f'{found["launches"]:.0f} kernels a step take '
        f'{found["kernel_ms"]:.1f} ms: the GPU is busy '
        f'{found["busy"]:.0%} of the time. Milliseconds by where they were '
        'launched and what they do:',
        '',
        f'| | {" | ".join(KINDS)} | all |',
        '|---' * (len(KINDS) + 2) + '|',
    ]
    table = dict(found['table'])
    table['all'] = {k: sum(row[k] for row in table.values()) for k in KINDS}
    for name, row in table.items():
        cells = [*row.values(), sum(row.values())]
        lines.append(f'| {name} | {" | ".join(f"{x:.2f}" for x in cells)} |')
    lines += ['', '| slowest kernels | ms | calls |', '|---|---|---|']
    for row in found['slowest'][:12]:
        name = row['name'].replace('|', '/')
        lines.append(f'| `{name}` | {row["ms"]:.2f} | {row["calls"]:.0f} |')
    return lines
