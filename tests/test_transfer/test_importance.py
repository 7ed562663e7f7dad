# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Scores of channels, those from activations in particular."""

import pytest
import torch
from helpers import build, pmamba_cfg, vit_cfg
from torch import nn

from transmamba_mm.contract import read_teacher
from transmamba_mm.transfer import (
    SubcloneInitializer,
    Subcloner,
    TransferError,
)
from transmamba_mm.transfer.importance import (
    CRITERIA,
    score_channels,
    select,
)
from transmamba_mm.transfer.measure import collect_activations

KEPT = [0, 2, 3, 7, 8, 9, 11, 12, 13, 15]  # ten of sixteen
HIDDEN = [[1, 4, 5, 6, 10, 20, 21, 22, 29, 31, 3, 0], list(range(20, 32))]
INNER = [[0, 1, 2, 5, 6, 7, 10, 12, 14, 15], list(range(3, 13))]


def dead(total, kept):
    mask = torch.ones(total, dtype=torch.bool)
    mask[kept] = False
    return mask


@torch.no_grad()
def silence(teacher):
    """Makes the channels that are not to be kept zero on every image."""
    net, off = teacher.backbone, dead(16, KEPT)
    net.patch_embed.projection.weight[off] = 0
    net.patch_embed.projection.bias[off] = 0
    net.pos_embed[..., off] = 0
    net.cls_token[..., off] = 0
    for layer, hidden, inner in zip(net.layers, HIDDEN, INNER):
        for linear in (layer.attn.proj, layer.ffn.layers[1]):
            linear.weight[off] = 0
            linear.bias[off] = 0
        value = 32 + dead(16, inner).nonzero().flatten()
        layer.attn.qkv.weight[value] = 0
        layer.attn.qkv.bias[value] = 0
        layer.ffn.layers[0][0].weight[dead(32, hidden)] = 0
        layer.ffn.layers[0][0].bias[dead(32, hidden)] = 0


def batches(num=2):
    return [torch.randn(2, 3, 16, 16) for _ in range(num)]


def test_activation_keeps_the_channels_that_are_used():
    teacher = build(vit_cfg(), 1)
    silence(teacher)
    scores = collect_activations(teacher, batches())
    assert set(scores) == {
        'residual',
        *(
            f'layers.{i}.{axis}'
            for i in (0, 1)
            for axis in ('hidden', 'inner')
        ),
    }
    assert scores['residual'][dead(16, KEPT)].eq(0).all()
    assert scores['residual'][KEPT].gt(0).all()
    student = build(pmamba_cfg(dims=10, ffn_ratio=1.2), 2)
    weights = read_teacher(teacher.state_dict())
    subcloner = Subcloner(
        student, weights, importance='activation', activations=scores
    )
    subcloner.plan().apply(student)
    net = teacher.backbone
    assert student.backbone.ln1.weight.equal(net.ln1.weight[KEPT])
    for i, layer in enumerate(student.backbone.layers):
        hidden = sorted(HIDDEN[i])
        expected = net.layers[i].ffn.layers[1].weight[KEPT][:, hidden]
        assert layer.ffn.layers[1].weight.equal(expected)
        expected = net.layers[i].attn.proj.weight[KEPT][:, INNER[i]]
        assert layer.mamba.out_proj.weight.equal(expected)


def test_activation_is_the_mean_magnitude_of_what_enters():
    """Checked for the hidden axis, whose definition is one tensor."""
    teacher, images = build(vit_cfg(), 1), batches()
    expected = []
    handle = (
        teacher.backbone.layers[0]
        .ffn.layers[1]
        .register_forward_hook(
            lambda m, args, out: expected.append(args[0].abs().mean((0, 1)))
        )
    )
    with torch.no_grad():
        for image in images:
            teacher(image)
    handle.remove()
    expected = sum(value / value.mean() for value in expected) / len(images)
    scores = collect_activations(teacher, images)
    torch.testing.assert_close(scores['layers.0.hidden'], expected)


def test_collecting_leaves_the_teacher_as_it_was():
    teacher = build(vit_cfg(drop_path_rate=0.5, drop_rate=0.5), 1)
    images = batches()
    expected = collect_activations(teacher, images)
    nn.Module.train(teacher)
    seen = collect_activations(teacher, images)
    for name, score in expected.items():
        assert score.equal(seen[name])  # no dropout while collecting
        assert not score.requires_grad
    assert all(module.training for module in teacher.modules())
    hooks = [m._forward_pre_hooks for m in teacher.modules()]
    assert not any(hooks)
    with pytest.raises(RuntimeError):
        collect_activations(teacher, [torch.randn(2, 3, 16)])
    assert not any(hooks)
    assert teacher.training


def test_collecting_needs_a_batch():
    with pytest.raises(TransferError, match='no calibration batch'):
        collect_activations(build(vit_cfg()), [])


def test_activation_without_activations_is_refused():
    teacher = read_teacher(build(vit_cfg()).state_dict())
    with pytest.raises(TransferError, match='needs the teacher model'):
        score_channels(teacher, 'activation')


def test_unknown_criteria_are_named():
    teacher = read_teacher(build(vit_cfg()).state_dict())
    with pytest.raises(TransferError, match="'best'") as error:
        score_channels(teacher, 'best')
    for name in CRITERIA:
        assert name in str(error.value)


def test_every_criterion_scores_every_axis():
    teacher = read_teacher(build(vit_cfg(), 1).state_dict())
    reference = read_teacher(build(vit_cfg(), 2).state_dict())
    for name in CRITERIA:
        scores = score_channels(
            teacher,
            name,
            reference,
            {'residual': torch.ones(16)} if name == 'activation' else None,
        )
        assert scores['residual'].shape == (16,)
        assert scores['residual'].isfinite().all()
        if name != 'activation':
            assert len(scores) == 5
            assert scores['layers.1.hidden'].shape == (32,)
            assert scores['layers.1.inner'].shape == (16,)


def test_no_tensor_outweighs_the_others_by_its_scale():
    """A tensor a thousand times larger has one vote like the others."""
    state = {k: torch.ones_like(v) for k, v in read_state().items()}
    loud = 'backbone.ln1.weight'
    state[loud] = 1000.0 * torch.ones(16)
    state[loud][3] = 2000.0
    scores = score_channels(read_teacher(state), 'magnitude')['residual']
    others = scores[torch.arange(16) != 3]
    assert scores[3] > others.max()
    assert scores[3] < 1.2 * others.max()


def read_state():
    return build(vit_cfg()).state_dict()


def test_select_is_ascending_and_best():
    score = torch.tensor([0.1, 5.0, -1.0, 3.0, 4.0])
    assert select(score, 3).tolist() == [1, 3, 4]
    assert select(score, 5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ('importance', 'reference', 'measures'),
    [
        ('activation', 'reference.pth', True),
        ('least_changed', 'reference.pth', False),
        ('least_changed', None, True),
        ('magnitude', None, False),
    ],
)
def test_what_asks_a_running_teacher(importance, reference, measures):
    hook = SubcloneInitializer(importance=importance, reference_ckpt=reference)
    assert hook.measures == measures
