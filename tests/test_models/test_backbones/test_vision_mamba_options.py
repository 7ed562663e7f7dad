# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Options of Vim that no released model uses."""

import pytest
import torch
from backbone_cases import CLOSE, images
from golden_vim import (
    IGNORED,
    MaxOfTokens,
    NoHead,
    assert_all_read,
    head_of,
    mixer_of,
    vim_tokens,
)
from helpers import randomise
from mmpretrain.registry import MODELS
from torch import nn

from transmamba_mm.checkpoints import NOTE
from transmamba_mm.contract.class_tokens import join_class_tokens
from transmamba_mm.distill.recorders import DirectionTapsRecorder
from transmamba_mm.models import VisionMamba
from transmamba_mm.ops import invert_order, reorder

WITH_FFN = dict(embed_dims=16, num_layers=3, ffn_ratio=2)


def backbone(seed=0, **kwargs):
    kwargs.setdefault('arch', dict(embed_dims=16, num_layers=3))
    kwargs.setdefault('img_size', 16)
    kwargs.setdefault('out_type', 'raw')
    kwargs['mixer_cfg'] = dict(d_state=4, **kwargs.get('mixer_cfg', {}))
    torch.manual_seed(seed)
    net = VisionMamba(patch_size=4, **kwargs)
    randomise(net, seed)
    return net.eval()


# ------------------------------------------------ one direction, positions


@pytest.mark.parametrize('class_token', ['head', 'none'])
def test_one_direction_sees_no_later_token(class_token):
    net = backbone(
        mixer_cfg=dict(bimamba_type='none'), class_token=class_token
    )
    assert net.directions == ('raster',)
    names = {name for name, _ in net.named_parameters()}
    assert not any('_b.' in n or n.endswith(('A_b_log', 'D_b')) for n in names)
    x = images(16, 16)
    changed = x.clone()
    changed[..., 8:12, 4:8] += 1  # patch 9
    same = net(x)[0].eq(net(changed)[0]).all(dim=2).all(dim=0)
    first = 9 + net.num_extra_tokens
    assert same[:first].all()
    assert not same[first:].any()


def test_taps_of_one_direction_are_the_mixers_output():
    net = backbone(mixer_cfg=dict(bimamba_type='none', layer_scale=0.5))
    outputs = []
    net.layers[1].mixer.register_forward_hook(
        lambda m, i, out: outputs.append(out)
    )
    recorder = DirectionTapsRecorder('out')
    recorder.initialize(net)
    with recorder:
        net(images(16, 12))
    record = recorder.get_record_data()[1]
    assert record.direction == 'raster'
    tokens = reorder(record.tokens, invert_order(record.order()))
    (slot,) = net.class_token_slots(4, 3)
    expected = outputs[0]
    joined = join_class_tokens(expected[:, slot : slot + 1], tokens, (slot,))
    torch.testing.assert_close(joined, expected, **CLOSE)


def test_without_learned_positions():
    net = backbone(abs_pos_embed=False, drop_rate=0.5)
    assert net.pos_embed is None
    assert 'pos_embed' not in net.state_dict()
    assert 'pos_embed' not in net.param_roles()
    out = net(images(20, 12))[0]
    assert out.shape == (2, 16, 16)
    tokens, _ = net._embed(images(16, 16))
    assert tokens[0, 8].equal(tokens[1, 8])
    assert tokens[0, 8].equal(net.cls_token[0, 0])
    # As in the original, dropout belongs to the positions.
    tokens, _ = net.train()._embed(images(16, 16))
    assert tokens.ne(0).all()


# --------------------------------------------- options that there were


def noted(net, **more):
    """Its state dict, with more in the note of its layout."""
    state = net.state_dict()
    state._metadata[''][NOTE].update(more)
    return state


def test_notes_may_tell_of_options_that_are_gone():
    source, net = backbone(seed=1), backbone()
    net.load_state_dict(noted(source, rope_residual=False, rope_span=14))
    assert net.pos_embed.equal(source.pos_embed)


def test_weights_of_a_rotary_model_are_refused():
    state = noted(backbone(), rope_residual=True, rope_span=14)
    state['rope.freqs_cos'] = torch.ones(16, 16)
    with pytest.raises(RuntimeError, match=r'rope\.freqs_cos'):
        backbone().load_state_dict(state)


# --------------------------------------------------------------- pooling


def test_pooling_without_class_token():
    """The original's ``final_pool_type``."""
    x = images(16, 20)
    shown = {
        out_type: backbone(class_token='none', out_type=out_type)(x)[0]
        for out_type in ('raw', 'avg_featmap', 'last_token')
    }
    tokens = shown['raw']
    torch.testing.assert_close(shown['avg_featmap'], tokens.mean(1), **CLOSE)
    assert shown['last_token'].equal(tokens[:, -1])


def test_last_token_is_a_patch():
    x = images(16, 16)
    raw = backbone(class_token='double')(x)[0]
    last = backbone(class_token='double', out_type='last_token')(x)[0]
    assert last.equal(raw[:, -2])


