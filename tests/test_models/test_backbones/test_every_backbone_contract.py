# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What transfer and distillation rely on in every registered backbone."""

import copy
import math
import re

import pytest
import torch
from backbone_cases import CLOSE
from every_backbone_cases import build, every_backbone, inputs
from helpers import TINY_CLASSES, randomise, tiny_distiller, vit_cfg
from mmengine.optim import build_optim_wrapper
from mmpretrain.structures import DataSample

from transmamba_mm.contract import read_teacher
from transmamba_mm.contract.roles import AXES, split_role
from transmamba_mm.distill import DirectionTapsRecorder
from transmamba_mm.ops import invert_order, reorder
from transmamba_mm.registry import MODELS
from transmamba_mm.transfer import Subcloner
from transmamba_mm.transfer.ssm import build_ssm_source

# Sums of a few float32 products in another order.
SUM = dict(rtol=1e-4, atol=1e-5)


def record(net, x, tap='out'):
    recorder = DirectionTapsRecorder(tap)
    recorder.initialize(net)
    with recorder:
        outs = net(x)
    return recorder.get_record_data(), outs


@pytest.mark.parametrize('tap', ['out', 'inner', 'residual'])
@every_backbone
def test_taps_sum_to_the_mixers_output(name, kwargs, tap):
    """Put back into raster order, less the output bias, for every layer."""
    net = build(name, kwargs, out_type='raw')
    x = inputs(kwargs, 20, 28)
    mixed, streams = [], []
    handles = []
    mixers = [
        next(m for m in block.modules() if hasattr(m, 'taps'))
        for block in net.blocks()
    ]
    for block, mixer in zip(net.blocks(), mixers):
        handles += [
            block.register_forward_pre_hook(
                lambda m, args: streams.append(args[0])
            ),
            mixer.register_forward_hook(
                lambda m, args, out: mixed.append(out)
            ),
        ]
    with torch.no_grad():
        plain = net(x)
        mixed.clear()
        streams.clear()
        records, tapped = record(net, x, tap)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(tapped[0], plain[0], **CLOSE)
    assert len(records) == net.num_layers * len(net.directions)
    for layer, mixer in enumerate(mixers):
        found = [r for r in records if r.layer == layer]
        assert {r.direction for r in found} == set(net.directions)
        total = sum(reorder(r.tokens, invert_order(r.order())) for r in found)
        grid = found[0].grid
        slots = net.class_token_slots(*grid)
        keep = [i for i in range(mixed[layer].shape[1]) if i not in slots]
        if tap == 'inner':
            assert total.shape[2] == mixer.d_inner
            total = total @ mixer.out_proj.weight.T
            total = total if mixer.gamma is None else total * mixer.gamma
        if tap == 'residual':
            total = total - len(found) * streams[layer][:, keep]
        expected = mixed[layer][:, keep]
        if mixer.out_proj.bias is not None:
            gamma = 1 if mixer.gamma is None else mixer.gamma
            expected = expected - mixer.out_proj.bias * gamma
        torch.testing.assert_close(total, expected, **SUM)


@every_backbone
def test_scan_orders_are_permutations(name, kwargs):
    net = build(name, kwargs)
    assert len(set(net.directions)) == len(net.directions)
    for size in ((16, 16), (20, 36)):
        records, _ = record(net, inputs(kwargs, *size))
        for r in records:
            order = net.scan_order(r.direction, *r.grid)
            assert sorted(order.tolist()) == list(range(math.prod(r.grid)))
            assert torch.equal(order, r.order())
            assert r.tokens.shape[1:] == (
                order.numel(),
                net.layer_dims[r.layer],
            )


