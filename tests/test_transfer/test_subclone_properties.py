# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Weight subcloning over random widths, depths and grids."""

import pytest
import torch
import torch.nn.functional as F
from helpers import build, pmamba_cfg, vit_cfg
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from subclone_cases import CLOSE, counterparts, entry_of
from teacher_cases import CASES, swin

from transmamba_mm.contract import Student, read_teacher
from transmamba_mm.contract.roles import AXES, split_role
from transmamba_mm.transfer import Subcloner

few = settings(max_examples=15, deadline=None)


@st.composite
def pairs(draw):
    """A teacher, a student no larger than it, and options."""
    heads = draw(st.integers(1, 3))
    dims = heads * draw(st.integers(2, 6))
    depth = draw(st.integers(1, 4))
    ffn = draw(st.integers(4, 30))
    teacher = vit_cfg(
        dims, depth, heads, ffn, img_size=4 * draw(st.integers(1, 4))
    )
    width = draw(st.integers(2, dims))
    own_depth = draw(st.integers(1, 4))
    sides = st.integers(1, 4)
    grid = draw(sides), draw(sides)
    # As many positions on another grid: weights alone do not tell.
    side = teacher['backbone']['img_size'] // 4
    assume(grid == (side, side) or grid[0] * grid[1] != side**2)
    student = pmamba_cfg(
        width,
        own_depth,
        img_size=(4 * grid[0], 4 * grid[1]),
        # So that the student's FFN has a whole number of channels.
        ffn_ratio=draw(st.integers(1, ffn)) / width,
        mixer=dict(expand=draw(st.integers(1, dims)) / width),
    )
    options = dict(
        importance=draw(st.sampled_from(['magnitude', 'random', 'first'])),
        layer_map=draw(
            st.sampled_from(['uniform', 'first_n'])
            | st.lists(
                st.none() | st.integers(0, depth - 1),
                min_size=own_depth,
                max_size=own_depth,
            )
        ),
        early_layers=draw(st.none() | st.integers(0, own_depth)),
        seed=draw(st.integers(0, 5)),
    )
    return teacher, student, options


def resized(positions, grid):
    """Position embeddings (1, L, C) of a square grid, on another one."""
    side = int(positions.shape[1] ** 0.5)
    maps = positions.mT.unflatten(2, (side, side))
    if (side, side) == grid:
        return positions
    maps = F.interpolate(maps, grid, mode='bicubic', align_corners=False)
    return maps.flatten(2).mT


@given(pairs())
@few
def test_every_parameter_has_one_entry_and_the_teachers_values(drawn):
    """By name and by the index sets: rows and columns alike."""
    teacher, student, options = drawn
    teacher, student = build(teacher, 1), build(student, 2)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    weights = read_teacher(teacher.state_dict())
    subcloner = Subcloner(student, weights, **options)
    plan = subcloner.plan()
    plan.apply(student)
    names = [name for name, _ in student.named_parameters()]
    assert [entry.name for entry in plan.entries] == names

    early = options['early_layers']
    layers = [
        None if early is not None and i >= early else source
        for i, source in enumerate(plan.settings['layer_map'])
    ]
    state, source = student.state_dict(), teacher.state_dict()
    roles, index = Student(student).roles(), subcloner.pairing.indices
    copied = {'backbone.pos_embed'}
    for ours, theirs in counterparts(layers).items():
        layer, kind = split_role(roles[ours])
        value = source[theirs]
        for dim, axis in enumerate(AXES[kind]):
            size = state[ours].shape[dim]
            if size < value.shape[dim]:
                own = None if axis == 'residual' else layers[layer]
                value = value.index_select(dim, index(axis, own, size))
        if value.shape != state[ours].shape:
            continue  # fewer channels in the teacher: left fresh
        assert state[ours].equal(value), ours
        copied.add(ours)
    width = student.backbone.embed_dims
    positions = resized(
        source['backbone.pos_embed'][:, 1:],
        student.backbone.patch_embed.init_out_size,
    )
    kept = index('residual', None, width)
    torch.testing.assert_close(
        state['backbone.pos_embed'], positions[..., kept], **CLOSE
    )
    for name in names:
        entry = entry_of(plan, name)
        assert (entry.copied > 0) == (name in copied), name
        if entry.copied == 0:
            assert state[name].equal(before[name]), name
            assert entry.note, name


