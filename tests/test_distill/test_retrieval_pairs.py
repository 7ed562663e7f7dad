# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Every method on videos: a CLIP4Clip teaches a VideoMamba.

The teacher has 2x2 patches in each of 4 frames, the student 4x4. Expected
losses are computed frame by frame from plain hooks.
"""

import pytest
import torch
import torch.nn.functional as F
from distill_cases import METHODS, of_methods, total
from retrieval_models import (
    FRAMES,
    build_random,
    clip4clip_cfg,
    mamba_cfg,
    video_batch,
)

from transmamba_mm.contract import KeptChannels, ResizingDataPreprocessor
from transmamba_mm.distill import TransMambaDistill
from transmamba_mm.distill.teacher_cache import TeacherCache

CLOSE = dict(rtol=1e-4, atol=1e-5)
CONFIGS = {
    name: dict(config)
    for name, config in METHODS.items()
    # Exits score classes.
    if name != 'ofa'
}
CONFIGS['transmamba']['grid'] = (FRAMES, 2, 2)
LAYERS = {0: 0, 1: 2}


def distilled(*methods, dims=16, teacher=None, alpha=0.5):
    torch.manual_seed(0)
    model = TransMambaDistill(
        build_random(mamba_cfg(dims), seed=1),
        teacher or build_random(clip4clip_cfg()),
        of_methods(*methods),
        alpha=alpha,
    ).train()
    for module in model.modules():
        if isinstance(module, KeptChannels):
            module.take({dims: torch.arange(dims) + 16 - dims})
    return model


@pytest.mark.parametrize('dims', [16, 12])
@pytest.mark.parametrize('name', CONFIGS)
def test_methods_teach_the_video_encoder(name, dims):
    model = distilled(CONFIGS[name], dims=dims)
    losses = model.loss(*video_batch())
    loss = losses[f'distill.loss_{name}']
    assert loss.isfinite() and loss > 0
    loss.backward()
    grads = {
        key: parameter.grad
        for key, parameter in model.student.named_parameters()
        if parameter.grad is not None
    }
    assert any(
        key.startswith('backbone.layers') and grad.abs().sum() > 0
        for key, grad in grads.items()
    )
    # Only scores know of texts.
    texts = any(key.startswith('text_encoder') for key in grads)
    assert texts == (name in ('kl', 'hard_label', 'standardised_kl'))
    assert all(p.grad is None for p in model.teacher.parameters())


class Seen:
    """What plain hooks see of a pair, by the modules' own names."""

    def __init__(self, model):
        tower, student = model.teacher.backbone.model, model.student.backbone
        self.norm, self.blocks = tower.ln_post, tower.transformer.resblocks
        kept = {}

        def keep(module, inputs, output):
            kept[module] = inputs[0], output

        watched = [*student.layers]
        for block in self.blocks:
            watched += [block, block.ln_1, block.attn]
        handles = [x.register_forward_hook(keep) for x in watched]
        model.teacher(*video_batch(), mode='tensor')
        model.student(*video_batch(), mode='loss')
        for handle in handles:
            handle.remove()
        self.streams = [kept[x.ln_1][0] for x in self.blocks]
        self.mixed = [kept[x.attn][1][0] for x in self.blocks]
        self.layers = [kept[x][1] for x in self.blocks]
        self.student = [kept[x][1][:, 1:] for x in student.layers]


def per_video(tokens):
    """Patches (4, T h w, C) of those of frames, class tokens first."""
    return tokens.unflatten(0, (4, FRAMES))[:, :, 1:].flatten(1, 2)


def with_class(tokens):
    """The same behind the mean of the class tokens."""
    classes = tokens.unflatten(0, (4, FRAMES))[:, :, 0].mean(1, True)
    return torch.cat([classes, per_video(tokens)], dim=1)


def shrunk(tokens):
    """The student's patches on the teacher's grid."""
    maps = tokens.mT.unflatten(2, (FRAMES, 4, 4))
    return F.interpolate(maps, (FRAMES, 2, 2), mode='trilinear').flatten(2).mT


