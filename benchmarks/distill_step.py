# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A distillation step beside its unavoidable parts.

Run from the repository root, with the package installed::

    OMP_NUM_THREADS=1 python benchmarks/distill_step.py --json step.json

The parts, each measured alone: the teacher's forward pass, the student's
forward and backward pass, and the calibration MLPs forward and backward on
tokens of the right shape. The student is measured twice, plain and with its
taps on: showing four scan directions instead of their sum means projecting
four times as many tokens, forward and backward, whoever asks for them. The
ratio to the parts with taps is what recording, calibration, permutations,
cosines and weights add; the ratio to the plain parts is the whole price.
Hidden states and logits are measured beside it, with the teacher running (the
ratio to teacher and student is the whole price) and with its records read from
a cache (the ratio to the plain student). Times are CPU time on one thread.
"""

import tempfile

import common
import torch
from mmengine.registry import init_default_scope
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from transmamba_mm.contract import KeptChannels
from transmamba_mm.distill.teacher_cache import TeacherCache
from transmamba_mm.registry import MODELS

# name: (teacher arch, teacher width, student arch, ffn_ratio, image, patch,
# batch)
CASES = {
    'deit-tiny -> pmamba-tiny, 224, batch 8': dict(
        teacher='deit-tiny', width=192, student='pmamba-tiny', batch=8
    ),
    'deit-small -> pmamba-tiny, 224, batch 8': dict(
        teacher='deit-small', width=384, student='pmamba-tiny', batch=8
    ),
    'deit-tiny -> pmamba-tiny, 32 (patch 4), batch 32': dict(
        teacher='deit-tiny',
        width=192,
        student='pmamba-tiny',
        batch=32,
        size=dict(img_size=32, patch_size=4),
    ),
}
QUICK = ('deit-tiny -> pmamba-tiny, 32 (patch 4), batch 32',)


PAPER = dict(
    type='transmamba.MethodDistiller',
    methods=[dict(type='transmamba.AdaptiveBidirectional')],
)
HIDDEN_AND_LOGITS = dict(
    type='transmamba.MethodDistiller',
    methods=[
        dict(type='transmamba.HiddenStates'),
        dict(type='transmamba.LogitsKD'),
    ],
)


def build(distiller, teacher, width, student, size=None, **_) -> nn.Module:
    """Builds the distillation model of one case, teacher untrained."""
    size = size or dict(img_size=224, patch_size=16)
    model = MODELS.build(
        dict(
            type='transmamba.TransMambaDistill',
            architecture=dict(
                type='ImageClassifier',
                backbone=dict(
                    type='transmamba.PlainMamba', arch=student, **size
                ),
                head=dict(
                    type='LinearClsHead', num_classes=100, in_channels=192
                ),
            ),
            teacher=dict(
                type='ImageClassifier',
                backbone=dict(type='VisionTransformer', arch=teacher, **size),
                head=dict(
                    type='VisionTransformerClsHead',
                    num_classes=100,
                    in_channels=width,
                ),
            ),
            distiller=distiller,
        )
    )
    for module in model.modules():
        if isinstance(module, KeptChannels):
            module.take({192: torch.arange(192)})  # as subcloning would
    return model


def measure(case: dict, rounds: int) -> dict[str, float]:
    """Times the step and its parts, interleaved; medians in ms."""
    model = build(PAPER, **case).train()
    side = case.get('size', {}).get('img_size', 224)
    images = torch.randn(case['batch'], 3, side, side)
    samples = [DataSample().set_gt_label(i % 100) for i in range(len(images))]
    grid = model.student.backbone.patch_embed.init_out_size
    mlps = model.distiller.connectors['calibration'].mlps
    taps = [
        torch.randn(
            len(images), grid[0] * grid[1], mlp.in_channels, requires_grad=True
        )
        for mlp in mlps
    ]

    recipe = build(HIDDEN_AND_LOGITS, **case).train()

    def backward(losses: dict) -> None:
        total = sum(v for k, v in losses.items() if 'loss' in k)
        total.backward()
        model.zero_grad()
        recipe.zero_grad()

    def teacher() -> None:
        with torch.no_grad():
            model.teacher(images, mode='tensor')

    def student() -> None:
        backward(model.student(images, samples, mode='loss'))

    def recipe_step() -> None:
        backward(recipe(images, samples, mode='loss'))

    recorders = model.distiller.student_recorders

    def student_with_taps() -> None:
        with recorders:
            losses = model.student(images, samples, mode='loss')
        seen = next(iter(recorders.recorders.values())).get_record_data()
        outs = [losses['loss'], *(record.tokens for record in seen)]
        torch.autograd.backward(outs, [torch.ones_like(out) for out in outs])
        model.zero_grad()

    def calibration() -> None:
        outs = [mlp(tap) for mlp, tap in zip(mlps, taps)]
        torch.autograd.backward(outs, [torch.ones_like(out) for out in outs])
        model.zero_grad()

    def step() -> None:
        backward(model(images, samples, mode='loss'))

    with tempfile.TemporaryDirectory() as folder:
        cache = open_cache(folder, recipe, images, samples)

        def cached_step() -> None:
            recipe.branch.cache = cache
            recipe_step()
            recipe.branch.cache = None

        return common.interleaved(
            dict(
                teacher=teacher,
                student=student,
                student_taps=student_with_taps,
                mlps=calibration,
                step=step,
                hidden_and_logits=recipe_step,
                hidden_and_logits_cached=cached_step,
            ),
            rounds=rounds,
            slow_rounds=rounds,
        )


def open_cache(
    folder: str, model: nn.Module, images: Tensor, samples: list
) -> TeacherCache:
    """Keeps what the teacher of a model gives for a batch."""
    for index, sample in enumerate(samples):
        sample.set_metainfo(
            dict(sample_idx=index, augment_view=0, image_crc=1)
        )
    cache = TeacherCache(folder, len(samples), 1)
    batch = dict(inputs=images[:1], data_samples=samples[:1])
    model.branch.open_cache(cache, model.distiller, lambda: batch, {})
    model(images, samples, mode='loss')
    model.branch.close_cache()
    return cache


def main() -> None:
    """Prints one table per case."""
    args = common.parse_args(__doc__)
    torch.set_num_threads(1)
    init_default_scope('mmpretrain')
    results = {}
    for name in QUICK if args.quick else CASES:
        figures = measure(CASES[name], rounds=3 if args.quick else 7)
        other = figures['teacher'] + figures['mlps']
        ratios = {
            'step / parts with taps': figures['step']
            / (other + figures['student_taps']),
            'step / plain parts': figures['step']
            / (other + figures['student']),
            'hidden and logits / teacher and student': figures[
                'hidden_and_logits'
            ]
            / (figures['teacher'] + figures['student']),
            'hidden and logits, cached / student': figures[
                'hidden_and_logits_cached'
            ]
            / figures['student'],
        }
        common.print_table(name, figures, 'step', 'ms')
        for label, ratio in ratios.items():
            print(f'  {label}: {ratio:.3f}')
        results[name] = {**figures, **ratios}
    common.write_json(args.json, results)


if __name__ == '__main__':
    main()