@every_backbone
def test_a_direction_depends_on_what_it_has_scanned(name, kwargs):
    """The published order is the one that the mixer follows.

    Without convolutions over neighbours, a change of one token reaches in
    each direction that token and those scanned after it, no others.
    """
    net = build(name, kwargs).double()
    for module in net.modules():
        if isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d)) and (
            module.groups > 1
        ):
            # Keeps the token itself: the middle tap, or the last one.
            weight = torch.zeros_like(module.weight)
            if weight.dim() == 3:
                weight[..., -1] = 1.0
            else:
                weight[..., weight.shape[-2] // 2, weight.shape[-1] // 2] = 1
            module.weight.data.copy_(weight)
    block = net.blocks()[0]
    mixer = next(m for m in block.modules() if hasattr(m, 'taps'))
    if hasattr(mixer, '_share_norm'):
        # The norm of the sum hands a change on to all directions.
        mixer._share_norm = lambda parts: parts
    grid = (2, 3, 4) if 'num_frames' in kwargs else (4, 6)
    length = math.prod(grid)
    slots = net.class_token_slots(*grid)
    patches = [i for i in range(length + len(slots)) if i not in slots]
    tokens = torch.randn(1, length + len(slots), net.layer_dims[0]).double()
    place = length // 3
    changed = tokens.clone()
    changed[:, patches[place]] += 1.0

    def directions_of(x):
        seen = {}
        handles = [
            mixer.taps.inner[d].register_forward_hook(
                lambda m, a, out, d=d: seen.update({d: out})
            )
            for d in net.directions
        ]
        with torch.no_grad():
            mixer(x, grid)
        for handle in handles:
            handle.remove()
        return seen

    before, after = directions_of(tokens), directions_of(changed)
    for direction in net.directions:
        moved = (before[direction] - after[direction]).abs().sum(-1)[0] > 1e-12
        skip = set(net.class_token_positions(direction, *grid))
        moved = [bool(m) for i, m in enumerate(moved) if i not in skip]
        order = net.scan_order(direction, *grid).tolist()
        step = order.index(place)
        if name == 'PlainMamba':
            # delta, B and C stay in raster order, so the token also acts at
            # the step of its own number.
            step = min(step, place)
        assert not any(moved[:step]), direction
        assert all(moved[step:][:1]) or name == 'PlainMamba', direction
        assert moved[-1], direction


@every_backbone
def test_roles_name_what_can_be_transferred(name, kwargs):
    net = build(name, kwargs)
    roles = net.param_roles()
    assert set(roles) <= {key for key, _ in net.named_parameters()}
    for key, role in roles.items():
        layer, kind = split_role(role)
        assert kind.startswith('ssm.') or kind in AXES, key
        assert layer is None or 0 <= layer < net.num_layers, key
    for layer in range(net.num_layers):
        for kind in ('mixer_norm.weight', 'mixer_out.weight'):
            assert f'layers.{layer}.{kind}' in roles.values()
        for kind in ('in_proj', 'x_proj', 'dt_proj', 'conv'):
            assert f'layers.{layer}.ssm.{kind}.weight' in roles.values()
        for kind in ('A', 'D', 'dt_proj.bias'):
            assert f'layers.{layer}.ssm.{kind}' in roles.values()


@every_backbone
def test_what_weight_decay_spares(name, kwargs):
    net = build(name, kwargs)
    constructor = 'transmamba.MergedGroupsOptimWrapperConstructor'
    optimizer = dict(type='AdamW', lr=0.1, weight_decay=0.5)
    wrapper = build_optim_wrapper(
        net, dict(optimizer=optimizer, constructor=constructor)
    )
    decayed = {
        parameter
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
        if group['weight_decay']
    }
    spared = r'pos_embed|cls_token|A_(b_)?logs?$|direction_Bs|dt_projs_bias'
    for key, parameter in net.named_parameters():
        plain = parameter.ndim > 1 and not re.search(spared, key)
        assert (parameter in decayed) == plain, key


@pytest.mark.parametrize('with_cp', [False, True])
@every_backbone
def test_both_stages_of_the_transfer(name, kwargs, with_cp):
    """Subcloning and distillation from a ViT, with one config for all."""
    dims = build(name, kwargs).layer_dims[-1]
    classifier = dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(
            type=f'transmamba.{name}',
            **copy.deepcopy(kwargs),
            with_cp=with_cp,
        ),
        head=dict(
            type='LinearClsHead', num_classes=TINY_CLASSES, in_channels=dims
        ),
    )
    if 'num_frames' in kwargs:
        pytest.skip('an image teacher has no tokens over time')
    if kwargs.get('stride') == 2:
        classifier['backbone']['stride'] = 4
    model = MODELS.build(
        dict(
            type='transmamba.TransMambaDistill',
            architecture=classifier,
            teacher=vit_cfg(dims=32, depth=3, ffn=64, heads=4),
            distiller=tiny_distiller(),
        )
    )
    randomise(model.teacher)
    plan = Subcloner(
        model.student,
        read_teacher(model.teacher.state_dict()),
        importance='magnitude',
        ssm=build_ssm_source('attention'),
    ).plan()
    plan.apply(model.student)
    assert plan.coverage > 0
    by_rule = {entry.rule for entry in plan.entries}
    assert 'attention' in by_rule
    head = next(e for e in plan.entries if e.name == 'head.fc.weight')
    assert head.rule == ('select' if dims < 32 else 'copy')

    model.train()
    wrapper = build_optim_wrapper(
        model, dict(optimizer=dict(type='SGD', lr=1))
    )
    # More than one token in every stage: A has no say over the first.
    images = torch.randn(2, 3, 32, 32)
    samples = [DataSample().set_gt_label(i) for i in range(2)]
    losses = model.loss(images, samples)
    total, logged = model.parse_losses(losses)
    assert {'student.loss', 'distill.loss_tm'} <= set(logged)
    before = copy.deepcopy(dict(model.student.named_parameters()))
    wrapper.update_params(total)
    for key, parameter in model.student.named_parameters():
        assert parameter.isfinite().all(), key
        assert not parameter.equal(before[key]), key
