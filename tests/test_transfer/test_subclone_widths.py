# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Weight subcloning: along which channels widths are changed."""

import pytest
import torch
from helpers import build, pmamba_cfg, vit_cfg
from subclone_cases import (
    CLOSE,
    HIDDEN,
    WIDTH,
    counterparts,
    entry_of,
    narrow_student,
    rules,
    subclone,
)

from transmamba_mm.contract import read_teacher
from transmamba_mm.transfer import TransferError

HUNDREDS = 100.0
HIDDEN_AXES = ('hidden', 'inner')


# ----------------------------------------------------- narrower student


@torch.no_grad()
def encode_channels(teacher):
    """Every weight tells its place: row * 100 + column."""
    for name, parameter in teacher.named_parameters():
        shape = parameter.shape
        if name.endswith(('pos_embed', 'cls_token')):
            code = torch.arange(shape[-1]).float().expand(shape)
        elif parameter.dim() == 1:
            code = torch.arange(shape[0]).float()
        else:
            row = torch.arange(shape[0]).float()
            column = torch.arange(shape[1]).float()
            code = row[:, None] * HUNDREDS + column
            code = code.view(*shape[:2], *[1] * (len(shape) - 2))
        parameter.copy_(code.expand(shape))


def decode_selection(student):
    """Reads the index sets back from every tensor that was cut."""

    def rows(weight):
        index = (weight.flatten(1)[:, 0] / HUNDREDS).floor()
        return index.long().tolist()

    def columns(weight):
        return (weight[0] % HUNDREDS).round().long().tolist()

    def vector(bias):
        return bias.round().long().tolist()

    net, head = student.backbone, student.head.fc
    residual = {
        'patch_embed.weight': rows(net.patch_embed.projection.weight),
        'patch_embed.bias': vector(net.patch_embed.projection.bias),
        'ln1.weight': vector(net.ln1.weight),
        'ln1.bias': vector(net.ln1.bias),
        'head': columns(head.weight),
    }
    for position in range(net.pos_embed.shape[1]):
        residual[f'pos{position}'] = vector(net.pos_embed[0, position])
    hidden, inner = [], []
    for i, layer in enumerate(net.layers):
        first, second = layer.ffn.layers[0][0], layer.ffn.layers[1]
        mixer = layer.mamba.out_proj
        for norm in (layer.norm, layer.norm2):
            residual[f'{i}.{len(residual)}'] = vector(norm.weight)
            residual[f'{i}.{len(residual)}'] = vector(norm.bias)
        residual[f'{i}.ffn_in'] = columns(first.weight)
        residual[f'{i}.ffn_out'] = rows(second.weight)
        residual[f'{i}.ffn_out.bias'] = vector(second.bias)
        residual[f'{i}.mixer_out'] = rows(mixer.weight)
        residual[f'{i}.mixer_out.bias'] = vector(mixer.bias)
        assert rows(first.weight) == vector(first.bias)
        assert rows(first.weight) == columns(second.weight)
        hidden.append(rows(first.weight))
        inner.append(columns(mixer.weight))
    return residual, hidden, inner


@pytest.mark.parametrize('importance', ['random', 'first'])
def test_one_residual_set_and_one_hidden_set_per_layer(importance):
    teacher, student = build(vit_cfg(), 1), narrow_student()
    encode_channels(teacher)
    plan, _ = subclone(student, teacher, importance=importance)
    residual, hidden, inner = decode_selection(student)
    kept = residual['ln1.weight']
    for name, index in residual.items():
        assert index == kept, name
    sets = [(kept, WIDTH), *((h, HIDDEN) for h in hidden)]
    sets += [(index, WIDTH) for index in inner]
    for index, size in sets:
        assert index == sorted(set(index))
        assert len(index) == size
        if importance == 'first':
            assert index == list(range(size))
    if importance == 'random':
        assert hidden[0] != hidden[1]
        assert inner[0] != inner[1]
    assert set(plan.selections) == {
        'residual',
        *(f'layers.{i}.{axis}' for i in (0, 1) for axis in HIDDEN_AXES),
    }
    assert plan.selections['residual'] == (
        f'10 of 16 [{" ".join(map(str, kept))}]'
    )
    assert plan.settings['importance'] == importance
    entry = entry_of(plan, 'backbone.layers.1.ffn.layers.0.0.weight')
    assert entry.rule == 'select'
    assert entry.note == 'hidden 12/32, residual 10/16'


