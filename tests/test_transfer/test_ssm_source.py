# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Where the state space model's parameters come from."""

import pytest
import torch
from helpers import build, pmamba_cfg, snapshot, vit_cfg

from transmamba_mm.contract import read_teacher
from transmamba_mm.transfer import Subcloner, TransferError
from transmamba_mm.transfer.measure import collect_mixer_inputs
from transmamba_mm.transfer.ssm import build_ssm_source

# Solving a 16x16 system in double precision, stored in float32.
SOLVED = dict(rtol=1e-3, atol=1e-4)


def subclone(student, teacher, source, **kwargs):
    kwargs.setdefault('importance', 'first')
    before = snapshot(student)
    teacher = read_teacher(teacher.state_dict())
    plan = Subcloner(student, teacher, ssm=source, **kwargs).plan()
    plan.apply(student)
    return {entry.name: entry for entry in plan.entries}, before, plan


def ssm_names(student):
    return [
        name
        for name, _ in student.named_parameters()
        if '.mamba.' in name and 'out_proj' not in name
    ]


def mixer_parts(student, layer=0, d_state=4):
    """x half and z half of in_proj, and dt, B and C rows of x_proj."""
    mixer = student.backbone.layers[layer].mamba
    rank = mixer.dt_rank
    x_proj = mixer.x_proj.weight.split([rank, d_state, d_state])
    return mixer.in_proj.weight.chunk(2), mixer.in_proj.bias.chunk(2), x_proj


def attention(teacher, layer=0):
    """Query, key and value projections, and the value's bias."""
    qkv = teacher.backbone.layers[layer].attn.qkv
    return (*qkv.weight.chunk(3), qkv.bias.chunk(3)[2])


# ------------------------------------------------------------- attention


@pytest.mark.parametrize('d_state', [4, 16])
def test_attention_becomes_the_ssm(d_state):
    teacher = build(vit_cfg(), 1)
    student = build(pmamba_cfg(mixer=dict(d_state=d_state)), 2)
    source = build_ssm_source('attention')
    entries, before, plan = subclone(student, teacher, source)
    for i in range(2):
        query, key, value, bias = attention(teacher, i)
        weights, biases, (dt, B, C) = mixer_parts(student, i, d_state)
        assert weights[0].equal(value)
        assert biases[0].equal(bias)
        prefix = f'backbone.layers.{i}.mamba.'
        assert weights[1].equal(before[prefix + 'in_proj.weight'][16:])
        assert biases[1].equal(before[prefix + 'in_proj.bias'][16:])
        assert dt.equal(before[prefix + 'x_proj.weight'][: len(dt)])
        torch.testing.assert_close(B @ value, key[:d_state], **SOLVED)
        torch.testing.assert_close(C @ value, query[:d_state], **SOLVED)
        entry = entries[prefix + 'x_proj.weight']
        assert entry.rule == 'attention'
        assert entry.source == f'backbone.layers.{i}.attn.qkv.weight'
        assert entry.copied == 2 * d_state * 16
        for name in ('A_log', 'D', 'dt_proj.weight', 'conv2d.weight'):
            assert student.state_dict()[prefix + name].equal(
                before[prefix + name]
            )
            assert entries[prefix + name].rule == 'fresh'
    assert plan.settings['ssm'] == 'attention'


def test_attention_on_the_kept_channels():
    """Narrower and with fewer inner channels than residual ones have."""
    teacher = build(vit_cfg(), 1)
    student = build(pmamba_cfg(dims=10, ffn_ratio=1.2), 2)
    source = build_ssm_source('attention')
    options = dict(importance='random', seed=3)
    reader = Subcloner(student, read_teacher(teacher.state_dict()), **options)
    kept = reader.pairing.indices('residual', None, 10)
    inner = reader.pairing.indices('inner', 1, 10)
    states = reader.pairing.indices('inner', 1, 4)
    subclone(student, teacher, source, **options)
    query, key, value, bias = attention(teacher, 1)
    weights, biases, (_, B, C) = mixer_parts(student, 1)
    rows = value[inner][:, kept]
    assert weights[0].equal(rows)
    assert biases[0].equal(bias[inner])
    torch.testing.assert_close(B @ rows, key[states][:, kept], **SOLVED)
    torch.testing.assert_close(C @ rows, query[states][:, kept], **SOLVED)
    # The output projection reads the same inner channels.
    out = teacher.backbone.layers[1].attn.proj.weight[kept][:, inner]
    assert student.backbone.layers[1].mamba.out_proj.weight.equal(out)


def test_values_repeat_in_a_wider_mixer():
    teacher = build(vit_cfg(), 1)
    student = build(pmamba_cfg(mixer=dict(expand=2.5)), 2)
    subclone(student, teacher, build_ssm_source('attention'))
    _, key, value, _ = attention(teacher)
    weights, _, (_, B, _) = mixer_parts(student)
    repeated = torch.cat([value, value, value[:8]])
    assert weights[0].equal(repeated)
    torch.testing.assert_close(B @ repeated, key[:4], **SOLVED)