def relative(found, target):
    variance = target.flatten(0, 1).var(0, unbiased=False).mean()
    return (found - target).square().mean() / variance


def hidden(model, seen):
    return [
        relative(shrunk(seen.student[i]), per_video(seen.layers[j]))
        for i, j in LAYERS.items()
    ]


def mixer(model, seen):
    errors = []
    for i, j in LAYERS.items():
        block = model.student.backbone.layers[i]
        read = block.norm(with_class(seen.streams[j]))
        mixed = block.mixer(read, (FRAMES, 2, 2))
        errors.append(relative(mixed, with_class(seen.mixed[j])))
    return errors


def hint(model, seen):
    target = per_video(seen.norm(seen.layers[-1]))
    tokens = model.student.backbone.norm_f(seen.student[-1])
    (linear,) = model.distiller.connectors['hint_student'].maps.values()
    return [(shrunk(linear(tokens)) - target).square().mean()]


def released(model, seen):
    backbone = model.student.backbone
    classes = with_class(seen.norm(seen.layers[-1]))[:, 0]
    layers = [*seen.student, backbone.norm_f(seen.student[-1])]
    loss = 0.0
    for weight, tokens in zip((1, 2, 120), layers):
        scores = (tokens.mean(1) / 2).log_softmax(1)
        loss -= weight * ((classes / 2).softmax(1) * scores).sum(1).mean()
    return [loss]


def kl(model, seen):
    scores = []
    for each in (model.student, model.teacher):
        found = each(*video_batch(), mode='tensor')
        logits = each.head.logit_scale.exp() * found.texts @ found.videos.T
        scores.append((logits / 2).log_softmax(1))
    student, teacher = scores
    return [4 * (teacher.exp() * (teacher - student)).sum(1).mean()]


@pytest.mark.parametrize('expected', [hidden, mixer, hint, released, kl])
def test_losses_by_hand(expected):
    name = expected.__name__
    model = distilled(CONFIGS[name], alpha=0)
    found = model.loss(*video_batch())[f'distill.loss_{name}']
    with torch.no_grad():
        errors = expected(model, Seen(model))
    torch.testing.assert_close(found, sum(errors) / len(errors), **CLOSE)


def test_the_teacher_sees_its_own_normalisation_and_size():
    """Videos of 32 pixels in other units are the teacher's of 16."""
    theirs = dict(mean=[100.0, 110.0, 120.0], std=[60.0, 61.0, 62.0])
    ours = dict(mean=[90.0] * 3, std=[50.0] * 3)
    teacher = build_random(clip4clip_cfg())
    teacher.data_preprocessor = ResizingDataPreprocessor(16, **theirs)
    config = dict(mamba_cfg(img_size=32), data_preprocessor=ours)
    model = TransMambaDistill(
        build_random(config), teacher, of_methods(CONFIGS['kl'])
    )
    raw = torch.rand(2, 3, FRAMES, 32, 32) * 255
    seen = []
    teacher.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    mean, std = (torch.tensor(x).view(3, 1, 1, 1) for x in ours.values())
    losses = model.loss((raw - mean) / std, video_batch(2)[1])
    assert total(losses).isfinite()
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in theirs.values())
    for t in range(FRAMES):
        frame = (raw[:, :, t] - mean) / std
        frame = F.interpolate(frame, (16, 16), mode='bicubic', antialias=True)
        torch.testing.assert_close(seen[0][:, :, t], frame, **CLOSE)


def test_class_scores_are_no_site_of_retrievers():
    with pytest.raises(ValueError, match='is for classifiers'):
        distilled(METHODS['ofa'])


def test_scores_of_a_batch_are_not_cached(tmp_path):
    model = distilled(CONFIGS['kl'])
    cache = TeacherCache(str(tmp_path), num_samples=4, num_views=1)
    with pytest.raises(ValueError, match='which no teacher cache can hold'):
        model.branch.open_cache(cache, model.distiller, dict, {})
