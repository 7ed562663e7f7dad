# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Every kind of teacher: its sizes, and what its sites show.

The sites are held against the algebra of a Transformer: what the mixer adds
to the stream is what the next norm reads, and attention computed anew from
the queries, keys and values is what the mixer added.
"""

import re

import pytest
import torch
import torch.nn.functional as F
from helpers import build, pmamba_cfg, vit_cfg
from teacher_cases import CASES, CLIP
from torch import nn

from transmamba_mm.contract import Teacher, TeacherError, read_teacher
from transmamba_mm.contract.sites import TEACHER_SITES
from transmamba_mm.distill import PatchTokensRecorder, TeacherSiteRecorder

CLOSE = dict(rtol=1e-4, atol=1e-5)


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def only(wanted):
    """Some of the cases."""
    names = [name for name, case in CASES.items() if wanted(case)]
    return pytest.mark.parametrize('case', names, indirect=True)


@pytest.fixture
def model(case):
    torch.manual_seed(0)
    return case.make().eval()


def images_of(case):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, case.size, case.size, generator=generator)


@torch.no_grad()
def record(model, images, *sites):
    recorders = [TeacherSiteRecorder(site) for site in sites]
    for recorder in recorders:
        recorder.initialize(model)
        recorder.__enter__()
    outputs = model(images)
    for recorder in recorders:
        recorder.__exit__(None, None, None)
    found = [recorder.get_record_data() for recorder in recorders]
    return found, outputs


def whole(record):
    return torch.cat([record.classes, record.tokens], dim=1)


def layer_names(case):
    return [f'{case.prefix}{case.where}.{name}' for name in case.layers]


def test_sizes(case, model):
    teacher = Teacher(model)
    assert teacher.family.name == case.family
    assert teacher.layers == layer_names(case)
    assert teacher.layer_dims == case.dims
    assert teacher.embed_dims == case.dims[-1]
    assert teacher.num_heads == case.heads
    assert teacher.num_extra_tokens == case.extra
    assert (teacher.patch_size, teacher.stride) == (4, 4)


def test_the_checkpoint_is_read_alike(case, model):
    weights = read_teacher(model.state_dict())
    assert weights.family == case.family
    assert weights.num_extra_tokens == case.positions
    assert weights.layer_dims == case.dims
    teacher = Teacher(model)
    for role in weights.tensors:
        if role not in teacher.roles:
            # Made of two, or only a file's, which holds the head as well.
            assert role.endswith('qkv.bias') or not case.logits
            continue
        own = teacher.parameter(role).reshape(weights.tensors[role].shape)
        if not role.startswith('layers.') or 'out' not in role:
            assert own.equal(weights.tensors[role]), role
    stems = {'mixer_norm', 'qkv', 'mixer_out', 'ffn_norm', 'ffn_in', 'ffn_out'}
    for layer in range(len(case.dims)):
        for stem in stems:
            assert f'layers.{layer}.{stem}.weight' in weights.tensors
            assert f'layers.{layer}.{stem}.bias' in weights.tensors
    assert {'patch_embed.weight', 'final_norm.weight'} <= set(weights.tensors)
    if case.positions:
        assert weights.grid == (4, 4)


def test_tokens_are_patches_on_their_grid(case, model):
    (layers, tokens), _ = record(model, images_of(case), 'layers', 'tokens')
    side = case.size // 4
    for i, (found, dims) in enumerate(zip(layers, case.dims)):
        stage = int(case.layers[i][0]) if case.where == 'stages' else 0
        grid = (side >> stage, side >> stage)
        assert (found.layer, found.grid) == (i, grid)
        assert found.tokens.shape == (2, grid[0] * grid[1], dims)
        assert found.classes.shape == (2, case.extra, dims)
        assert not found.tokens.requires_grad
    norm = model.get_submodule(case.prefix + case.final)
    torch.testing.assert_close(whole(tokens[0]), norm(whole(layers[-1])))


def test_mixers_add_to_the_stream_what_the_ffn_reads(case, model):
    ffn_norms, handles = [], []
    for layer in range(len(case.dims)):
        module = Teacher(model).module(f'layers.{layer}.ffn_norm.weight')
        handles.append(
            module.register_forward_pre_hook(
                lambda _, inputs: ffn_norms.append(inputs[0])
            )
        )
    sites = ('streams', 'mixers', 'layers', 'mixer_inputs')
    (streams, mixers, layers, inputs), _ = record(
        model, images_of(case), *sites
    )
    assert len(ffn_norms) == len(case.dims)
    for i, read in enumerate(ffn_norms):
        if getattr(model, 'batch_first', True) is False:
            read = read.transpose(0, 1)
        added = whole(streams[i]) + whole(mixers[i])
        torch.testing.assert_close(added, read, **CLOSE)
        norm = Teacher(model).module(f'layers.{i}.mixer_norm.weight')
        torch.testing.assert_close(
            whole(inputs[i]), norm(whole(streams[i])), **CLOSE
        )
        if case.where != 'stages' and i:
            assert torch.equal(whole(streams[i]), whole(layers[i - 1]))


# Swin attends in windows; it, BEiT and DINOv3 add or rotate by position.
@only(lambda case: not re.search('Swin|BEiT', case.family))
def test_attention_from_queries_keys_and_values(case, model):
    (qkv, mixers), _ = record(model, images_of(case), 'qkv', 'mixers')
    weights = read_teacher(model.state_dict()).tensors
    for i, (found, heads) in enumerate(zip(qkv, case.heads)):
        parts = whole(found).chunk(3, dim=-1)
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in parts)
        mixed = F.scaled_dot_product_attention(q, k, v)
        mixed = F.linear(
            mixed.transpose(1, 2).flatten(2),
            # A LayerScale is folded into these.
            weights[f'layers.{i}.mixer_out.weight'],
            weights[f'layers.{i}.mixer_out.bias'],
        )
        torch.testing.assert_close(mixed, whole(mixers[i]), **CLOSE)


@only(lambda case: 'BEiT' in case.family)
def test_queries_keys_and_values_have_their_biases(case, model):
    (qkv, inputs), _ = record(model, images_of(case), 'qkv', 'mixer_inputs')
    attention = model.get_submodule(f'{layer_names(case)[0]}.attn')
    q, k, v = whole(qkv[0]).chunk(3, dim=-1)
    weight = attention.qkv.weight
    plain = F.linear(whole(inputs[0]), weight).chunk(3, dim=-1)
    torch.testing.assert_close(q, plain[0] + attention.q_bias, **CLOSE)
    torch.testing.assert_close(k, plain[1], **CLOSE)
    torch.testing.assert_close(v, plain[2] + attention.v_bias, **CLOSE)
    assert Teacher(model).attention_extras()


@only(lambda case: case.where == 'stages')
def test_qkv_of_swin_is_the_projection_of_its_windows(case, model):
    windows = []
    first = Teacher(model).module('layers.0.qkv.weight')
    first.register_forward_hook(lambda _, i, output: windows.append(output))
    (qkv,), _ = record(model, images_of(case), 'qkv')
    # Windows of 2x2 on a grid of 16x16: the first holds these tokens.
    token = qkv[0].tokens[0, [0, 1, 16, 17]]
    torch.testing.assert_close(windows[0][0], token, **CLOSE)


@only(lambda case: case.logits)
def test_logits(case, model):
    (found,), outputs = record(model, images_of(case), 'logits')
    assert torch.equal(found, outputs)
    assert found.shape == (
        2,
        3 if re.match('mmpretrain [VB]', case.family) else 5,
    )


def test_patch_tokens_need_no_pattern(case, model):
    recorder = PatchTokensRecorder(layers='all')
    recorder.initialize(model)
    images = images_of(case)
    with recorder, torch.no_grad():
        model(images)
    (layers, (last,)), _ = record(model, images, 'layers', 'tokens')
    wanted = [x.tokens for x in layers[:-1]] + [last.tokens]
    for found, tokens in zip(recorder.get_record_data(), wanted, strict=True):
        assert torch.equal(found, tokens)


# -------------------------------------------------- towers and mistakes


class TwoTowers(nn.Module):
    def __init__(self):
        super().__init__()
        self.image = build(vit_cfg(), 1).backbone
        self.text = build(vit_cfg(dims=8), 2).backbone


def test_towers_are_told_apart_by_name():
    model = TwoTowers()
    for name, dims in (('image', 16), ('text', 8)):
        assert Teacher(model, name).embed_dims == dims
        weights = read_teacher(model.state_dict(), name)
        assert weights.embed_dims == dims
        assert weights.names['pos_embed'] == f'{name}.pos_embed'
    message = r"\['image', 'text'\]: say by name"
    with pytest.raises(TeacherError, match=message):
        Teacher(model)
    with pytest.raises(TeacherError, match=message):
        read_teacher(model.state_dict())
    with pytest.raises(TeacherError, match="called 'video'"):
        Teacher(model, 'video')


def test_the_text_tower_of_clip_is_not_the_vision_tower():
    model = CLIP()
    assert Teacher(model).layers[0] == 'visual.transformer.resblocks.0'
    model.visual = nn.Identity()
    with pytest.raises(TeacherError, match='no known Transformer'):
        Teacher(model)


def test_a_teacher_of_no_family_is_told_how_to_write_a_row():
    with pytest.raises(TeacherError, match=r'contract/families') as error:
        Teacher(build(pmamba_cfg()))
    assert 'docs/guides/extending.md' in str(error.value)


def test_a_site_that_does_not_exist():
    recorder = TeacherSiteRecorder('attention')
    with pytest.raises(ValueError, match="'attention'; choose from") as error:
        recorder.initialize(build(vit_cfg()))
    assert all(site in str(error.value) for site in TEACHER_SITES)


def test_a_bare_backbone_gives_no_logits():
    with pytest.raises(TeacherError, match='no logits'):
        Teacher(build(vit_cfg()).backbone).modules_of('logits')


def timm_resnet():
    return build(
        dict(
            type='mmpretrain.TimmClassifier',
            model_name='resnet10t',
            num_classes=5,
        )
    )


def mmpretrain_resnet():
    return build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(type='ResNet', depth=18),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=5, in_channels=512),
        )
    )


@pytest.mark.parametrize('make', [timm_resnet, mmpretrain_resnet])
def test_of_any_classifier_the_logits_are_known(make):
    model, images = make(), torch.randn(2, 3, 64, 64)
    (found,), outputs = record(model, images, 'logits')
    assert torch.equal(found, outputs)
    with pytest.raises(TeacherError, match='no known Transformer'):
        record(model, images, 'layers')


def test_a_model_without_scores_has_no_logits():
    with pytest.raises(TeacherError, match='no scores that are known'):
        record(nn.Linear(2, 2), torch.zeros(1, 2), 'logits')
