# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Weight subcloning: what is copied, from where, along which channels."""

import json

import pytest
import torch
import torch.nn.functional as F
from helpers import build, pmamba_cfg, snapshot, vit_cfg
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import nn

from transmamba_mm.transfer import (
    Subcloner,
    TransferEntry,
    TransferError,
    TransferPlan,
    read_teacher,
)
from transmamba_mm.transfer.subclone import resolve_layer_map, student_roles

# float32 noise of a few layers.
CLOSE = dict(rtol=1e-4, atol=1e-5)

# Student name to teacher name, both below `backbone.layers.<i>.`.
LAYER_PAIRS = {
    'norm': 'ln1',
    'norm2': 'ln2',
    'ffn.layers.0.0': 'ffn.layers.0.0',
    'ffn.layers.1': 'ffn.layers.1',
    'mamba.out_proj': 'attn.proj',
}


def subclone(student, teacher, **kwargs):
    """Subclones in place; returns the plan and the weights before."""
    kwargs.setdefault('importance', 'first')
    before = snapshot(student)
    subcloner = Subcloner(
        student, read_teacher(teacher.state_dict()), **kwargs
    )
    plan = subcloner.plan()
    for name, value in student.state_dict().items():
        assert value.equal(before[name]), 'planning must not write'
    plan.apply(student)
    return plan, before


def counterparts(layers, leaves=('weight', 'bias')):
    """Student parameter to teacher parameter, ``layers`` pairs by index."""
    pairs = {
        f'backbone.layers.{i}.{ours}.{leaf}': (
            f'backbone.layers.{j}.{theirs}.{leaf}'
        )
        for i, j in enumerate(layers)
        if j is not None
        for ours, theirs in LAYER_PAIRS.items()
        for leaf in leaves
    }
    for leaf in leaves:
        pairs[f'backbone.ln1.{leaf}'] = f'backbone.ln1.{leaf}'
        pairs[f'head.fc.{leaf}'] = f'head.layers.head.{leaf}'
        name = f'backbone.patch_embed.projection.{leaf}'
        pairs[name] = name
    return pairs


def rules(plan):
    return {entry.name: entry.rule for entry in plan.entries}


def entry_of(plan, name):
    return next(entry for entry in plan.entries if entry.name == name)


def assert_untouched(student, before, names):
    state = student.state_dict()
    for name in names:
        assert state[name].equal(before[name]), name


# ------------------------------------------------------------ layer maps


@pytest.mark.parametrize(
    ('layer_map', 'student', 'teacher', 'expected'),
    [
        ('uniform', 4, 4, [0, 1, 2, 3]),
        ('uniform', 2, 12, [0, 11]),
        ('uniform', 3, 12, [0, 6, 11]),
        ('uniform', 4, 2, [0, 0, 1, 1]),
        ('uniform', 1, 12, [11]),
        ('uniform', 3, 1, [0, 0, 0]),
        ('first_n', 2, 4, [0, 1]),
        ('first_n', 4, 2, [0, 1, None, None]),
        ([3, None, 0], 3, 4, [3, None, 0]),
        ((1, 1), 2, 2, [1, 1]),
    ],
)
def test_layer_map(layer_map, student, teacher, expected):
    assert resolve_layer_map(layer_map, student, teacher) == expected


@examples(max_examples=50, deadline=None)
@given(st.integers(2, 60), st.integers(1, 60))
def test_uniform_is_monotone_and_includes_both_ends(student, teacher):
    layers = resolve_layer_map('uniform', student, teacher)
    assert len(layers) == student
    assert layers == sorted(layers)
    assert layers[0] == 0
    assert layers[-1] == teacher - 1
    if student == teacher:
        assert layers == list(range(student))
    if student <= teacher:
        assert len(set(layers)) == student
    steps = [b - a for a, b in zip(layers, layers[1:])]
    assert max(steps) - min(steps) <= 1


