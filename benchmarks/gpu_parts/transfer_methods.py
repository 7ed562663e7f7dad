# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""How a student learns from a ViT in the part ``transfer``."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transmamba_mm.contract import read_teacher
from transmamba_mm.distill import (
    AdaptiveBidirectionalDistill,
    DirectionTapsRecorder,
    FeatureCalibration,
)
from transmamba_mm.registry import MODELS
from transmamba_mm.transfer import Subcloner

from .transfer_data import Images

METHODS = (
    'subclone only',
    'warm-up, hidden + KD',
    'hidden + KD',
    'paper',
    'scratch',
)
LR, WARM_UP_LR, TEACHER_LR = 1e-3, 4e-3, 1e-4
WARM_UP_SHARE = 0.25  # of the images, for the mixers alone
ALPHA = 0.5  # weight of the labels, in the paper's loss
LABELS, TEMPERATURE = 0.3, 2.0  # weight of the labels, beside KD


@dataclass(frozen=True)
class Plan:
    """Sizes of the study."""

    side: int = 224
    patch: int = 16
    dims: int = 192
    depth: int = 12
    batch: int = 64
    seen: int = 32_000
    teacher_epochs: int = 2

    @property
    def vit(self) -> dict[str, int]:
        """Of the teacher."""
        keys = ('side', 'patch', 'dims', 'depth')
        return {key: getattr(self, key) for key in keys}


TINY = Plan(32, 8, 16, 2, batch=4, seen=16, teacher_epochs=1)


# ----------------------------------------------------------------- training


def optimizer_of(modules: Sequence[nn.Module], lr: float):
    """AdamW without decay of vectors, positions and decay rates."""
    decayed, others = [], []
    for module in modules:
        for name, parameter in module.named_parameters():
            plain = parameter.dim() < 2 or name.endswith(
                ('pos_embed', 'cls_token', 'A_log')
            )
            (others if plain else decayed).append(parameter)
    groups = [
        dict(params=decayed, weight_decay=0.05),
        dict(params=others, weight_decay=0.0),
    ]
    return torch.optim.AdamW(groups, lr, fused=decayed[0].is_cuda)