def test_too_few_channels_give_the_least_squares_solution():
    teacher = build(vit_cfg(), 1)
    student = build(pmamba_cfg(mixer=dict(expand=0.5)), 2)
    subclone(student, teacher, build_ssm_source('attention'))
    _, key, value, _ = attention(teacher)
    _, _, (_, B, _) = mixer_parts(student)
    error = B @ value[:8] - key[:4]
    assert error.abs().max() > 0.01
    torch.testing.assert_close(
        error @ value[:8].T, torch.zeros(4, 8), **SOLVED
    )


def test_what_attention_cannot_give_stays_fresh():
    teacher = build(vit_cfg(qkv_bias=False), 1)
    student = build(pmamba_cfg(mixer=dict(d_state=20)), 2)
    entries, before, _ = subclone(
        student, teacher, build_ssm_source('attention'), early_layers=1
    )
    first, second = 'backbone.layers.0.mamba.', 'backbone.layers.1.mamba.'
    assert entries[first + 'in_proj.weight'].rule == 'attention'
    assert 'no such projection' in entries[first + 'in_proj.bias'].note
    assert 'd_state 20 > attention' in entries[first + 'x_proj.weight'].note
    for name in ssm_names(student):
        if name != first + 'in_proj.weight':
            assert entries[name].rule == 'fresh'
            assert student.state_dict()[name].equal(before[name])
    note = entries[second + 'in_proj.weight'].note
    assert note == 'beyond early_layers=1'


# ---------------------------------------------------- a pretrained Mamba


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'model.backbone.'])
def test_a_pretrained_mamba_gives_its_ssm_alone(prefix):
    teacher, student = build(vit_cfg(), 1), build(pmamba_cfg(), 2)
    pretrained = build(pmamba_cfg(), 3)
    state = {
        prefix + k.removeprefix('backbone.'): v
        for k, v in pretrained.state_dict().items()
    }
    source = build_ssm_source('some/path.pth', state)
    entries, _, plan = subclone(student, teacher, source)
    names = ssm_names(student)
    assert len(names) == 2 * 10
    for name in names:
        expected = pretrained.state_dict()[name]
        assert student.state_dict()[name].equal(expected), name
        assert entries[name].rule == 'ssm'
        want = prefix + name.removeprefix('backbone.')
        assert entries[name].source == want
    norm = student.backbone.layers[1].norm.weight
    assert norm.equal(teacher.backbone.layers[1].ln1.weight)
    # Now every tensor of the student has a source.
    assert plan.coverage == 100
    assert plan.settings['ssm'] == 'pretrained Mamba'


def test_shapes_that_differ_are_told_and_left_fresh():
    teacher, student = build(vit_cfg(), 1), build(pmamba_cfg(), 2)
    pretrained = build(pmamba_cfg(mixer=dict(conv_size=5)), 3)
    source = build_ssm_source('path', pretrained.state_dict())
    entries, before, _ = subclone(student, teacher, source)
    conv = 'backbone.layers.0.mamba.conv2d.'
    assert entries[conv + 'weight'].note == (
        'SSM; the pretrained one is (16, 1, 5, 5)'
    )
    for leaf in ('weight', 'bias'):
        assert entries[conv + leaf].rule == 'fresh'
        assert student.state_dict()[conv + leaf].equal(before[conv + leaf])
    assert entries['backbone.layers.0.mamba.A_log'].rule == 'ssm'


def test_a_pretrained_model_that_fits_nowhere_is_refused():
    teacher, student = build(vit_cfg(), 1), build(pmamba_cfg(), 2)
    for state in (teacher.state_dict(), build(pmamba_cfg(8)).state_dict()):
        # direction_Bs does not depend on the width; the rest does.
        state = {k: v for k, v in state.items() if 'direction' not in k}
        source = build_ssm_source('path', state)
        with pytest.raises(TransferError, match='fits no SSM parameter'):
            subclone(student, teacher, source)


# ----------------------------------------------------------- convolutions


def convolutions(student):
    return [layer.mamba.conv2d for layer in student.backbone.layers]


