# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""CLIP's towers: as computed by hand, and as open_clip where installed."""

from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from retrieval_models import VOCAB, build_random, text_cfg, vision_cfg

from transmamba_mm.checkpoints import CheckpointError
from transmamba_mm.contract import Teacher, read_teacher
from transmamba_mm.models import CLIPTextTower, CLIPVisionTower
from transmamba_mm.registry import MODELS

SAME = dict(rtol=1e-5, atol=1e-5)


def by_hand(x, weights, heads, mask=None, act='quick_gelu'):
    """All layers, of tensors by OpenAI's names."""
    depth = 1 + max(
        int(key.split('.')[2])
        for key in weights
        if key.startswith('transformer.')
    )

    def linear(name, x):
        return x @ weights[f'{name}weight'].T + weights[f'{name}bias']

    for i in range(depth):
        at = f'transformer.resblocks.{i}.'
        read = normed(x, weights, f'{at}ln_1')
        qkv = linear(f'{at}attn.in_proj_', read).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in qkv)
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(mask, -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(f'{at}attn.out_proj.', mixed)
        hidden = linear(f'{at}mlp.c_fc.', normed(x, weights, f'{at}ln_2'))
        if act == 'quick_gelu':
            hidden = hidden / (1 + (-1.702 * hidden).exp())
        else:
            hidden = F.gelu(hidden)
        x = x + linear(f'{at}mlp.c_proj.', hidden)
    return x


def normed(x, weights, name):
    centred = x - x.mean(-1, keepdim=True)
    unit = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return unit * weights[f'{name}.weight'] + weights[f'{name}.bias']


@pytest.mark.parametrize('act', ['quick_gelu', 'gelu'])
def test_vision_tower_by_hand(act):
    tower = build_random(vision_cfg(act=act))
    weights, images = tower.state_dict(), torch.randn(2, 3, 16, 16)
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5)
    x = patches.flatten(3).flatten(1, 2) @ weights['conv1.weight'].flatten(1).T
    classes = weights['class_embedding'].expand(2, 1, -1)
    x = torch.cat([classes, x], 1) + weights['positional_embedding']
    x = by_hand(normed(x, weights, 'ln_pre'), weights, 2, act=act)
    expected = normed(x[:, 0], weights, 'ln_post') @ weights['proj']
    torch.testing.assert_close(tower(images), expected, **SAME)
    torch.testing.assert_close(tower.eval()(images), expected, **SAME)


def test_text_tower_by_hand_whatever_follows_the_end():
    tower = build_random(text_cfg())
    weights = tower.state_dict()
    tokens = torch.tensor([[18, 3, 7, 19, 0, 0], [18, 5, 4, 3, 2, 19]])
    x = weights['token_embedding.weight'][tokens]
    x = x + weights['positional_embedding']
    x = by_hand(x, weights, 2, torch.ones(6, 6).triu(1).bool())
    ends = torch.stack([x[0, 3], x[1, 5]])
    expected = normed(ends, weights, 'ln_final') @ weights['text_projection']
    torch.testing.assert_close(tower(tokens), expected, **SAME)
    short = tower(tokens[:1, :4])
    torch.testing.assert_close(short, expected[:1], **SAME)
    tokens[0, 4:] = torch.tensor([9, 11])
    torch.testing.assert_close(tower(tokens), expected, **SAME)


@pytest.mark.parametrize('kind', ['vision', 'text'])
def test_checkpointing_changes_no_gradient(kind):
    def grads(with_cp):
        make = vision_cfg if kind == 'vision' else text_cfg
        tower = build_random(make(with_cp=with_cp)).train()
        read = torch.randn(2, 3, 16, 16)
        if kind == 'text':
            read = torch.randint(1, VOCAB, (2, 5))
        tower(read).square().sum().backward()
        return {name: p.grad for name, p in tower.named_parameters()}

    torch.manual_seed(1)
    expected = grads(False)
    torch.manual_seed(1)
    found = grads(True)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, **SAME)
        assert grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ('stages', 'frozen'),
    [
        (-1, ()),
        (0, ('conv1', 'class', 'positional', 'ln_pre')),
        (
            2,
            (
                *('conv1', 'class', 'positional', 'ln_pre'),
                *('transformer.resblocks.0.', 'transformer.resblocks.1.'),
            ),
        ),
        (3, ('',)),
    ],
)
def test_frozen_stages(stages, frozen):
    tower = build_random(vision_cfg(frozen_stages=stages)).train()
    for name, parameter in tower.named_parameters():
        still = bool(frozen) and name.startswith(frozen)
        assert parameter.requires_grad != still, name
    with pytest.raises(ValueError, match='has 3 layers'):
        build_random(vision_cfg(frozen_stages=4))


