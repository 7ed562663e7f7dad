# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""VMamba in training: dropout, checkpointing, what is frozen."""

import pytest
import torch
from backbone_cases import CLOSE, assert_layer_depths, images
from vmamba_cases import backbone

from transmamba_mm.distill import DirectionTapsRecorder


def test_drop_path_grows_over_all_blocks_and_acts_in_training_only():
    x = images(32, 32, batch=8)
    plain = backbone(out_type='raw')
    for kwargs in (dict(drop_path_rate=0.9), dict(drop_rate=0.5)):
        net = backbone(out_type='raw', **kwargs)
        assert net(x)[0].equal(plain(x)[0])
        assert not net.train()(x)[0].equal(plain(x)[0])
    net = backbone(drop_path_rate=0.9)
    rates = [block.drop_path.drop_prob for block in net.blocks()]
    assert rates == pytest.approx([0.0, 0.3, 0.6, 0.9])


@pytest.mark.parametrize('tapped', [False, True])
def test_checkpointed_blocks_have_the_same_gradients(tapped):
    x = images(28, 36)
    grads = []
    for with_cp in (False, True):
        net = backbone(with_cp=with_cp, out_type='raw', eval_mode=False)
        recorder = DirectionTapsRecorder()
        recorder.initialize(net)
        if tapped:
            with recorder:
                (out,) = net(x)
            records = recorder.get_record_data()
            loss = sum(r.tokens.pow(3).sum() for r in records)
        else:
            (out,), loss = net(x), 0.0
        (loss + out.pow(3).sum()).backward()
        grads.append({k: p.grad for k, p in net.named_parameters()})
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad, **CLOSE)


@pytest.mark.parametrize('stages', [-1, 0, 1, 3])
def test_frozen_stages(stages):
    net = backbone(frozen_stages=stages, out_type='raw')
    assert net.train() is net
    frozen = []
    if stages >= 0:
        frozen = ['patch_embed.']
        frozen += [f'layers.{i}.' for i in range(stages)]
    frozen += ['norm.'] if stages == 3 else []
    for name, parameter in net.named_parameters():
        expected = not name.startswith(tuple(frozen))
        assert parameter.requires_grad == expected, name
    for i, stage in enumerate(net.layers):
        assert stage.training == (i >= stages)
        assert all(b.training == (i >= stages) for b in stage.blocks)
    (out,) = net(images(32, 32))
    if stages < 3:
        out.pow(3).sum().backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_layer_depth_for_layerwise_learning_rates():
    net = backbone(out_indices=(0, 2))
    depths = {
        'patch_embed.5.weight': 0,
        'layers.0.blocks.0.norm.weight': 1,
        'layers.0.downsample.1.weight': 1,
        'layers.1.blocks.0.op.A_logs': 2,
        'layers.1.blocks.1.op.A_logs': 3,
        'layers.1.downsample.3.bias': 3,
        'layers.2.blocks.0.mlp.fc1.bias': 4,
        'norm.weight': 5,
        'outnorm0.weight': 5,
    }
    assert_layer_depths(net, depths, 6)


def test_compiled_equals_eager():
    net = backbone(out_type='raw')
    x = images(20, 28)
    expected = net(x)[0]
    torch._dynamo.reset()
    out = torch.compile(net, backend='eager', fullgraph=True)(x)[0]
    torch._dynamo.reset()
    torch.testing.assert_close(out, expected, **CLOSE)