@pytest.mark.parametrize(
    ('layer_map', 'message'),
    [
        ('last_n', "'uniform', 'first_n' or a list, got 'last_n'"),
        ([0], 'for each of the 2'),
        ([0, 1, 2], 'for each of the 2'),
        ([0, 3], r'in 0\.\.2'),
        ([-1, 0], r'in 0\.\.2'),
    ],
)
def test_layer_map_mistakes(layer_map, message):
    with pytest.raises(TransferError, match=message):
        resolve_layer_map(layer_map, 2, 3)


# ------------------------------------------------- equal width and depth


def test_equal_sizes_copy_everything_outside_the_ssm():
    teacher, student = build(vit_cfg(), 1), build(pmamba_cfg(), 2)
    plan, before = subclone(student, teacher, importance='least_changed')
    state, source = student.state_dict(), teacher.state_dict()
    pairs = counterparts([0, 1])
    for ours, theirs in pairs.items():
        assert state[ours].equal(source[theirs]), ours
        assert entry_of(plan, ours).source == theirs
        assert entry_of(plan, ours).rule == 'copy'
    name = 'backbone.pos_embed'
    assert state[name].equal(source[name][:, 1:])
    copied = {*pairs, name}
    fresh = {n for n, _ in student.named_parameters()} - copied
    assert fresh == {
        f'backbone.layers.{i}.mamba.{leaf}'
        for i in range(2)
        for leaf in (
            *('A_log', 'D', 'direction_Bs', 'x_proj.weight'),
            *('in_proj.weight', 'in_proj.bias'),
            *('conv2d.weight', 'conv2d.bias'),
            *('dt_proj.weight', 'dt_proj.bias'),
        )
    }
    assert_untouched(student, before, fresh)
    for name in fresh:
        assert rules(plan)[name] == 'fresh'
        assert entry_of(plan, name).note == 'SSM'
    sizes = {n: p.numel() for n, p in student.named_parameters()}
    assert plan.total == sum(sizes.values())
    assert plan.copied == sum(sizes[name] for name in copied)
    assert plan.coverage == pytest.approx(100 * plan.copied / plan.total)
    # No axis had to shrink, so no reference was needed.
    assert plan.settings['importance'] == 'not needed'
    assert plan.selections == {}


def test_a_bare_backbone_is_a_student_too():
    teacher, student = build(vit_cfg()), build(pmamba_cfg()).backbone
    subclone(student, teacher)
    assert student.ln1.weight.equal(teacher.backbone.ln1.weight)


def test_the_head_is_the_last_linear():
    config = pmamba_cfg()
    config['head'] = dict(vit_cfg()['head'], hidden_dim=16)
    _, roles = student_roles(build(config))
    heads = {n: r for n, r in roles.items() if n.startswith('head')}
    assert heads == {
        'head.layers.head.weight': 'head.weight',
        'head.layers.head.bias': 'head.bias',
    }


def test_without_token_mixing_student_and_teacher_are_one_function():
    """Embedding, norms, FFNs and residuals survive; only mixing differs."""
    teacher = build(vit_cfg(depth=3, ffn=40), 1)
    student = build(
        pmamba_cfg(depth=3, ffn_ratio=2.5, norm_cfg=dict(type='LN', eps=1e-6)),
        2,
    )
    for layer in teacher.backbone.layers:
        nn.init.zeros_(layer.attn.proj.weight)
        nn.init.zeros_(layer.attn.proj.bias)
    subclone(student, teacher)
    teacher.backbone.out_type = student.backbone.out_type = 'raw'
    x = torch.randn(2, 3, 16, 16)
    expected = teacher.backbone(x)[0][:, 1:]
    torch.testing.assert_close(student.backbone(x)[0], expected, **CLOSE)
    logits = F.linear(
        expected.mean(1),
        teacher.head.layers.head.weight,
        teacher.head.layers.head.bias,
    )
    student.backbone.out_type = 'avg_featmap'
    torch.testing.assert_close(student(x), logits, **CLOSE)


def test_a_layers_ffn_is_the_teachers():
    teacher, student = build(vit_cfg(), 1), build(pmamba_cfg(), 2)
    subclone(student, teacher)
    x = torch.randn(2, 5, 16)
    for ours, theirs in zip(student.backbone.layers, teacher.backbone.layers):
        ours.norm2.eps = theirs.ln2.eps
        expected = theirs.ffn(theirs.ln2(x), identity=x)
        actual = ours.ffn(ours.norm2(x), identity=x)
        torch.testing.assert_close(actual, expected, **CLOSE)