def test_mistakes():
    with pytest.raises(ValueError, match='choose from ViT-B/32, ViT-B/16'):
        CLIPVisionTower(arch='ViT-B/64')
    with pytest.raises(ValueError, match='embed_dims, num_heads'):
        CLIPTextTower(arch=dict(embed_dims=8))
    with pytest.raises(ValueError, match='unknown act'):
        build_random(text_cfg(act='relu'))
    with pytest.raises(ValueError, match=r'takes images \(B, 3, 16, 16\)'):
        build_random(vision_cfg())(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match='context_length=6: lower max_words'):
        build_random(text_cfg())(torch.ones(1, 7, dtype=torch.long))


@pytest.mark.parametrize(
    ('arch', 'vision', 'text'),
    [
        ('ViT-B/32', 87_849_216, 63_428_096),
        ('ViT-B/16', 86_192_640, 63_428_096),
        ('ViT-L/14', 303_966_208, 123_650_304),
    ],
)
def test_presets_have_the_sizes_of_the_released_models(arch, vision, text):
    with torch.device('meta'):
        towers = CLIPVisionTower(arch), CLIPTextTower(arch)
    sizes = [sum(p.numel() for p in x.parameters()) for x in towers]
    assert sizes == [vision, text]


def test_the_teacher_row_knows_the_tower():
    tower = build_random(vision_cfg())
    assert Teacher(tower).family.name == 'CLIP vision tower'
    weights = read_teacher(tower)
    assert weights.layer_dims == (16, 16, 16)
    assert weights.grid == (2, 2)


def build_with(config, path, **init):
    """Builds and initialises a tower from a checkpoint."""
    config['init_cfg'] = dict(type='Pretrained', checkpoint=path, **init)
    model = MODELS.build(config)
    model.init_weights()
    return model


def test_pretrained_towers_are_loaded_strictly(tmp_path):
    source, path = build_random(vision_cfg(), seed=1), tmp_path / 'tower.pth'
    state = source.state_dict()
    torch.save(state, path)
    found = build_with(vision_cfg(), str(path)).state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items())
    torch.save({f'a.{key}': value for key, value in state.items()}, path)
    found = build_with(vision_cfg(), str(path), prefix='a').state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items())
    with pytest.raises(CheckpointError, match='has no tensor with the prefix'):
        build_with(vision_cfg(), str(path), prefix='b')
    del state['proj']
    torch.save({**state, 'extra': torch.ones(1)}, path)
    with pytest.raises(
        CheckpointError, match='missing: proj; 1 unexpected: e'
    ):
        build_with(vision_cfg(), str(path))


# ------------------------------------------------------------- open_clip


@pytest.mark.skipif(find_spec('open_clip') is None, reason='no open_clip')
@pytest.mark.parametrize('act', ['quick_gelu', 'gelu'])
def test_equal_to_open_clip(act, tmp_path):
    open_clip = pytest.importorskip('open_clip')
    theirs = open_clip.model.CLIP(
        embed_dim=8,
        vision_cfg=dict(
            layers=3, width=16, head_width=8, patch_size=8, image_size=16
        ),
        text_cfg=dict(
            context_length=6, vocab_size=VOCAB, width=8, heads=2, layers=2
        ),
        quick_gelu=act == 'quick_gelu',
    ).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    path = str(tmp_path / 'open_clip.pt')
    torch.save(theirs.state_dict(), path)
    images = torch.randn(2, 3, 16, 16)
    tokens = torch.tensor([[18, 3, 7, 19, 0, 0], [18, 5, 4, 3, 2, 19]])
    vision = build_with(vision_cfg(act=act), path).eval()
    text = build_with(text_cfg(act=act), path).eval()
    with torch.no_grad():
        for found, expected in (
            (vision(images), theirs.encode_image(images)),
            (text(tokens), theirs.encode_text(tokens)),
        ):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
