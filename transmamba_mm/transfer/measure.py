# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What only a running teacher tells: activations, changes, mean tokens.

Whatever is measured, the teacher is as it was afterwards, and so are the
random numbers of the process. The images are the same in every process and
in ``tools/transfer_plan.py``.
"""

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Optional

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import worker_init_fn
from mmengine.logging import MessageHub, print_log
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, Subset

from transmamba_mm.contract import (
    EpochDependent,
    Teacher,
    TeacherError,
    read_teacher,
)
from transmamba_mm.contract.answers import IGNORED
from transmamba_mm.contract.roles import HIDDEN, INNER, RESIDUAL, split_role
from transmamba_mm.contract.sites import MIXER_INPUTS, Captured
from transmamba_mm.contract.teacher import Scorer

from .importance import axis_name, score_changes
from .plan import TransferError

#: ViT's own fine-tuning (arXiv 2010.11929, B.1.1). Without weight decay,
#: which moves weights by their size, and not AdamW, whose steps are of nearly
#: one size everywhere: both would hide what the data changes.
FINE_TUNING = dict(
    optimizer=dict(type='SGD', lr=3e-3, momentum=0.9),
    clip_grad=dict(max_norm=1.0),
)


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Gives a model its tensors, gradient flags and modes back at the end."""
    parameters = list(model.parameters())
    tensors = [*parameters, *model.buffers()]
    values = [tensor.detach().clone() for tensor in tensors]
    flags = [parameter.requires_grad for parameter in parameters]
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, values):
                tensor.copy_(value)
        for parameter, flag in zip(parameters, flags):
            parameter.requires_grad_(flag)
            parameter.grad = None
        for module, mode in modes:
            module.training = mode


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds all random numbers; at the end they go on where they were."""
    states = random.getstate(), np.random.get_state()
    devices = [device] if device.type == 'cuda' else []
    with torch.random.fork_rng(devices):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def draw_batches(
    dataloader: DataLoader, num: int, seed: int, share: float = 1.0
) -> DataLoader:
    """Batches of a random share of a loader's images, reread when used up.

    Args:
        dataloader (DataLoader): The loader; it is not advanced.
        num (int): Number of batches.
        seed (int): Seed of the draw, and of the loader's workers.
        share (float): Share of the images in (0, 1]. Defaults to 1.

    Returns:
        DataLoader: The batches.

    Raises:
        TransferError: If ``num`` or ``share`` is out of range.
    """
    if num < 1 or not 0 < share <= 1:
        raise TransferError(
            f'at least one batch of a share in (0, 1] of the training data '
            f'is needed, got {num} batches of {share}'
        )
    data = dataloader.dataset
    if isinstance(data, EpochDependent):
        data.set_epoch(0)  # a training has not begun, which tells it
    total, size = len(data), dataloader.batch_size or 32
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(total, generator=generator)
    part = Subset(data, drawn[: max(1, round(share * total))].tolist())
    return DataLoader(
        part,
        size,
        sampler=RandomSampler(
            part, num_samples=num * size, generator=generator
        ),
        num_workers=dataloader.num_workers,
        collate_fn=dataloader.collate_fn,
        worker_init_fn=partial(
            worker_init_fn,
            num_workers=dataloader.num_workers,
            rank=0,
            seed=seed,
        ),
        generator=generator,
    )


# ------------------------------------------------------------ fine-tuning


def collect_changes(
    model: nn.Module,
    batches: Iterable[dict[str, Any]],
    backbone: Optional[str] = None,
    optim_wrapper: Optional[dict] = None,
) -> dict[str, Tensor]:
    """Scores channels by how little a short fine-tuning changes them.

    The paper's criterion (TransMamba §3.2) where the weights that a teacher
    was fine-tuned from are not at hand.

    Args:
        model (nn.Module): The teacher, a classifier.
        batches (Iterable[dict]): Preprocessed batches, one for each step:
            ``inputs`` (B, 3, H, W) and labelled ``data_samples``.
        backbone (str, optional): Name of the Transformer's module, for
            models that hold several. Defaults to None, the only one.
        optim_wrapper (dict, optional): Config of MMEngine's optimizer
            wrapper. Defaults to None, :data:`FINE_TUNING`.

    Returns:
        dict[str, Tensor]: Scores by axis name, for
        :func:`~.importance.score_channels`.

    Raises:
        TransferError: If the model is no classifier, there is no batch, a
            label is beyond its classes, or the loss is not finite.
    """
    try:
        Scorer(model)
    except TeacherError as error:
        raise TransferError(
            f"importance='least_changed' would fine-tune the teacher, but "
            f'{error}; or give reference_ckpt, or choose another importance'
        ) from error

    def read() -> Any:
        state = model.state_dict().items()
        return read_teacher({k: v.cpu().clone() for k, v in state}, backbone)

    before, start, images, losses = read(), time.perf_counter(), 0, []
    with restored(model):
        nn.Module.train(model)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        wrapper = build_optim_wrapper(model, optim_wrapper or FINE_TUNING)
        # Not the run's, whose log would tell norms of these gradients.
        wrapper.message_hub = MessageHub('fine-tuning')
        for batch in map(_labelled, batches):
            if not batch['data_samples']:
                continue
            _check_labels(batch['data_samples'], before.tensors)
            with wrapper.optim_context(model):
                found = model(**batch, mode='loss')
            loss = model.parse_losses(found)[0]
            wrapper.update_params(loss)
            losses.append(loss.item())
            images += len(batch['data_samples'])
        after = read()
    if not losses:
        raise TransferError('no calibration batch was given')
    if not np.isfinite(losses).all():
        raise TransferError(
            'the teacher diverged in the fine-tuning that measures '
            "importance='least_changed': lower its learning rate "
            '(fine_tune=dict(optim_wrapper=...))'
        )
    print_log(
        f"importance='least_changed': fine-tuned the teacher for "
        f'{len(losses)} steps on {images:,} images in '
        f'{time.perf_counter() - start:.1f} s (loss {losses[0]:.4g} to '
        f'{losses[-1]:.4g}), then gave it its weights back',
        logger='current',
    )
    return score_changes(before, after)


def _labelled(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch without the images that have no label."""
    samples = batch['data_samples']
    kept = [
        i
        for i, sample in enumerate(samples)
        if 'gt_label' not in sample or (sample.gt_label != IGNORED).all()
    ]
    if len(kept) == len(samples):
        return batch
    return dict(
        batch,
        inputs=batch['inputs'][kept],
        data_samples=[samples[i] for i in kept],
    )