@pytest.mark.parametrize('kind', ['VisionTransformer', 'DeiT3'])
def test_layer_scale_becomes_part_of_the_projections(kind):
    config = vit_cfg(layer_scale_init_value=0.1)
    if kind == 'DeiT3':
        config = vit_cfg(use_layer_scale=True)
    config['backbone']['type'] = kind
    teacher, student = build(config, 1), build(pmamba_cfg(), 2)
    subclone(student, teacher)
    pos = teacher.backbone.pos_embed
    slots = 0 if kind == 'DeiT3' else 1  # DeiT III has none for the class
    assert student.backbone.pos_embed.equal(pos[:, slots:])
    x = torch.randn(2, 5, 16)
    for ours, theirs in zip(student.backbone.layers, teacher.backbone.layers):
        assert theirs.ffn.gamma2.weight.std() > 0
        torch.testing.assert_close(ours.ffn(x), theirs.ffn(x), **CLOSE)
        expected = theirs.attn.gamma1(theirs.attn.proj(x))
        actual = ours.mamba.out_proj(x)
        torch.testing.assert_close(actual, expected, **CLOSE)


# ------------------------------------------------------- other positions


@pytest.mark.parametrize('img_size', [24, (8, 24)])
def test_positions_are_resized_without_the_class_slot(img_size):
    teacher = build(vit_cfg(), 1)
    student = build(pmamba_cfg(img_size=img_size), 2)
    plan, _ = subclone(student, teacher)
    grid = student.backbone.patch_embed.init_out_size
    patches = teacher.backbone.pos_embed[:, 1:].transpose(1, 2)
    expected = F.interpolate(
        patches.reshape(1, 16, 4, 4),
        size=grid,
        mode='bicubic',
        align_corners=False,
    )
    expected = expected.flatten(2).transpose(1, 2)
    torch.testing.assert_close(student.backbone.pos_embed, expected, **CLOSE)
    entry = entry_of(plan, 'backbone.pos_embed')
    assert entry.rule == 'resize'
    assert entry.note == '4x4 to {}x{}'.format(*grid)


def test_two_class_slots_are_dropped():
    config = vit_cfg()
    config['backbone']['type'] = 'DistilledVisionTransformer'
    config['head']['type'] = 'DeiTClsHead'
    teacher, student = build(config, 1), build(pmamba_cfg(), 2)
    subclone(student, teacher)
    expected = teacher.backbone.pos_embed[:, 2:]
    assert student.backbone.pos_embed.equal(expected)
    assert student.head.fc.weight.equal(teacher.head.layers.head.weight)


# --------------------------------------------------- what cannot be copied


def test_a_head_for_other_classes_stays_fresh():
    teacher, student = build(vit_cfg(), 1), build(pmamba_cfg(classes=5), 2)
    plan, before = subclone(student, teacher)
    assert_untouched(student, before, ['head.fc.weight', 'head.fc.bias'])
    assert 'keep axis' in entry_of(plan, 'head.fc.weight').note


def test_a_bias_does_not_outlive_its_weight():
    """``expand=2`` leaves out_proj fresh, so its bias fits no longer."""
    teacher = build(vit_cfg(), 1)
    student = build(pmamba_cfg(mixer=dict(expand=2)), 2)
    plan, before = subclone(student, teacher)
    name = 'backbone.layers.0.mamba.out_proj.'
    assert_untouched(student, before, [name + 'weight', name + 'bias'])
    assert 'inner axis' in entry_of(plan, name + 'weight').note
    entry = entry_of(plan, name + 'bias')
    assert entry.rule == 'fresh'
    assert entry.source is None
    assert entry.copied == 0
    assert entry.note == 'its weight is fresh'


