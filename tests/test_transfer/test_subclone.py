# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Weight subcloning: what is copied, and from where."""

import pytest
import torch
import torch.nn.functional as F
from helpers import build, pmamba_cfg, vit_cfg
from subclone_cases import (
    CLOSE,
    LAYER_PAIRS,
    assert_untouched,
    counterparts,
    entry_of,
    rules,
    subclone,
)
from torch import nn

from transmamba_mm.contract import read_teacher
from transmamba_mm.transfer import Subcloner

# ------------------------------------------------ equal width and depth


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


# ------------------------------------------------------ other positions


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
    kept = Subcloner(student, weights, importance='random').pairing.indices(
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


# ------------------------------------------------ what cannot be copied


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


# --------------------------------------------------------- other depths


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
