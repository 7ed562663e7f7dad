# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Vim in training: precision, drop path, what is frozen."""

import pytest
import torch
from backbone_cases import CLOSE, HALF_RELATIVE, assert_layer_depths, images
from vision_mamba_cases import CLASS_TOKENS, backbone

# --------------------------------------------------- training behaviour


@pytest.mark.parametrize('kind', ['v1', 'v2'])
def test_repeats_bit_for_bit(kind):
    net = backbone(eval_mode=False, mixer_cfg=dict(bimamba_type=kind))
    x = images(16, 16)

    def step():
        net.zero_grad()
        out = net(x)[0]
        out.pow(3).sum().backward()
        grads = [p.grad.clone() for p in net.parameters()]
        return [out.detach(), *grads]

    for a, b in zip(step(), step()):
        assert a.equal(b)


@pytest.mark.parametrize('kind', ['v1', 'v2'])
@pytest.mark.parametrize('norm', ['transmamba.RMSNorm', 'LN'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_stays_close_and_finite(kind, norm, dtype):
    net = backbone(mixer_cfg=dict(bimamba_type=kind), norm_cfg=dict(type=norm))
    x = images(16, 16)
    expected = net(x)[0].detach()
    with torch.autocast('cpu', dtype=dtype):
        out = net(x)[0]
    out.float().pow(3).sum().backward()
    error = (out.float() - expected).abs().max() / expected.abs().max()
    assert error < HALF_RELATIVE[dtype]
    for parameter in net.parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize('norm', ['transmamba.RMSNorm', 'LN'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype, norm):
    net = backbone(out_type='raw', norm_cfg=dict(type=norm))
    x = images(20, 24)
    expected = net(x)[0].double()
    net, streams = net.to(dtype), []
    net.layers[0].register_forward_hook(lambda m, i, o: streams.append(o))
    out = net(x.to(dtype))[0]
    assert out.dtype == dtype
    error = (out.double() - expected).abs().max() / expected.abs().max()
    assert error < HALF_RELATIVE.get(dtype, 1e-5)
    net.residual_in_fp32 = False
    net(x.to(dtype))
    wide = torch.promote_types(dtype, torch.float32)
    assert [s.dtype for s in streams] == [wide, dtype]


def test_drop_path_grows_and_acts_in_training_only():
    x = images(16, 16, batch=8)
    plain = backbone(out_type='raw')
    net = backbone(out_type='raw', drop_path_rate=0.9)
    rates = [layer.drop_path.drop_prob for layer in net.layers]
    assert rates == pytest.approx([0.0, 0.9])
    assert net(x)[0].equal(plain(x)[0])
    assert not net.train()(x)[0].equal(plain(x)[0])


def test_compiled_equals_eager():
    net = backbone(depth=1)
    x = images(16, 16)
    expected = net(x)[0]
    expected.sum().backward()
    grads = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    torch._dynamo.reset()
    out = torch.compile(net, backend='eager')(x)[0]
    out.sum().backward()
    torch._dynamo.reset()
    torch.testing.assert_close(out, expected, **CLOSE)
    for parameter, grad in zip(net.parameters(), grads):
        torch.testing.assert_close(parameter.grad, grad, **CLOSE)


# --------------------------------------------- mmpretrain's conventions


@pytest.mark.parametrize('class_token', CLASS_TOKENS)
@pytest.mark.parametrize('stages', [-1, 0, 1, 3])
def test_frozen_stages(stages, class_token):
    net = backbone(
        depth=3,
        class_token=class_token,
        frozen_stages=stages,
        drop_rate=0.5,
        out_type='raw',
    )
    assert net.train() is net
    frozen = []
    if stages >= 0:
        frozen = ['pos_embed', 'cls_token', 'patch_embed.']
        frozen += [f'layers.{i}.' for i in range(stages)]
    frozen += ['norm_f.'] if stages == 3 else []
    for name, parameter in net.named_parameters():
        expected = not name.startswith(tuple(frozen))
        assert parameter.requires_grad == expected, name
    assert net.drop_after_pos.training == (stages < 0)
    for i, layer in enumerate(net.layers):
        assert layer.training == (i >= stages)
    out = net(images(16, 16))[0]
    if stages < 3:
        out.pow(3).sum().backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_layer_depth_for_layerwise_learning_rates():
    net = backbone(depth=3, out_indices=(0, 2))
    depths = {
        'pos_embed': 0,
        'cls_token': 0,
        'patch_embed.proj.weight': 0,
        'layers.0.norm.weight': 1,
        'layers.2.mixer.A_b_log': 3,
        'norm_f.weight': 4,
        'norm_layer0.weight': 4,
    }
    assert_layer_depths(net, depths, 5)