def test_a_convolutional_stem_stays_fresh():
    teacher, student = build(vit_cfg(), 1), build(pmamba_cfg(stem='conv'), 2)
    plan, before = subclone(student, teacher)
    stem = [n for n in before if n.startswith('backbone.patch_embed.')]
    assert len(stem) > 10
    assert_untouched(student, before, stem)
    note = entry_of(plan, 'backbone.patch_embed.stem.0.weight').note
    assert note == 'no role in the transfer'
    assert student.backbone.pos_embed.equal(teacher.backbone.pos_embed[:, 1:])


def test_a_student_without_ffn_or_final_norm():
    teacher = build(vit_cfg(), 1)
    student = build(pmamba_cfg(ffn_ratio=0, final_norm=False), 2)
    plan, _ = subclone(student, teacher)
    ours = student.backbone.layers[1].mamba.out_proj.weight
    assert ours.equal(teacher.backbone.layers[1].attn.proj.weight)
    assert len(plan.entries) == len(list(student.parameters()))


# ------------------------------------------------------------ other depths


@pytest.mark.parametrize(
    ('layer_map', 'sources'),
    [
        ('uniform', [0, 2, 4]),
        ('first_n', [0, 1, 2]),
        ([4, None, 0], [4, None, 0]),
    ],
)
def test_a_shallower_student(layer_map, sources):
    teacher, student = build(vit_cfg(depth=5), 1), build(pmamba_cfg(depth=3))
    plan, before = subclone(student, teacher, layer_map=layer_map)
    state, source = student.state_dict(), teacher.state_dict()
    for ours, theirs in counterparts(sources).items():
        assert state[ours].equal(source[theirs]), ours
    for i, j in enumerate(sources):
        if j is None:
            prefix = f'backbone.layers.{i}.'
            names = [n for n in before if n.startswith(prefix)]
            assert_untouched(student, before, names)
            note = entry_of(plan, f'{prefix}norm.weight').note
            assert note == 'no teacher layer in layer_map'
    assert plan.settings['layer_map'] == sources


def test_a_deeper_student():
    teacher, student = build(vit_cfg(depth=2), 1), build(pmamba_cfg(depth=4))
    _, before = subclone(student, teacher, layer_map='first_n')
    pairs = counterparts([0, 1])
    state, source = student.state_dict(), teacher.state_dict()
    for ours, theirs in pairs.items():
        assert state[ours].equal(source[theirs])
    late = ('backbone.layers.2.', 'backbone.layers.3.')
    late = [n for n in before if n.startswith(late)]
    assert len(late) == 2 * (len(LAYER_PAIRS) * 2 + 10)
    assert_untouched(student, before, late)


@pytest.mark.parametrize('early', [0, 1])
def test_early_layers(early):
    teacher, student = build(vit_cfg(), 1), build(pmamba_cfg(), 2)
    plan, before = subclone(student, teacher, early_layers=early)
    state, source = student.state_dict(), teacher.state_dict()
    for ours, theirs in counterparts(range(early)).items():
        assert state[ours].equal(source[theirs]), ours
    for i in range(early, 2):
        names = [n for n in before if n.startswith(f'backbone.layers.{i}.')]
        assert_untouched(student, before, names)
        note = entry_of(plan, f'backbone.layers.{i}.norm2.bias').note
        assert note == f'beyond early_layers={early}'


# -------------------------------------------------------- narrower student

WIDTH, HIDDEN = 10, 12  # of 16 and 32
HUNDREDS = 100.0


def narrow_student(seed=2, **kwargs):
    """Width 10, FFN 12 and d_inner 10."""
    return build(pmamba_cfg(dims=WIDTH, ffn_ratio=1.2, **kwargs), seed)


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


HIDDEN_AXES = ('hidden', 'inner')


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


# ----------------------------------------------------------- wider student


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


# ---------------------------------------------------------------- the plan