def test_logits_of_every_token():
    model = MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(
                type='transmamba.VisionMamba',
                arch=dict(embed_dims=16, num_layers=1),
                img_size=16,
                patch_size=4,
                class_token='none',
                out_type='raw',
            ),
            head=dict(type='LinearClsHead', num_classes=5, in_channels=16),
        )
    )
    logits = model(images(16, 16))
    assert logits.shape == (2, 16, 5)
    assert logits.amax(dim=1).shape == (2, 5)


# ----------------------------------------------------- official options


def test_ssm_cfg_is_that_of_the_mixer():
    build = dict(
        d_state=4,
        init_layer_scale=0.0,
        ssm_cfg=dict(
            d_conv=3, expand=1.5, dt_rank='auto', dt_min=0.01, bias=True
        ),
        use_checkpoint=True,
        initializer_cfg={},
    )
    options = mixer_of(build, 'v1', divide_out=False)
    assert options == dict(
        bimamba_type='v1',
        d_state=4,
        d_conv=3,
        expand=1.5,
        dt_rank=None,
        bias=True,
        divide_out=False,
        layer_scale=1.0,
    )
    # A scale that starts at zero is a parameter, too.
    net = VisionMamba(
        dict(embed_dims=16, num_layers=1), img_size=16, mixer_cfg=options
    )
    assert net.layers[0].mixer.gamma is not None
    assert set(build) <= IGNORED
    assert_all_read(build)
    assert mixer_of({}, 'v2') == dict(bimamba_type='v2', d_state=16)


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (dict(if_bidirectional=True), 'if_bidirectional is not supported'),
        (dict(if_rope=True), 'if_rope is not supported'),
        (dict(new_option=1), r"unknown: \['new_option'\]"),
    ],
)
def test_unread_options_are_named(build, message):
    with pytest.raises(AssertionError, match=message):
        assert_all_read(build)


def test_fast_path_decides_the_directions():
    with pytest.raises(AssertionError, match='scans forward alone'):
        mixer_of(dict(ssm_cfg=dict(use_fast_path=False)), 'v2')
    options = mixer_of(dict(ssm_cfg=dict(use_fast_path=False)), 'none')
    assert options['bimamba_type'] == 'none'


def test_heads_of_official_models():
    assert head_of(0)['type'] is NoHead
    assert head_of(5) == dict(type='LinearClsHead', num_classes=5)
    tokens = dict(if_cls_token=False, final_pool_type='max')
    assert vim_tokens(tokens) == ('none', 'raw', 'max')
    # The original takes the largest class where there are no tokens.
    pooled = vim_tokens(dict(final_pool_type='max'))
    assert pooled == ('middle', 'cls_token', 'max')
    head = MaxOfTokens(num_classes=5, in_channels=16)
    features = torch.randn(2, 16)
    assert head((features,)).equal(head.fc(features).amax(dim=1))


# -------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (
            dict(class_token='none', out_type='cls_token'),
            "set out_type='avg_featmap'",
        ),
        (
            dict(mixer_cfg=dict(bimamba_type='v4')),
            "'none', 'v1' or 'v2', got 'v4'",
        ),
    ],
)
def test_mistakes_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        backbone(**kwargs)


def test_layer_norm_overlap_and_layer_scale_together():
    net = backbone(
        norm_cfg=dict(type='LN', eps=1e-5),
        stride=2,
        mixer_cfg=dict(layer_scale=0.1, divide_out=False),
        out_type='featmap',
    )
    assert net(images(16, 16))[0].shape == (2, 16, 7, 7)
    assert isinstance(net.norm_f, nn.LayerNorm)
    assert net.layers[0].mixer.gamma.shape == (16,)


# -------------------------------------------------------------------- FFN


def test_ffn_is_pre_norm_with_residual():
    block = backbone(arch=WITH_FFN).layers[1]
    block.mixer.out_proj.weight.data.zero_()
    x = torch.randn(2, 7, 16)
    first, second = block.ffn.layers[0][0], block.ffn.layers[1]
    inner = torch.nn.functional.gelu(first(block.norm2(x)))
    torch.testing.assert_close(block(x, (2, 3)), x + second(inner), **CLOSE)


def test_start_values_with_an_ffn():
    """Twice as many summands enter the residual stream."""
    torch.manual_seed(0)
    arch = dict(embed_dims=64, num_layers=8)
    plain, wide = (
        VisionMamba(arch=dict(arch, ffn_ratio=ratio)) for ratio in (0, 2)
    )
    for a, b in zip(plain.layers, wide.layers):
        ratio = a.mixer.out_proj.weight.std() / b.mixer.out_proj.weight.std()
        assert ratio.item() == pytest.approx(2**0.5, rel=0.1)
        first, second = b.ffn.layers[0][0], b.ffn.layers[1]
        assert first.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert second.weight.std().item() == pytest.approx(0.005, rel=0.1)
        assert not first.bias.any() and not second.bias.any()