def _check_labels(samples: Iterable[Any], tensors: dict) -> None:
    """A label beyond the classes would stop a GPU without a word."""
    head = tensors.get('head.weight')
    labels = [int(s.gt_label.max()) for s in samples if 'gt_label' in s]
    if head is not None and labels and max(labels) >= len(head):
        raise TransferError(
            f'the training data has the label {max(labels)}, but the teacher '
            f"has {len(head)} classes, so importance='least_changed' cannot "
            f'fine-tune it: give reference_ckpt, or choose another importance'
        )


# ------------------------------------------------------------ observation


def _mean(value: Tensor) -> Tensor:
    """Mean over all but the last dimension, on the CPU."""
    return value.float().flatten(0, -2).mean(0).cpu()


def _run(
    model: nn.Module,
    batches: Iterable[Tensor],
    hooks: Iterable[Callable[[], Any]],
    after: Callable[[], None] = lambda: None,
) -> None:
    """Runs a model in eval mode with hooks, then removes them."""
    handles, seen = [register() for register in hooks], 0
    try:
        with restored(model):
            # nn.Module's own: some backbones' eval() returns None.
            nn.Module.train(model, False)
            for images in batches:
                model(images)
                after()
                seen += 1
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise TransferError('no calibration batch was given')


@torch.no_grad()
def collect_activations(
    model: nn.Module,
    batches: Iterable[Tensor],
    backbone: Optional[str] = None,
) -> dict[str, Tensor]:
    """Mean absolute activation per channel of a teacher on calibration images.

    Args:
        model (nn.Module): The teacher; called as ``model(images)``.
        batches (Iterable[Tensor]): Image batches (B, 3, H, W), preprocessed.
        backbone (str, optional): Name of the Transformer's module, for
            models that hold several. Defaults to None, the only one.

    Returns:
        dict[str, Tensor]: Scores by axis name, for
        :func:`~.importance.score_channels`.

    Raises:
        TransferError: If there is no batch.
    """
    teacher = Teacher(model, backbone)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = defaultdict(int)
    # What enters each of these is the activation of that axis.
    wanted = {
        'mixer_norm.weight': RESIDUAL,
        'final_norm.weight': RESIDUAL,
        'mixer_out.weight': INNER,
        'ffn_out.weight': HIDDEN,
    }

    def add(name: str, value: Tensor) -> None:
        value = _mean(value.abs())
        # Normalised, so that deep layers do not outweigh early ones.
        value = value / value.mean().clamp(min=1e-12)
        sums[name] = sums[name] + value if name in sums else value
        counts[name] += 1

    def watch(role: str) -> Any:
        layer, kind = split_role(role)
        name = axis_name(wanted[kind], layer)
        qkv = f'layers.{layer}.qkv.weight'
        if wanted[kind] == INNER and qkv in teacher.roles:
            attention = teacher.module(qkv)
            if isinstance(attention, nn.MultiheadAttention):
                # It never calls its projection, so this is done again.
                return attention.register_forward_pre_hook(
                    lambda module, args: add(name, _unprojected(module, *args))
                )
        return teacher.module(role).register_forward_pre_hook(
            lambda _, args: add(name, args[0])
        )

    roles = [role for role in teacher.roles if split_role(role)[1] in wanted]
    _run(model, batches, [partial(watch, role) for role in roles])
    return {name: total / counts[name] for name, total in sums.items()}