def test_random_is_reproducible_and_depends_on_the_seed():
    def kept(seed):
        teacher, student = build(vit_cfg(), 1), narrow_student()
        encode_channels(teacher)
        subclone(student, teacher, importance='random', seed=seed)
        return decode_selection(student)

    torch.manual_seed(5)
    first = kept(0)
    torch.manual_seed(6)
    assert kept(0) == first
    assert kept(1) != first


class PlannedChange:
    """How much each channel changes: 0.25 if it is to be kept, else 1.

    A tensor changes by the product of the factors along its axes.
    """

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def plan(total, size):
            index = torch.randperm(total, generator=generator)[:size]
            factor = torch.ones(total)
            factor[index] = 0.25
            return index.sort().values, factor

        self.kept, self.residual = plan(16, WIDTH)
        self.kept_hidden, self.hidden = zip(plan(32, HIDDEN), plan(32, HIDDEN))
        self.kept_inner, self.inner = zip(plan(16, WIDTH), plan(16, WIDTH))

    def of(self, name, shape):
        layer = name.split('backbone.layers.')[-1].split('.')[0]
        hidden = self.hidden[layer == '1']
        inner = self.inner[layer == '1']
        column = len(shape) == 2
        if 'qkv' in name or name == 'head.layers.head.bias':
            factor = torch.ones(1)
        elif 'head' in name or ('_embed' in name and len(shape) == 3):
            factor = self.residual
        elif 'ffn.layers.0.0' in name:
            factor = hidden[:, None] * self.residual if column else hidden
        elif 'ffn.layers.1.weight' in name:
            factor = self.residual[:, None] * hidden
        elif 'attn.proj.weight' in name:
            factor = self.residual[:, None] * inner
        elif 'cls_token' in name:
            factor = self.residual
        else:
            factor = self.residual.view(-1, *[1] * (len(shape) - 1))
        return factor.expand(shape)

    def reference(self, teacher, scales=(1.0,)):
        """The teacher less the change, tensors taking ``scales`` in turn."""
        state = {}
        for k, (name, value) in enumerate(teacher.state_dict().items()):
            sign = torch.randn(value.shape).sign()
            change = scales[k % len(scales)] * self.of(name, value.shape)
            state[name] = value - sign * change
        return state


def assert_kept(student, teacher, change):
    """The student holds the planned channels of the teacher."""
    for i, (ours, theirs) in enumerate(
        zip(student.backbone.layers, teacher.backbone.layers)
    ):
        hidden, inner = change.kept_hidden[i], change.kept_inner[i]
        actual = ours.ffn.layers[1].weight
        expected = theirs.ffn.layers[1].weight[change.kept][:, hidden]
        assert actual.equal(expected)
        actual = ours.ffn.layers[0][0].bias
        assert actual.equal(theirs.ffn.layers[0][0].bias[hidden])
        actual = ours.mamba.out_proj.weight
        expected = theirs.attn.proj.weight[change.kept][:, inner]
        assert actual.equal(expected)
    assert student.head.fc.weight.equal(
        teacher.head.layers.head.weight[:, change.kept]
    )


@pytest.mark.parametrize('seed', range(3))
def test_least_changed_keeps_what_changed_least(seed):
    """Also where some tensors change a hundred times more than others."""
    change = PlannedChange(seed)
    teacher, student = build(vit_cfg(), 1), narrow_student()
    reference = change.reference(teacher, scales=(1e-2, 1e-3, 1e-4))
    subclone(
        student,
        teacher,
        importance='least_changed',
        reference=read_teacher(reference),
    )
    assert_kept(student, teacher, change)


@pytest.mark.parametrize('seed', range(3))
def test_magnitude_keeps_the_largest_weights(seed):
    change = PlannedChange(seed)
    teacher, student = build(vit_cfg(), 1), narrow_student()
    for name, value in teacher.named_parameters():
        scale = 1 / change.of(name, value.shape)
        value.data = torch.randn(value.shape).sign() * scale
        value.data *= 1 + 0.1 * torch.rand(value.shape)
    subclone(student, teacher, importance='magnitude')
    assert_kept(student, teacher, change)


def test_least_changed_needs_the_weights_before_fine_tuning():
    teacher, student = build(vit_cfg(), 1), narrow_student()
    with pytest.raises(TransferError, match='give reference_ckpt'):
        subclone(student, teacher, importance='least_changed')
    for config in (vit_cfg(dims=8), vit_cfg(depth=3)):
        reference = read_teacher(build(config).state_dict())
        with pytest.raises(TransferError, match='the reference has'):
            subclone(
                student,
                teacher,
                importance='least_changed',
                reference=reference,
            )


