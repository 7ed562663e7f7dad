# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Sites of retrieval models, and those of a teacher that runs per frame."""

import pytest
import torch
import torch.nn.functional as F
from helpers import build, pmamba_cfg, vit_cfg
from retrieval_models import (
    FRAMES,
    build_random,
    clip4clip_cfg,
    mamba_cfg,
    video_batch,
    vision_cfg,
)

from transmamba_mm.contract import (
    Embeddings,
    PerFrame,
    Student,
    Teacher,
    TeacherError,
)
from transmamba_mm.contract.sites import (
    EMBEDDINGS,
    LAYERS,
    LOGITS,
    MIXER_INPUTS,
    MIXERS,
    QKV,
    STREAMS,
    TOKENS,
    Captured,
)
from transmamba_mm.contract.teacher import Scorer
from transmamba_mm.distill import TransMambaDistill

SAME = dict(rtol=1e-5, atol=1e-6)


def record(side, site, run):
    """A site's record of one pass."""
    seen, handles = {}, []
    for name, module in side.modules_of(site).items():

        def keep(_, inputs, output, name=name):
            assert name not in seen
            seen[name] = Captured(inputs, output)

        handles.append(module.register_forward_hook(keep))
    run()
    for handle in handles:
        handle.remove()
    return side.record(site, seen)


# ------------------------------------------------------------- embeddings


@pytest.mark.parametrize('head', ['MeanPooling', 'SequenceTransformer'])
@pytest.mark.parametrize('of', ['student', 'teacher', 'unknown towers'])
def test_embeddings_and_logits(of, head):
    config = mamba_cfg(head=head) if of == 'student' else clip4clip_cfg(head)
    model, (videos, samples) = build_random(config), video_batch(texts=2)
    sides = {'student': Student, 'teacher': Teacher, 'unknown towers': Scorer}
    side = sides[of](model)

    def run():
        model(videos, samples, mode='tensor')

    found = record(side, EMBEDDINGS, run)
    model(videos, samples, mode='predict')
    texts = torch.cat([x.text_embeddings for x in samples])
    ours = torch.stack([x.video_embedding for x in samples])
    frames = torch.stack([x.frame_embeddings for x in samples])
    assert isinstance(found, Embeddings)
    torch.testing.assert_close(found.texts, texts, **SAME)
    torch.testing.assert_close(found.videos, ours, **SAME)
    torch.testing.assert_close(found.frames, frames, **SAME)
    for each in (texts, ours, frames):
        lengths = each.norm(dim=-1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths))
    wanted = [
        [True] * x.num_frames + [False] * (FRAMES - x.num_frames)
        for x in samples
    ]
    assert found.mask.tolist() == wanted
    scale = model.head.logit_scale.exp()
    logits = record(side, LOGITS, run)
    torch.testing.assert_close(logits, scale * texts @ ours.T, **SAME)


def test_embeddings_of_the_loss_carry_gradients():
    model, batch = build_random(mamba_cfg()).train(), video_batch()
    found = record(
        Student(model), EMBEDDINGS, lambda: model(*batch, mode='loss')
    )
    for each in (found.texts, found.videos, found.frames, found.logits):
        assert each.requires_grad


def test_classifiers_have_no_embeddings():
    with pytest.raises(ValueError, match='ImageClassifier has no embeddings'):
        Student(build(pmamba_cfg())).modules_of(EMBEDDINGS)
    for side in (Teacher, Scorer):
        with pytest.raises(TeacherError, match='has no embeddings'):
            side(build(vit_cfg())).modules_of(EMBEDDINGS)


def test_a_retriever_has_no_classifier_head():
    student = Student(build_random(mamba_cfg()))
    assert not any('head' in role for role in student.roles().values())
    with pytest.raises(ValueError, match='is for classifiers'):
        _ = student.num_classes


# --------------------------------------------------------------- per frame


def test_per_frame_equals_each_frame_for_itself():
    tower = build_random(vision_cfg())
    videos, _ = video_batch(3)
    found = PerFrame(tower)(videos)
    for t in range(FRAMES):
        expected = tower(videos[:, :, t])
        torch.testing.assert_close(found[:, t], expected, **SAME)


def test_per_frame_takes_backbones_and_no_images():
    backbone = dict(vit_cfg()['backbone'], type='mmpretrain.VisionTransformer')
    model = PerFrame(backbone)
    videos, _ = video_batch(2)
    assert model(videos).shape == (2, FRAMES, 16)
    with pytest.raises(ValueError, match='takes videos'):
        model(videos[:, :, 0])


@pytest.mark.parametrize(
    'site', [TOKENS, LAYERS, STREAMS, MIXERS, MIXER_INPUTS, QKV]
)
def test_sites_of_frames_are_joined(site):
    model, (videos, samples) = build_random(clip4clip_cfg()), video_batch(3)
    found = record(
        Teacher(model), site, lambda: model(videos, samples, mode='tensor')
    )
    tower = model.backbone.model
    frames = [
        record(Teacher(tower), site, lambda t=t: tower(videos[:, :, t]))
        for t in range(FRAMES)
    ]
    for joined, *alone in zip(found, *frames):
        assert joined.grid == (FRAMES, 2, 2)
        tokens = torch.cat([x.tokens for x in alone], dim=1)
        torch.testing.assert_close(joined.tokens, tokens, **SAME)
        classes = torch.stack([x.classes for x in alone]).mean(0)
        torch.testing.assert_close(joined.classes, classes, **SAME)


def test_directions_have_no_share_of_attention_within_frames():
    method = dict(type='transmamba.DirectionalMixerMatching')
    with pytest.raises(ValueError, match='within each frame alone'):
        TransMambaDistill(
            build_random(mamba_cfg()),
            build_random(clip4clip_cfg()),
            dict(type='transmamba.MethodDistiller', methods=[method]),
        )


def test_normalised_as_cosines_are():
    model, (videos, samples) = build_random(clip4clip_cfg()), video_batch()
    found = model(videos, samples)
    cosines = F.cosine_similarity(
        found.texts[:, None], found.videos[None], dim=-1
    )
    torch.testing.assert_close(found.logits, found.scale * cosines, **SAME)