def train(
    batches: Sequence[Tensor],
    loss_of: Callable[[Tensor], Tensor],
    modules: Sequence[nn.Module],
    lr: float,
) -> float:
    """Trains on batches of indices: 5 % warm-up, cosine, clipped gradients.

    Returns:
        float: The mean loss of the last tenth of the steps.
    """
    optimizer = optimizer_of(modules, lr)
    parameters = [
        p for group in optimizer.param_groups for p in group['params']
    ]
    steps = len(batches)
    warm_up = max(1, steps // 20)
    losses = []
    for step, index in enumerate(batches):
        if step < warm_up:
            rate = (step + 1) / warm_up
        else:
            done = (step - warm_up) / max(1, steps - warm_up)
            rate = 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group['lr'] = lr * rate
        loss = loss_of(index)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses[-max(1, steps // 10) :]).mean().item()


def order(
    count: int, seen: int, batch: int, seed: int, device
) -> list[Tensor]:
    """Batches of indices of ``seen`` images, epoch after epoch."""
    generator = torch.Generator().manual_seed(seed)
    epochs = [
        torch.randperm(count, generator=generator)
        for _ in range(math.ceil(seen / count))
    ]
    index = torch.cat(epochs)[:seen].to(device)
    return list(index.split(batch))


def amp(device: torch.device) -> contextlib.AbstractContextManager:
    return torch.autocast(device.type, torch.bfloat16)


@torch.no_grad()
def top1(forward: Callable[[Tensor], Tensor], images: Images) -> float:
    """Accuracy on all images, in percent."""
    device = images.labels.device
    right = 0
    for index in torch.arange(len(images), device=device).split(250):
        with amp(device):
            logits = forward(images.centre(index))
        right += (logits.argmax(1) == images.labels[index]).sum().item()
    return 100 * right / len(images)


# ------------------------------------------------------- teacher and student


@contextlib.contextmanager
def outputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects what modules return, in the order in which they run."""
    found: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda m, i, out: found.append(out))
        for module in modules
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def fine_tune(plan: Plan, teacher: nn.Module, images: Images) -> None:
    device = images.labels.device
    generator = torch.Generator(device).manual_seed(0)

    def loss_of(index: Tensor) -> Tensor:
        with amp(device):
            logits = teacher(images.augmented(index, generator))
        return F.cross_entropy(logits.float(), images.labels[index])

    seen = plan.teacher_epochs * len(images)
    teacher.train()
    train(
        order(len(images), seen, plan.batch, 0, device),
        loss_of,
        [teacher],
        TEACHER_LR,
    )
    teacher.eval().requires_grad_(False)


def make_student(plan: Plan, classes: int, seed: int) -> nn.Module:
    """A PlainMamba with all that a ViT of its size has, save attention."""
    torch.manual_seed(seed)
    return MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(
                type='transmamba.PlainMamba',
                arch=dict(embed_dims=plan.dims, num_layers=plan.depth),
                img_size=plan.side,
                patch_size=plan.patch,
                stem='patch',
                ffn_ratio=4,
                mixer_cfg=dict(d_state=8, expand=1, conv_size=3),
                init_cfg=[],
            ),
            head=dict(
                type='mmpretrain.LinearClsHead',
                num_classes=classes,
                in_channels=plan.dims,
            ),
        )
    )


def normalised_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared error over the variance of what is wanted, per channel."""
    wanted = wanted.detach().float()
    centred = wanted - wanted.mean((0, 1))
    return (found.float() - wanted).square().mean() / centred.square().mean()


class Study:
    """A teacher, a student and what it learns from.

    Args:
        plan: sizes.
        teacher: fine-tuned and frozen.
        images: to train on.
        seed: of the student, the order and the augmentation.
        subclone: whether the student starts from the teacher.
    """

    def __init__(
        self,
        plan: Plan,
        teacher: nn.Module,
        images: Images,
        seed: int,
        subclone: bool,
    ) -> None:
        self.device = images.labels.device
        self.teacher, self.images = teacher, images
        self.student = make_student(plan, teacher.num_classes, seed)
        self.coverage = 0.0
        if subclone:
            weights = read_teacher(teacher.state_dict())
            transfer = Subcloner(self.student, weights).plan()
            transfer.apply(self.student)
            self.coverage = transfer.coverage
        self.student.to(self.device).train()
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.grid = (plan.side // plan.patch,) * 2
        self.connector: Optional[nn.Module] = None

    def see(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Augmented images and their labels."""
        images = self.images.augmented(index, self.generator)
        return images, self.images.labels[index]

    def labels_only(self, index: Tensor) -> Tensor:
        """Cross-entropy."""
        images, labels = self.see(index)
        with amp(self.device):
            logits = self.student(images, mode='tensor')
        return F.cross_entropy(logits.float(), labels)

    def hidden_and_logits(self, index: Tensor) -> Tensor:
        """Each block's output like the teacher's; logits; labels."""
        images, labels = self.see(index)
        layers = self.student.backbone.layers
        with amp(self.device):
            with torch.no_grad(), outputs_of(self.teacher.blocks) as wanted:
                target = self.teacher(images).float() / TEMPERATURE
            with outputs_of(layers) as found:
                logits = self.student(images, mode='tensor').float()
        errors = [
            normalised_error(mine, theirs[:, 1:])
            for mine, theirs in zip(found, wanted)
        ]
        divergence = F.kl_div(
            (logits / TEMPERATURE).log_softmax(1),
            target.log_softmax(1),
            reduction='batchmean',
            log_target=True,
        )
        return (
            LABELS * F.cross_entropy(logits, labels)
            + (1 - LABELS) * TEMPERATURE**2 * divergence
            + torch.stack(errors).mean()
        )

    def mixers_alone(self, index: Tensor) -> Tensor:
        """Each mixer like the attention in its place, on its input."""
        images, _ = self.see(index)
        blocks = self.teacher.blocks
        errors = []
        with amp(self.device):
            with (
                torch.no_grad(),
                outputs_of([block.norm1 for block in blocks]) as inputs,
                outputs_of([block.attn for block in blocks]) as wanted,
            ):
                self.teacher(images)
            layers = self.student.backbone.layers
            for layer, tokens, theirs in zip(layers, inputs, wanted):
                mine = layer.mamba(tokens[:, 1:], self.grid)
                errors.append(normalised_error(mine, theirs[:, 1:]))
        return torch.stack(errors).mean()

    def make_paper_loss(self) -> Callable[[Tensor], Tensor]:
        """The loss of TransMamba; its MLPs are in :attr:`connector`."""
        backbone = self.student.backbone
        taps = DirectionTapsRecorder()
        taps.initialize(self.student)
        width = backbone.embed_dims
        self.connector = FeatureCalibration(
            width, width, len(backbone.layers), backbone.directions
        ).to(self.device)
        distance = AdaptiveBidirectionalDistill()

        def loss_of(index: Tensor) -> Tensor:
            images, labels = self.see(index)
            with amp(self.device):
                with torch.no_grad(), outputs_of([self.teacher.norm]) as seen:
                    self.teacher(images)
                with taps:
                    logits = self.student(images, mode='tensor')
                records = taps.get_record_data()
                records = self.connector.forward_train(records)
                ours = distance(records, seen[0][:, 1:])
            taps.reset_data_buffer()
            task = F.cross_entropy(logits.float(), labels)
            return ALPHA * task + (1 - ALPHA) * ours

        return loss_of

    def learn(self, method: str, batches: list[Tensor]) -> float:
        """Trains by a method of :data:`METHODS`; returns the last loss."""
        loss_of, modules = self.labels_only, [self.student]
        if method == 'warm-up, hidden + KD':
            first = int(len(batches) * WARM_UP_SHARE)
            mixers = [layer.mamba for layer in self.student.backbone.layers]
            train(batches[:first], self.mixers_alone, mixers, WARM_UP_LR)
            batches = batches[first:]
        if method.endswith('hidden + KD'):
            loss_of = self.hidden_and_logits
        elif method == 'paper':
            loss_of = self.make_paper_loss()
            modules = [self.student, self.connector]
        return train(batches, loss_of, modules, LR)