@given(st.integers(0, 1000), st.sampled_from(['vit', 'timm']))
@settings(max_examples=8, deadline=None)
def test_half_the_width_is_one_function_where_channels_come_twice(seed, kind):
    """Embedding, positions, norms, FFNs and head agree on what is kept.

    Every channel of the teacher's stream comes twice, and only one of the two
    is read. LayerNorm over the kept half is then that over all. A set that
    differed in any tensor, or in its order, would change the result.
    """
    teacher = build(vit_cfg(ffn=40), seed)
    if kind == 'timm':
        teacher = CASES['TimmClassifier ViT'].make()
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randperm(16, generator=generator).view(2, 8)
    kept, twins = pairs[:, pairs[0].argsort()]
    weights = read_teacher(teacher.state_dict())
    parts = dict(teacher.state_dict())
    for role, tensor in weights.tensors.items():
        leaf = split_role(role)[1]
        for dim, axis in enumerate(AXES.get(leaf, ())):
            if axis == 'residual':
                reads = leaf in ('ffn_in.weight', 'head.weight')
                moved = tensor.transpose(0, dim)
                moved[twins] = 0 if reads else moved[kept]
        if 'mixer_out' in role:
            tensor.zero_()
        parts[weights.names[role]] = tensor
    teacher.load_state_dict(parts)
    depth = weights.num_layers
    student = build(
        pmamba_cfg(
            8,
            depth,
            classes=len(weights.tensors['head.bias']),
            ffn_ratio=len(weights.tensors['layers.0.ffn_in.bias']) / 8,
            norm_cfg=dict(type='LN', eps=1e-6),
        ),
        2,
    )
    scores = {f'layers.{i}.inner': torch.ones(16) for i in range(depth)}
    scores['residual'] = torch.isin(torch.arange(16), kept).float()
    Subcloner(
        student,
        read_teacher(teacher.state_dict()),
        importance='activation',
        activations=scores,
    ).plan().apply(student)
    images, tokens = torch.randn(2, 3, 16, 16, generator=generator), []
    net = teacher.backbone if kind == 'vit' else teacher.model
    norm = net.ln1 if kind == 'vit' else net.norm
    handle = norm.register_forward_hook(lambda m, a, out: tokens.append(out))
    with torch.no_grad():
        teacher(images)
        expected = tokens[0][:, 1:].mean(1) @ weights.tensors['head.weight'].T
        expected = expected + weights.tensors['head.bias']
        actual = student(images)
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
        # The oracle sees a set that differs in one tensor alone.
        kernel = student.backbone.patch_embed.projection.weight
        kernel.copy_(kernel.roll(1, 0))
        assert not torch.allclose(student(images), expected, atol=1e-3)
    handle.remove()


@given(st.integers(4, 16), st.integers(0, 50))
@settings(max_examples=8, deadline=None)
def test_producers_and_consumers_have_the_same_channels(width, seed):
    """Hidden channels that are dropped carry nothing, so none is missed."""
    teacher = build(vit_cfg(), seed)
    weights = read_teacher(teacher.state_dict())
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randperm(32, generator=generator)[:width].sort().values
    off = torch.ones(32, dtype=torch.bool)
    off[hidden] = False
    for layer in teacher.backbone.layers:
        layer.ffn.layers[0][0].weight.data[off] = 0
        layer.ffn.layers[0][0].bias.data[off] = 0
    student = build(pmamba_cfg(ffn_ratio=width / 16), 2)
    subcloner = Subcloner(student, weights, importance='magnitude')
    subcloner.plan().apply(student)
    x = torch.randn(2, 5, 16)
    for i, layer in enumerate(teacher.backbone.layers):
        assert subcloner.pairing.indices('hidden', i, width).equal(hidden)
        actual = student.backbone.layers[i].ffn(x)
        torch.testing.assert_close(actual, layer.ffn(x), **CLOSE)


@pytest.mark.parametrize('depths', [(1, 1, 1, 1), (2, 1, 3, 2)])
def test_stages_of_any_depth_are_paired_with_their_own(depths):
    teacher = build(swin(), 1)
    student = build(
        dict(
            type='transmamba.VMamba',
            arch=dict(embed_dims=8, depths=depths, patch_embed='v1'),
        ),
        2,
    )
    plan = Subcloner(student, read_teacher(teacher.state_dict())).plan()
    plan.apply(student)
    starts = [0, 1, 2, 4, 5]
    stages = [
        stage for stage, depth in enumerate(depths) for _ in range(depth)
    ]
    assert len(plan.settings['layer_map']) == len(stages)
    for i, (stage, source) in enumerate(
        zip(stages, plan.settings['layer_map'])
    ):
        assert starts[stage] <= source < starts[stage + 1]
        theirs = teacher.backbone.stages[stage].blocks[source - starts[stage]]
        ours = student.blocks()[i]
        assert ours.norm.weight.equal(theirs.norm1.weight)
        assert ours.mlp.fc2.weight.equal(theirs.ffn.layers[1].weight)
        # A Swin FFN and ours are one function.
        x = torch.randn(2, 3, ours.norm.weight.numel())
        torch.testing.assert_close(ours.mlp(x), theirs.ffn.layers(x), **CLOSE)
