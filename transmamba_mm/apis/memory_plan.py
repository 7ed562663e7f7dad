# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""How much memory a training run needs on each GPU, without running it."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any, Optional

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from transmamba_mm.checks import check_int
from transmamba_mm.contract import MambaStudent, sides_of
from transmamba_mm.distill import TransMambaDistill
from transmamba_mm.engine.full_shard import sharded_units
from transmamba_mm.models import TransLlava, VideoTextRetriever
from transmamba_mm.ops import selected_backend
from transmamba_mm.registry import MODELS

from .shapes import ShapesAlone, on_meta, without_values

#: Ways to share a model among GPUs.
STRATEGIES = ('ddp', 'fsdp', 'zero2', 'zero3')
# Optimizer wrappers of mixed precision, by the end of their names.
_AMP = 'AmpOptimWrapper'
_WRAPPER_SETTINGS = ('loss_scale', 'dtype', 'use_fsdp')


class MemoryPlanError(ValueError):
    """A config does not tell what a plan needs to know."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on each GPU.

    Attributes:
        gpus (int): Number of GPUs.
        strategy (str): One of :data:`STRATEGIES`.
        batch (int): Samples on each GPU.
        sample (str): What a sample is.
        weights (int): Of all but the teacher, trained or not, with buffers.
        teacher (int): Weights of the teacher.
        gradients (int): Of what is trained.
        optimizer (int): State of the optimizer.
        average (int): The copy that an ``EMAHook`` keeps.
        exchange (int): What the strategy gathers or sends at a time.
        activations (int): The most that a step holds beside all that.
        activations_with_cp (int | None): The same where the student keeps
            the inputs of its blocks alone, ``with_cp=True``. None without a
            student.
    """

    gpus: int
    strategy: str
    batch: int
    sample: str
    weights: int
    teacher: int
    gradients: int
    optimizer: int
    average: int
    exchange: int
    activations: int
    activations_with_cp: Optional[int]

    @property
    def parts(self) -> dict[str, int]:
        """dict[str, int]: What adds up to the total."""
        names = (
            *('weights', 'teacher', 'gradients', 'optimizer', 'average'),
            *('exchange', 'activations'),
        )
        return {name: getattr(self, name) for name in names}

    @property
    def total(self) -> int:
        """int: Bytes, without what the allocator and CUDA itself hold."""
        return sum(self.parts.values())

    def table(self) -> str:
        """The plan, in lines for people."""
        lines = [
            f'each of {self.gpus} GPUs, {self.strategy}, {self.batch} samples '
            f'of {self.sample}'
        ]
        for name, size in {**self.parts, 'total': self.total}.items():
            lines.append(f'{name:<12}{size / 2**30:>10.3f} GiB{size:>18,}')
        if self.activations_with_cp is not None:
            lines.append(
                f'with_cp=True of the student makes the activations '
                f'{self.activations_with_cp / 2**30:.3f} GiB'
            )
        return '\n'.join(lines)

    def dump(self, path: str) -> None:
        """Writes the plan as JSON."""
        content = {**asdict(self), 'total': self.total}
        with open(path, 'w', encoding='utf-8') as file:
            json.dump(content, file, indent=1)
            file.write('\n')


def plan_memory(
    cfg: Config,
    gpus: int = 1,
    strategy: Optional[str] = None,
    batch: Optional[int] = None,
    shape: Optional[Sequence[int]] = None,
    length: Optional[int] = None,
) -> MemoryPlan:
    """Plans the memory of a training run.

    The model of the config makes a step of training on tensors that have
    shapes and no values; the most that is held at a time is what counts.
    Weights, gradients and the optimizer's state are exact. Activations are
    those of PyTorch's operators, each of which holds its inputs and outputs
    at once; of a distillation with a schedule the most expensive time counts.

    Args:
        cfg (Config): A config to train.
        gpus (int): Number of GPUs. Defaults to 1.
        strategy (str, optional): One of :data:`STRATEGIES`. Defaults to
            None, that of the config.
        batch (int, optional): Samples on each GPU. Defaults to None, that of
            the config.
        shape (Sequence[int], optional): Height and width of images, with the
            number of frames before them for videos. Defaults to None, what
            the pipeline of the config makes.
        length (int, optional): Tokens of a conversation, those of its image
            among them; all others are taken for answers. Of a text for a
            video, its tokens. Defaults to None, the most that the config
            allows.

    Returns:
        MemoryPlan: The plan.

    Raises:
        MemoryPlanError: If the config does not tell something.
    """
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    strategy = strategy or strategy_of(cfg)
    if strategy not in STRATEGIES:
        raise MemoryPlanError(
            f'the strategy must be one of {", ".join(STRATEGIES)}, got '
            f'{strategy!r}'
        )
    given = dict(gpus=gpus, batch=batch, length=length)
    given.update((f'shape[{i}]', side) for i, side in enumerate(shape or ()))
    for name, number in given.items():
        if number is not None:
            check_int(name, number)
    for name in ('train_dataloader', 'optim_wrapper'):
        if not cfg.get(name):
            raise MemoryPlanError(f'the config has no {name}')
    sharing = _Sharing(gpus, strategy, cfg.get('strategy') or {})
    with on_meta():
        model = MODELS.build(_model_cfg(cfg))
    step = _Step(model.train(), cfg, batch, shape, length)
    student, teacher = sides_of(model)
    everything = _tensors(model)
    taught = [] if teacher is None else _tensors(teacher)
    known = {id(x) for x in taught}
    own = [x for x in everything if id(x) not in known]
    trained = [x for x in everything if x.requires_grad]
    state = step.optimizer_state()
    exchange = sharing.exchange(model, trained)
    step.cast(sharing.compute_dtype)
    activations, with_cp = step.activations(), None
    blocks = [m for m in student.modules() if isinstance(m, MambaStudent)]
    for each in blocks:
        each.with_cp = True
    if blocks:
        with_cp = step.activations()
    averaged = any(
        str(hook.get('type')).endswith('EMAHook')
        for hook in cfg.get('custom_hooks') or ()
    )
    return MemoryPlan(
        gpus=gpus,
        strategy=strategy,
        batch=step.batch,
        sample=step.sample,
        weights=sharing.weights(own),
        teacher=sharing.weights(taught),
        gradients=sharing.gradients(trained),
        optimizer=sharing.optimizer(state, trained),
        average=averaged * sharing.weights(everything),
        exchange=exchange,
        activations=activations,
        activations_with_cp=with_cp,
    )