@pytest.mark.parametrize('ssm_from', [None, 'attention'])
def test_convolutions_are_redrawn_from_a_normal(ssm_from):
    teacher = build(vit_cfg(dims=64, ffn=128), 1)

    def redraw(seed, std=0.5):
        student = build(pmamba_cfg(64, mixer=dict(conv_size=7)), 2)
        source = build_ssm_source(
            ssm_from, conv_init='normal', conv_std=std, seed=seed
        )
        return student, *subclone(student, teacher, source)

    student, entries, before, plan = redraw(0)
    weights = [conv.weight.detach() for conv in convolutions(student)]
    for i, weight in enumerate(weights):
        # 3136 draws: five standard errors.
        assert abs(weight.std() - 0.5) < 5 * 0.5 / (2 * weight.numel()) ** 0.5
        assert abs(weight.mean()) < 5 * 0.5 / weight.numel() ** 0.5
        name = f'backbone.layers.{i}.mamba.conv2d.'
        assert entries[name + 'weight'].rule == 'init'
        assert entries[name + 'weight'].note == 'conv_init: N(0, 0.5)'
        assert entries[name + 'weight'].copied == 0
        bias = student.state_dict()[name + 'bias']
        assert bias.equal(before[name + 'bias'])
    assert not weights[0].equal(weights[1])
    again = convolutions(redraw(0)[0])
    assert again[1].weight.equal(weights[1])
    assert not convolutions(redraw(1)[0])[1].weight.equal(weights[1])
    plain = subclone(student, teacher, build_ssm_source(ssm_from))[2]
    assert plan.coverage == plain.coverage


def test_unknown_convolution_start_is_refused():
    with pytest.raises(TransferError, match="None or 'normal', got 'zero'"):
        build_ssm_source(None, conv_init='zero')


def test_pretrained_mamba_gives_out_proj_where_attention_does_not_fit():
    teacher = build(vit_cfg(), 1)
    wide = pmamba_cfg(mixer=dict(expand=2))
    student, pretrained = build(wide, 2), build(wide, 3)
    source = build_ssm_source('mamba.pth', pretrained.state_dict())
    entries, _, _ = subclone(student, teacher, source)
    for leaf in ('weight', 'bias'):
        name = f'backbone.layers.1.mamba.out_proj.{leaf}'
        assert entries[name].rule == 'ssm'
        assert student.get_parameter(name).equal(
            pretrained.get_parameter(name)
        )


def test_a_student_without_such_roles_is_told(monkeypatch):
    teacher, student = build(vit_cfg(), 1), build(pmamba_cfg(), 2)
    roles = [
        (pattern, role)
        for pattern, role in type(student.backbone).PARAM_ROLES
        if 'conv' not in role and r'ssm.\2' not in role
    ]
    monkeypatch.setattr(type(student.backbone), 'PARAM_ROLES', roles)
    with pytest.raises(TransferError, match=r"needs the role '.*ssm\.conv"):
        Subcloner(
            student,
            read_teacher(teacher.state_dict()),
            importance='magnitude',
            ssm=build_ssm_source('attention'),
        ).plan()


# ------------------------------------------- attention without importance


def test_attention_needs_no_reference_where_nothing_is_dropped():
    """The states are then the channels with the largest ``|k| |q|``."""
    teacher, student = build(vit_cfg(), 1), build(pmamba_cfg(), 2)
    source = build_ssm_source('attention')
    never = dict(changes=lambda: pytest.fail('nothing is to be measured'))
    importance = dict(importance='least_changed', **never)
    _, _, plan = subclone(student, teacher, source, **importance)
    query, key, value, _ = attention(teacher)
    size = query.norm(dim=1) * key.norm(dim=1)
    states = sorted(size.argsort(descending=True)[:4].tolist())
    _, _, (_, B, C) = mixer_parts(student)
    torch.testing.assert_close(B @ value, key[states], **SOLVED)
    torch.testing.assert_close(C @ value, query[states], **SOLVED)
    assert plan.settings['importance'] == 'not needed'
    narrow = build(pmamba_cfg(dims=10, ffn_ratio=1.2), 2)
    with pytest.raises(TransferError, match='give reference_ckpt'):
        subclone(narrow, teacher, source, importance='least_changed')


@pytest.mark.parametrize(('dims', 'bias'), [(16, True), (10, False)])
def test_centred_keys_are_zero_on_average(dims, bias):
    """Of what ``in_proj`` makes of the tokens that attention reads."""
    teacher = build(vit_cfg(), 1)
    student = pmamba_cfg(dims=dims, ffn_ratio=1.2, mixer=dict(bias=bias))
    student, plain = build(student, 2), build(student, 2)
    images = [torch.randn(4, 3, 16, 16)]
    means = collect_mixer_inputs(teacher, images)
    source = build_ssm_source('attention', mean_inputs=lambda: means)
    _, _, plan = subclone(student, teacher, source)
    subclone(plain, teacher, build_ssm_source('attention'))
    assert plan.settings['ssm'] == 'attention, keys centred'
    seen = []
    norm = teacher.backbone.layers[1].ln1
    handle = norm.register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad():
        teacher(images[0])
    handle.remove()
    tokens = seen[0][:, 1:, :dims]  # importance='first' keeps the first
    mixer = student.backbone.layers[1].mamba
    x = mixer.in_proj(tokens).chunk(2, -1)[0]
    (_, B, C), (_, usual, same) = (
        model.backbone.layers[1].mamba.x_proj.weight.split([1, 4, 4])
        for model in (student, plain)
    )
    assert C.equal(same)
    mean = (x @ B.T).mean((0, 1))
    assert mean.abs().max() < 1e-4
    assert (x @ usual.T).mean((0, 1)).abs().max() > 1e-2
    # Across the mean, keys are as they were.
    axis = x.mean((0, 1))
    across = torch.randn(16 if dims == 16 else 10, dims)
    across = across - (across @ axis).outer(axis) / axis.dot(axis)
    torch.testing.assert_close(across @ B.T, across @ usual.T, **SOLVED)


