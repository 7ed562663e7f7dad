# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Similarity distillation of retrieval models."""

import math

import pytest
import torch
import torch.distributed as distributed
import torch.multiprocessing as mp
from retrieval_models import (
    FRAMES,
    build_random,
    clip4clip_cfg,
    mamba_cfg,
    video_batch,
)
from torch.nn.functional import normalize

from transmamba_mm.contract import Embeddings
from transmamba_mm.distill import TransMambaDistill
from transmamba_mm.registry import MODELS


def random_embeddings(seed, num=4, width=8, frames=3, scale=5.0):
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape):
        values = torch.randn(*shape, width, generator=generator)
        return normalize(values.double(), dim=-1).requires_grad_()

    mask = torch.ones(num, frames, dtype=torch.bool)
    mask[1::2, -1] = False
    return Embeddings(
        *(unit(num), unit(num), unit(num, frames), mask),
        torch.tensor(scale, dtype=torch.double),
    )


def kl(ours, theirs):
    """Of two lists of scores, with Python's numbers alone."""
    p, q = (
        [math.exp(x) / sum(map(math.exp, each)) for x in each]
        for each in (theirs, ours)
    )
    return sum(a * math.log(a / b) for a, b in zip(p, q))


def rows_kl(ours, theirs):
    found = [kl(a.tolist(), b.tolist()) for a, b in zip(ours, theirs)]
    return sum(found) / len(found)


def oracle(student, teacher, tau, frame_weight):
    ours, theirs = (
        x.scale / tau * x.texts @ x.videos.T for x in (student, teacher)
    )
    loss = 0.5 * (rows_kl(ours, theirs) + rows_kl(ours.T, theirs.T))
    frames = []
    for i, keep in enumerate(student.mask):
        ours, theirs = (
            (x.scale / tau * x.frames[i] @ x.texts[i])[keep]
            for x in (student, teacher)
        )
        frames.append(kl(ours.tolist(), theirs.tolist()))
    mean = sum(frames) / len(frames)
    return tau**2 * (loss + frame_weight * mean)


def make(**options):
    return MODELS.build(dict(type='transmamba.SimilarityLoss', **options))


@pytest.mark.parametrize(
    'options',
    [
        dict(tau=1.0, frame_weight=1.0),
        dict(tau=2.5, frame_weight=0.3),
        dict(tau=0.7, frame_weight=0.0),
    ],
)
def test_equals_the_oracle(options):
    """Also where the teacher embeds in a space of another width."""
    student, teacher = random_embeddings(0), random_embeddings(1, width=5)
    found = make(loss_weight=2.0, **options)(student, teacher)
    wanted = 2 * oracle(student, teacher, **options)
    assert found.item() == pytest.approx(wanted, rel=1e-4)


def test_gradients():
    """None at the teacher's own similarities, none through padding."""
    student, loss = random_embeddings(0), make()
    loss(student, student).backward()
    for each in (student.texts, student.videos, student.frames):
        assert each.grad.abs().max() < 1e-6
    found = loss(student, random_embeddings(1))
    grads = torch.autograd.grad(found, [student.texts, student.frames])
    assert grads[0].abs().min() > 0
    assert (grads[1][~student.mask] == 0).all()
    assert grads[1][student.mask].abs().max() > 0


def test_frames_that_cannot_be_compared():
    student, other = random_embeddings(0), random_embeddings(1, frames=2)
    with pytest.raises(ValueError, match="'student': 3, 'teacher': 2"):
        make()(student, other)
    make(frame_weight=0)(student, other)


def test_several_texts_of_a_video():
    one, two = random_embeddings(0), random_embeddings(0, num=8)
    mixed = Embeddings(two.texts, one.videos, None, one.mask, one.scale)
    with pytest.raises(ValueError, match='8 texts of 4 videos'):
        make()(mixed, mixed)


def distillation(**kwargs):
    method = dict(type='transmamba.SimilarityDistill', **kwargs)
    return TransMambaDistill(
        build_random(mamba_cfg(), 1),
        build_random(clip4clip_cfg(), 2),
        dict(type='transmamba.MethodDistiller', methods=[method]),
    )


def test_in_a_distillation():
    """The method reads what the models themselves embed."""
    torch.manual_seed(0)
    model, batch = distillation(in_alpha=True).train(), video_batch()
    losses = model.loss(*batch)
    records = [x(*batch) for x in (model.student, model.teacher)]
    wanted = 0.5 * make()(*records)
    found = losses['distill.loss_similarity']
    torch.testing.assert_close(found, wanted)
    found.backward()
    missing = {
        name.split('.')[0]
        for name, parameter in model.student.named_parameters()
        if parameter.grad is None
    }
    assert not missing
    assert all(p.grad is None for p in model.teacher.parameters())


def test_a_student_of_whole_videos():
    student = mamba_cfg(keep_temporal=False)
    model = TransMambaDistill(
        build_random(student),
        build_random(clip4clip_cfg()),
        dict(
            type='transmamba.MethodDistiller',
            methods=[dict(type='transmamba.SimilarityDistill')],
        ),
    )
    with pytest.raises(ValueError, match=f"None, 'teacher': {FRAMES}"):
        model.loss(*video_batch())


def half(rank, folder):
    distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2
    )
    model, (videos, samples) = distillation().train(), video_batch()
    part = slice(2 * rank, 2 * rank + 2)
    loss = model.loss(videos[part], samples[part])['distill.loss_similarity']
    loss.backward()
    grads = {}
    for name, parameter in model.student.named_parameters():
        distributed.all_reduce(parameter.grad)
        grads[name] = parameter.grad / 2
    # The frames' part is a mean over each process's own batch.
    distributed.all_reduce(loss.data)
    torch.save((loss.detach() / 2, grads), f'{folder}/{rank}.pt')
    distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    args = (str(tmp_path),)
    mp.start_processes(half, args, nprocs=2, start_method='forkserver')
    model = distillation().train()
    loss = model.loss(*video_batch())['distill.loss_similarity']
    loss.backward()
    for rank in range(2):
        found, grads = torch.load(tmp_path / f'{rank}.pt')
        torch.testing.assert_close(found, loss.detach())
        for name, parameter in model.student.named_parameters():
            torch.testing.assert_close(
                grads[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name
            )