def strategy_of(cfg: Config) -> str:
    """How a config shares a model among GPUs."""
    found = cfg.get('strategy') or {}
    kind = str(found.get('type'))
    if 'DeepSpeed' in kind:
        stage = (found.get('zero_optimization') or {}).get('stage')
        return f'zero{stage}'
    return 'fsdp' if kind.endswith('FullyShardStrategy') else 'ddp'


def _model_cfg(cfg: Config) -> dict:
    model = _without_files(deepcopy(cfg.model))
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return model


def _without_files(cfg: Any) -> Any:
    """A model config that needs no weights and no vocabulary to build."""
    if isinstance(cfg, (list, tuple)):
        return [_without_files(each) for each in cfg]
    if not isinstance(cfg, dict):
        return cfg
    for key, value in cfg.items():
        cfg[key] = _without_files(value)
    if isinstance(cfg.get('tokenizer'), dict):
        cfg['tokenizer'] = dict(type='transmamba.ByteTokenizer')
    if str(cfg.get('type')).endswith('TransformersCausalLM'):
        cfg['load_pretrained'] = False
    return cfg


def _settings(value: Any, names: Iterable[str]) -> Iterator[Any]:
    """Values of some settings in a nested config, in order."""
    items: Iterable = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = ((None, each) for each in value)
    for key, each in items:
        if key in names and each is not None:
            yield each
        else:
            yield from _settings(each, names)


# ------------------------------------------------------------------- bytes