def test_centred_keys_are_of_attention_alone():
    for ssm_from in (None, 'mamba.pth'):
        with pytest.raises(TransferError, match="ssm_from='attention'"):
            build_ssm_source(ssm_from, {}, mean_inputs=list)


# ------------------------------------------------------- a plain Mamba-1


def mamba(depth=3, dims=16, d_state=4, d_conv=4, prefix='backbone.'):
    """Weights of a Mamba-1 with ``expand=1``, as ``mamba_ssm`` names them."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        'in_proj.weight': (2 * dims, dims),
        'in_proj.bias': (2 * dims,),
        'conv1d.weight': (dims, 1, d_conv),
        'conv1d.bias': (dims,),
        'x_proj.weight': (1 + 2 * d_state, dims),
        'dt_proj.weight': (dims, 1),
        'dt_proj.bias': (dims,),
        'A_log': (dims, d_state),
        'D': (dims,),
        'out_proj.weight': (dims, dims),
    }
    state = {
        f'{prefix}layers.{i}.mixer.{name}': torch.randn(
            shape, generator=generator
        )
        for i in range(depth)
        for name, shape in shapes.items()
    }
    return {**state, f'{prefix}embedding.weight': torch.zeros(5, dims)}


def vim_cfg(**mixer):
    return dict(
        type='transmamba.VisionMamba',
        arch=dict(embed_dims=16, num_layers=2),
        img_size=16,
        patch_size=4,
        mixer_cfg=dict(dict(d_state=4, expand=1), **mixer),
    )


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_both_directions_of_vim_take_a_plain_mamba(prefix):
    teacher, student = build(vit_cfg(), 1), build(vim_cfg(), 2)
    state = mamba(prefix=prefix)
    entries, _, plan = subclone(
        student, teacher, build_ssm_source('path', state)
    )
    for ours, theirs in enumerate([0, 2]):  # spread over three layers
        mixer = student.layers[ours].mixer
        source = f'{prefix}layers.{theirs}.mixer.'
        for name, value in mixer.named_parameters():
            if name.startswith('out_proj'):
                continue  # the attention's
            stem = name.replace('_b.', '.').replace('A_b_', 'A_')
            stem = 'D' if stem == 'D_b' else stem
            assert value.equal(state[source + stem]), name
            entry = entries[f'layers.{ours}.mixer.{name}']
            assert (entry.rule, entry.source) == ('ssm', source + stem)
    assert student.layers[1].mixer.out_proj.weight.equal(
        teacher.backbone.layers[1].attn.proj.weight
    )
    assert plan.settings['ssm'] == 'pretrained Mamba'


def test_a_grid_student_takes_what_fits_of_a_plain_mamba():
    """All but the convolution, which is of another kind."""
    teacher, student = build(vit_cfg(), 1), build(pmamba_cfg(), 2)
    state = mamba()
    entries, before, _ = subclone(
        student, teacher, build_ssm_source('path', state)
    )
    mixer, prefix = (
        student.backbone.layers[1].mamba,
        'backbone.layers.1.mamba.',
    )
    source = 'backbone.layers.2.mixer.'
    for name in ('in_proj.weight', 'x_proj.weight', 'dt_proj.bias', 'A_log'):
        assert mixer.get_parameter(name).equal(state[source + name]), name
    assert entries[prefix + 'conv2d.weight'].note == (
        'SSM; the pretrained one is (16, 1, 4)'
    )
    for name in ('conv2d.weight', 'direction_Bs'):
        assert entries[prefix + name].rule == 'fresh'
        assert mixer.get_parameter(name).equal(before[prefix + name])


def test_a_narrower_mamba_is_refused_with_both_shapes():
    teacher, student = build(vit_cfg(), 1), build(vim_cfg(), 2)
    source = build_ssm_source('path', mamba(dims=8, d_state=8, d_conv=3))
    with pytest.raises(TransferError) as error:
        subclone(student, teacher, source)
    told = 'mixer.A_log is (16, 4), the pretrained one is (8, 8)'
    assert told in str(error.value)