def test_a_reference_with_another_head_and_resolution_is_fine():
    change = PlannedChange(3)
    teacher, student = build(vit_cfg(), 1), narrow_student()
    reference = change.reference(teacher)
    other = build(vit_cfg(classes=7, img_size=24)).state_dict()
    for name in ('backbone.pos_embed', 'head.layers.head.weight'):
        reference[name] = other[name]
    subclone(
        student,
        teacher,
        importance='least_changed',
        reference=read_teacher(reference),
    )
    assert_kept(student, teacher, change)


def test_a_narrow_ffn_is_the_teachers_on_the_kept_channels():
    """Exact where the channels that were dropped carry nothing."""
    change = PlannedChange(1)
    teacher, student = build(vit_cfg(), 1), narrow_student()
    for layer, hidden in zip(teacher.backbone.layers, change.kept_hidden):
        dead = torch.ones(32, dtype=torch.bool)
        dead[hidden] = False
        layer.ffn.layers[0][0].weight.data[dead] = 0
        layer.ffn.layers[0][0].bias.data[dead] = 0
    subclone(
        student,
        teacher,
        importance='least_changed',
        reference=read_teacher(change.reference(teacher)),
    )
    x = torch.zeros(2, 5, 16)
    x[..., change.kept] = torch.randn(2, 5, WIDTH)
    for ours, theirs in zip(student.backbone.layers, teacher.backbone.layers):
        expected = theirs.ffn(x)[..., change.kept]
        actual = ours.ffn(x[..., change.kept])
        torch.testing.assert_close(actual, expected, **CLOSE)


def test_a_narrower_mixer_alone_selects_inner_channels():
    teacher = build(vit_cfg(), 1)
    student = build(pmamba_cfg(mixer=dict(expand=0.5)), 2)
    plan, _ = subclone(student, teacher)
    ours = student.backbone.layers[0].mamba.out_proj.weight
    assert ours.equal(teacher.backbone.layers[0].attn.proj.weight[:, :8])
    assert set(plan.selections) == {'layers.0.inner', 'layers.1.inner'}


# -------------------------------------------------------- wider student


def test_a_wider_student_is_refused_by_default():
    teacher, student = build(vit_cfg(dims=8), 1), build(pmamba_cfg(), 2)
    with pytest.raises(TransferError, match="widen='leading'") as error:
        subclone(student, teacher)
    assert '(16 channels) is wider than the teacher (8)' in str(error.value)
    with pytest.raises(TransferError, match="got 'zero'"):
        subclone(student, teacher, widen='zero')


def test_leading_fills_the_first_channels():
    teacher = build(vit_cfg(dims=8, ffn=20), 1)
    student = build(pmamba_cfg(mixer=dict(expand=0.5)), 2)
    plan, before = subclone(student, teacher, widen='leading')
    state, source = student.state_dict(), teacher.state_dict()
    pairs = counterparts([0, 1])
    for ours, theirs in pairs.items():
        value, want = state[ours], source[theirs]
        assert entry_of(plan, ours).copied == want.numel()
        index = tuple(slice(0, size) for size in want.shape)
        assert value[index].equal(want), ours
        rest = torch.ones_like(value, dtype=torch.bool)
        rest[index] = False
        assert value[rest].equal(before[ours][rest]), ours
    pos = state['backbone.pos_embed']
    assert pos[..., :8].equal(source['backbone.pos_embed'][:, 1:])
    assert pos[..., 8:].equal(before['backbone.pos_embed'][..., 8:])
    assert rules(plan)['backbone.ln1.weight'] == 'leading'
    assert rules(plan)['head.fc.bias'] == 'copy'
    note = entry_of(plan, 'backbone.layers.0.ffn.layers.0.0.weight').note
    assert note == 'first 20 of 32 hidden, first 8 of 16 residual'


def test_leading_with_a_narrower_ffn_and_another_grid():
    teacher = build(vit_cfg(dims=8, ffn=48), 1)
    student = build(pmamba_cfg(img_size=24), 2)
    plan, before = subclone(student, teacher, widen='leading')
    name = 'backbone.layers.0.ffn.layers.0.0.weight'
    value = student.state_dict()[name]
    expected = teacher.backbone.layers[0].ffn.layers[0][0].weight[:32]
    assert value[:, :8].equal(expected)
    assert value[:, 8:].equal(before[name][:, 8:])
    pos = student.backbone.pos_embed
    assert pos[..., 8:].equal(before['backbone.pos_embed'][..., 8:])
    assert not pos[..., :8].eq(before['backbone.pos_embed'][..., :8]).any()
    assert rules(plan)['backbone.pos_embed'] == 'leading'