def _tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once."""
    return [*model.parameters(), *model.buffers()]


def _bytes(tensors: Iterable[Tensor], width: int = 8) -> int:
    """Bytes of tensors, of at most ``width`` for each number."""
    return sum(x.numel() * min(x.element_size(), width) for x in tensors)


@dataclass(frozen=True)
class _Sharing:
    """What is where, by strategy.

    Attributes:
        gpus (int): Number of GPUs.
        strategy (str): One of :data:`STRATEGIES`.
        settings (Mapping): ``strategy`` of the config.
    """

    gpus: int
    strategy: str
    settings: Mapping

    @property
    def compute_dtype(self) -> Optional[torch.dtype]:
        """Of weights in a step; None for their own."""
        if self.strategy == 'fsdp':
            mixed = self.settings.get('mixed_precision') or {}
            half = mixed.get('param_dtype')
            return None if half is None else getattr(torch, half)
        if self.strategy != 'ddp':
            for kind, dtype in (
                ('bf16', torch.bfloat16),
                ('fp16', torch.float16),
            ):
                if (self.settings.get(kind) or {}).get('enabled'):
                    return dtype
        return None

    @property
    def _width(self) -> int:
        return 8 if self.compute_dtype is None else 2

    def _share(self, size: int) -> int:
        return math.ceil(size / self.gpus)

    def weights(self, tensors: Iterable[Tensor]) -> int:
        """DeepSpeed casts them, FSDP casts what it gathers."""
        if self.strategy == 'fsdp':
            return self._share(_bytes(tensors))
        size = _bytes(tensors, self._width)
        return self._share(size) if self.strategy == 'zero3' else size

    def gradients(self, trained: Iterable[Tensor]) -> int:
        if self.strategy == 'ddp':
            return _bytes(trained)
        if self.strategy == 'fsdp':
            return self._share(_bytes(trained))
        return self._share(_bytes(trained, self._width))

    def optimizer(self, state: int, trained: Iterable[Tensor]) -> int:
        """DeepSpeed keeps the weights that it has cast here as well."""
        if self.strategy == 'ddp':
            return state
        if self.strategy != 'fsdp' and self.compute_dtype is not None:
            state += _bytes(trained)
        return self._share(state)

    def exchange(self, model: nn.Module, trained: Iterable[Tensor]) -> int:
        """Buckets, and what is gathered at a time."""
        if self.gpus == 1:
            return 0
        gradients = _bytes(trained, self._width)
        if self.strategy == 'ddp':
            return gradients
        weights = _bytes(_tensors(model), self._width)
        if self.strategy == 'fsdp':
            layers, counted = [], set()
            for each in sharded_units(model):  # the inner ones first
                own = {id(x): x for x in _tensors(each)}
                new = [x for key, x in own.items() if key not in counted]
                layers.append(_bytes(new, self._width))
                counted.update(own)
            # What is in no layer is there all the time. Of the layers it is
            # the current one, the next one, and the gradient of one.
            return weights - sum(layers) + 3 * max(layers, default=0)
        zero = self.settings.get('zero_optimization') or {}
        width = 4 if self.compute_dtype is None else 2
        bucket = zero.get('reduce_bucket_size', 5e8) * width
        held = min(int(bucket), gradients)
        if self.strategy == 'zero3':
            live = zero.get('stage3_max_live_parameters', 1e9) * width
            held += min(int(live), weights)
        return held


# ---------------------------------------------------------------- the step


class _Step:
    """A step of training without values.

    Attributes:
        batch (int): Samples.
        sample (str): What a sample is.
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: Config,
        batch: Optional[int],
        shape: Optional[Sequence[int]],
        length: Optional[int],
    ) -> None:
        self._model = model
        self._optim_wrapper = dict(deepcopy(cfg.optim_wrapper))
        self._memory = ShapesAlone()
        selected_backend()  # loads kernels, outside of what is counted
        without_values(model, self._memory)
        pipelines = list(_settings(cfg.train_dataloader, ('pipeline',)))
        self.batch = batch or cfg.train_dataloader.batch_size
        shape = list(shape or _shape_of(pipelines))
        self._shape = shape if len(shape) > 1 else shape * 2
        self.sample = 'x'.join(map(str, self._shape))
        kind, self._length = sides_of(model)[0], 0
        self._talks = isinstance(kind, TransLlava)
        self._reads = isinstance(kind, VideoTextRetriever)
        if self._talks:
            self._length = length or kind.max_length or 2048
            self.sample += f' and text, {self._length} tokens in all'
            for module in model.modules():
                if isinstance(module, TransLlava):
                    module.max_length = self._length
        elif self._reads:
            words = list(_settings(pipelines, ('max_words',)))
            self._length = length or (words or [32])[-1]
            self.sample += f' and {self._length} tokens'

    def optimizer_state(self) -> int:
        """Bytes that the optimizer keeps from step to step."""
        wrapper = dict(self._optim_wrapper, type='OptimWrapper')
        for setting in _WRAPPER_SETTINGS:
            wrapper.pop(setting, None)
        with self._memory:
            for parameter in self._model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
            optimizer = build_optim_wrapper(self._model, wrapper).optimizer
            optimizer.step()
        return _bytes(
            value
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )

    def cast(self, dtype: Optional[torch.dtype]) -> None:
        """Lets the step run in another precision."""
        if dtype is not None:
            without_values(self._model, self._memory, dtype)

    def activations(self) -> int:
        """The most bytes that a step holds beside weights and gradients."""
        if not isinstance(self._model, TransMambaDistill):
            return self._held()
        schedule = self._model.schedule
        if schedule.constant:
            return self._held()
        held = []
        for moment in schedule.moments():
            schedule.progress = moment
            held.append(self._held())
        return max(held)

    def _held(self) -> int:
        amp = str(self._optim_wrapper.get('type')).endswith(_AMP)
        half = torch.autocast('cpu', dtype=torch.bfloat16)
        with self._memory as memory:
            for parameter in self._model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
            inputs, samples = self._data()
            before = memory.live
            memory.forget_peak()
            with half if amp else nullcontext():
                losses = self._model(inputs, samples, mode='loss')
            self._model.parse_losses(losses)[0].backward()
            return memory.peak - before

    def _data(self) -> tuple[Any, list[DataSample]]:
        """What the data preprocessor gives."""
        size = (self.batch, 3, *self._shape)
        dtype = next(self._model.parameters()).dtype
        inputs: Any = torch.zeros(size, dtype=dtype)
        samples = [DataSample() for _ in range(self.batch)]
        for sample in samples:
            if self._talks:
                sample.question = ''
                sample.gt_answer = 'x' * self._length
            elif self._reads:
                sample.tokens = torch.ones(1, self._length, dtype=torch.long)
            else:
                sample.set_gt_label(0)
        if self._talks:
            inputs = list(inputs.unsqueeze(1))
        return inputs, samples


def _shape_of(pipelines: Sequence) -> list[int]:
    """Height and width that pipelines make, frames before them."""
    sizes = list(_settings(pipelines, ('scale', 'crop_size')))
    frames = list(_settings(pipelines, ('max_frames', 'num_frames')))
    if not sizes:
        raise MemoryPlanError(
            'the pipeline does not tell the size of images: give the shape'
        )
    size = sizes[-1]
    size = [size, size] if isinstance(size, int) else list(size)
    return [*frames[-1:], *size]
