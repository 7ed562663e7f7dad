# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""PlainMamba in training: precision, dropout, what is frozen."""

import pytest
import torch
from backbone_cases import CLOSE, HALF_RELATIVE, assert_layer_depths, images
from helpers import snapshot
from plain_mamba_cases import backbone, outputs_of

# --------------------------------------------------- training behaviour


def test_repeats_bit_for_bit():
    net = backbone(eval_mode=False)
    x = images(16, 16)

    def step():
        net.zero_grad()
        out = net(x)[0]
        out.square().sum().backward()
        grads = [p.grad.clone() for p in net.parameters()]
        return [out.detach(), *grads]

    for a, b in zip(step(), step()):
        assert a.equal(b)


def test_bfloat16_autocast_stays_close_and_finite():
    net = backbone(ffn_ratio=2, norm_cfg=dict(type='transmamba.RMSNorm'))
    x = images(16, 16)
    expected = net(x)[0].detach()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = net(x)[0]
    out.float().square().sum().backward()
    error = (out.float() - expected).abs().max() / expected.abs().max()
    assert error < HALF_RELATIVE[torch.bfloat16]
    for parameter in net.parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    net = backbone(out_type='raw')
    x = images(20, 24)
    expected = net(x)[0].double()
    out = net.to(dtype)(x.to(dtype))[0]
    assert out.dtype == dtype
    error = (out.double() - expected).abs().max() / expected.abs().max()
    assert error < HALF_RELATIVE.get(dtype, 1e-5)


def test_trains_after_a_first_pass_in_inference_mode():
    """Cached scan orders must not be tensors of the inference mode."""
    net = backbone(stem='patch')
    x = images(36, 44)  # a grid that no other test uses
    with torch.inference_mode():
        expected = net(x)[0].clone()
    out = net(x)[0]
    out.sum().backward()
    assert net.layers[0].mamba.in_proj.weight.grad.abs().sum() > 0
    assert out.equal(expected)


def test_drop_path_acts_in_training_only():
    x = images(16, 16, batch=8)
    plain = backbone(stem='patch', out_type='raw')
    net = backbone(stem='patch', out_type='raw', drop_path_rate=0.9)
    rates = [layer.drop_path.drop_prob for layer in net.layers]
    assert rates == pytest.approx([0.0, 0.9])
    assert net(x)[0].equal(plain(x)[0])
    modules = dict(first=net.layers[0], second=net.layers[1])
    _, kept = outputs_of(net, modules, x)
    _, dropped = outputs_of(net.train(), modules, x)
    assert dropped['first'].equal(kept['first'])
    same = [
        torch.equal(a, b) for a, b in zip(dropped['second'], dropped['first'])
    ]
    assert any(same)  # whole samples whose second mixer was skipped
    assert not dropped['second'].equal(kept['second'])


def test_dropout_acts_in_training_only():
    x = images(16, 16)
    plain = backbone(stem='patch', ffn_ratio=2)
    net = backbone(stem='patch', ffn_ratio=2, drop_rate=0.5)
    assert net(x)[0].equal(plain(x)[0])
    assert not net.train()(x)[0].equal(plain(x)[0])


def test_compiled_equals_eager():
    net = backbone(depth=1, stem='patch')
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


def trainable(net):
    return {n for n, p in net.named_parameters() if p.requires_grad}


def test_nothing_is_frozen_by_default():
    net = backbone(eval_mode=False)
    assert net.train() is net
    assert net.eval() is net
    assert len(trainable(net)) == len(list(net.parameters()))


@pytest.mark.parametrize('stages', [0, 1, 2, 3])
def test_frozen_stages(stages):
    arch = dict(embed_dims=16, num_layers=3, layers_with_dwconv=(0, 1, 2))
    net = backbone(arch=arch, frozen_stages=stages, drop_rate=0.5)
    before = snapshot(net)
    assert net.train() is net
    frozen = ['pos_embed', 'patch_embed.']
    frozen += [f'layers.{i}.' for i in range(stages)]
    frozen += ['ln1.'] if stages == 3 else []
    for name, parameter in net.named_parameters():
        expected = not name.startswith(tuple(frozen))
        assert parameter.requires_grad == expected, name
    assert not net.patch_embed.training
    assert not net.drop_after_pos.training
    for i, layer in enumerate(net.layers):
        assert layer.training == (i >= stages)
    out = net(images(16, 16))[0]
    if trainable(net):
        out.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    for name, value in net.state_dict().items():
        if 'running' in name:
            fixed = name.startswith(tuple(frozen))
            assert value.equal(before[name]) == fixed, name


def test_freezing_everything_without_a_final_norm():
    net = backbone(final_norm=False, frozen_stages=2)
    assert not trainable(net)


def test_norm_eval_keeps_batch_statistics():
    for norm_eval in (False, True):
        net = backbone(norm_eval=norm_eval)
        before = snapshot(net)
        net.train()(images(16, 16))
        changed = {
            name
            for name, value in net.state_dict().items()
            if not value.equal(before[name])
        }
        assert bool(changed) != norm_eval
        assert net.training
        assert net.patch_embed.stem[1].training != norm_eval
        assert trainable(net)


def test_layer_depth_for_layerwise_learning_rates():
    net = backbone(depth=3, out_indices=(0, 2))
    depths = {
        'pos_embed': 0,
        'patch_embed.projection.weight': 0,
        'layers.0.norm.weight': 1,
        'layers.2.mamba.A_log': 3,
        'ln1.weight': 4,
        'norm_layer0.bias': 4,
    }
    assert_layer_depths(net, depths, 5)