def _unprojected(
    module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """What PyTorch's attention projects, (L, B, C) or (B, L, C)."""
    if module.batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    return F.multi_head_attention_forward(
        query,
        key,
        value,
        module.embed_dim,
        module.num_heads,
        module.in_proj_weight,
        module.in_proj_bias,
        None,
        None,
        False,
        0.0,
        torch.eye(module.embed_dim).to(query),
        None,
        training=False,
        need_weights=False,
    )[0]


@torch.no_grad()
def collect_mixer_inputs(
    model: nn.Module,
    batches: Iterable[Tensor],
    backbone: Optional[str] = None,
) -> list[Tensor]:
    """The mean normalised patch token that each layer's attention reads.

    Args:
        model (nn.Module): See :func:`collect_activations`.
        batches (Iterable[Tensor]): See there.
        backbone (str, optional): See there.

    Returns:
        list[Tensor]: (C,) for each layer.

    Raises:
        TransferError: If there is no batch.
    """
    teacher = Teacher(model, backbone)
    seen: dict[str, Captured] = {}
    means: list[list[Tensor]] = [[] for _ in range(teacher.num_layers)]

    def watch(name: str, module: nn.Module) -> Any:
        def keep(_, inputs: tuple, output: Any) -> None:
            seen[name] = Captured(inputs, output)

        return module.register_forward_hook(keep)

    def after() -> None:
        for record in teacher.record(MIXER_INPUTS, seen):
            means[record.layer].append(_mean(record.tokens))

    modules = teacher.modules_of(MIXER_INPUTS).items()
    hooks = [partial(watch, name, module) for name, module in modules]
    _run(model, batches, hooks, after)
    return [torch.stack(each).mean(0) for each in means]