def test_the_table_and_the_file_tell_every_tensor(tmp_path):
    teacher, student = build(vit_cfg(), 1), narrow_student(classes=4)
    plan, _ = subclone(student, teacher, early_layers=1)
    path = tmp_path / 'plan.json'
    plan.dump(str(path))
    content = json.loads(path.read_text())
    assert content == plan.to_dict()
    assert path.read_text().endswith('}\n')
    names = [name for name, _ in student.named_parameters()]
    assert [tensor['name'] for tensor in content['tensors']] == names
    parameters = dict(student.named_parameters())
    for tensor in content['tensors']:
        assert tensor['shape'] == list(parameters[tensor['name']].shape)
        copied = tensor['rule'] in ('copy', 'select', 'resize')
        numel = parameters[tensor['name']].numel()
        assert tensor['copied_values'] == (numel if copied else 0)
        assert (tensor['source'] is not None) == copied
        assert tensor['note'] or tensor['rule'] == 'copy'
    copied = sum(t['copied_values'] for t in content['tensors'])
    total = sum(p.numel() for p in student.parameters())
    assert content['copied_values'] == copied
    assert content['total_values'] == total
    percent = 100 * copied / total
    assert content['coverage_percent'] == pytest.approx(percent, abs=1e-3)
    assert content['settings']['early_layers'] == 1
    assert content['settings']['importance'] == 'first'
    assert content['settings']['ssm'] == 'fresh'
    table = plan.table()
    lines = table.splitlines()
    assert lines[0].split() == ['student', 'tensor', *lines[0].split()[2:]]
    for name, line in zip(names, lines[2:]):
        assert line.startswith(name)
        assert rules(plan)[name] in line.split()
    assert f'{copied:,} of {total:,} values copied' in lines[-1]
    assert 'residual: 10 of 16 [0 1 2 3 4 5 6 7 8 9]' in lines


def test_long_index_sets_are_abbreviated():
    teacher = build(vit_cfg(dims=32), 1)
    student = build(pmamba_cfg(dims=16), 2)
    plan, _ = subclone(student, teacher)
    expected = '16 of 32 [0 1 2 3 4 5 ... 13 14 15]'
    assert plan.selections['residual'] == expected


def test_a_plan_that_copies_nothing_is_an_error():
    module = nn.Linear(2, 2)
    before = snapshot(module)
    entries = [
        TransferEntry('weight', (2, 2), note='why it is fresh'),
        # Re-drawn values come from no other model.
        TransferEntry('bias', (2,), rule='init', value=torch.ones(2)),
    ]
    plan = TransferPlan(entries)
    assert plan.coverage == 0
    with pytest.raises(TransferError, match='copy nothing') as error:
        plan.apply(module)
    assert 'why it is fresh' in str(error.value)
    assert_untouched(module, before, before)


def test_applying_keeps_dtype_and_gradient_state():
    teacher = build(vit_cfg(), 1).double()
    student = build(pmamba_cfg(), 2)
    subclone(student, teacher)
    for parameter in student.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.requires_grad
        assert parameter.is_leaf
    expected = teacher.backbone.ln1.weight.float()
    assert student.backbone.ln1.weight.equal(expected)


def test_an_image_teacher_starts_a_video_student():
    """Its patch embedding reads the middle frame of each tubelet."""
    teacher = build(vit_cfg(dims=16, img_size=16, patch_size=4), 1)
    student = build(
        dict(
            type='transmamba.VideoMamba',
            arch=dict(embed_dims=12, num_layers=2),
            img_size=16,
            patch_size=4,
            num_frames=6,
            tubelet_size=3,
        ),
        2,
    )
    before = student.temporal_pos_embedding.clone()
    weights = read_teacher(teacher.state_dict())
    plan = Subcloner(student, weights, importance='random').plan()
    plan.apply(student)
    kept = Subcloner(student, weights, importance='random').indices(
        'residual', None, 12
    )
    (entry,) = (e for e in plan.entries if e.name == 'patch_embed.proj.weight')
    assert entry.rule == 'resize'
    assert 'inflated to 3 frames' in entry.note
    video = student.patch_embed.proj.weight
    image = teacher.backbone.patch_embed.projection.weight
    assert video[:, :, 1].equal(image[kept])
    assert video[:, :, [0, 2]].eq(0).all()
    positions = teacher.backbone.pos_embed[:, :, kept]
    assert student.pos_embed.equal(positions)
    assert student.temporal_pos_embedding.equal(before)
