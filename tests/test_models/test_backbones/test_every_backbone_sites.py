# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What the sites of every registered backbone show."""

import sys

import pytest
import torch
from every_backbone_cases import build, every_backbone, inputs
from torch import nn

from transmamba_mm.contract import Student
from transmamba_mm.distill import StudentSiteRecorder

SUM = dict(rtol=1e-4, atol=1e-5)


def record(net, x, *sites, **kwargs):
    recorders = [StudentSiteRecorder(site, **kwargs) for site in sites]
    for recorder in recorders:
        recorder.initialize(net)
        recorder.__enter__()
    outputs = net(x)
    for recorder in recorders:
        recorder.__exit__(None, None, None)
    return [recorder.get_record_data() for recorder in recorders], outputs


def outputs_of(modules):
    """What modules read and give, by a hook of our own."""
    kept = [None] * len(modules)
    for i, module in enumerate(modules):
        module.register_forward_hook(
            lambda _, args, out, i=i: kept.__setitem__(i, (args[0], out))
        )
    return kept


@every_backbone
def test_sites_are_what_blocks_and_mixers_read_and_give(name, kwargs):
    net = build(name, kwargs, out_type='raw')
    blocks, mixers = outputs_of(net.blocks()), outputs_of(net.mixers())
    sites = ('streams', 'layers', 'mixer_inputs', 'mixers')
    with torch.no_grad():
        found, _ = record(net, inputs(kwargs, 20, 28), *sites)
    raw = [
        [args for args, _ in blocks],
        [out for _, out in blocks],
        [args for args, _ in mixers],
        [out for _, out in mixers],
    ]
    for records, wanted in zip(found, raw):
        assert len(records) == net.num_layers
        for layer, (each, whole) in enumerate(zip(records, wanted)):
            assert each.layer == layer
            assert each.tokens.shape[1] == torch.Size(each.grid).numel()
            assert each.classes.shape[1] == net.num_extra_tokens
            slots = set(net.class_token_slots(*each.grid))
            patches = [i for i in range(whole.shape[1]) if i not in slots]
            assert torch.equal(each.tokens, whole[:, patches])
            assert torch.equal(each.classes, whole[:, sorted(slots)])
            if len(slots) < 2:
                assert torch.equal(net.joined(each), whole)


@pytest.mark.parametrize('with_cp', [False, True])
@every_backbone
def test_mix_is_what_a_layer_does_with_any_stream(name, kwargs, with_cp):
    net = build(name, kwargs, out_type='raw', with_cp=with_cp)
    blocks, mixers = outputs_of(net.blocks()), outputs_of(net.mixers())
    (streams,), _ = record(net, inputs(kwargs), 'streams')
    raw = [(args.detach(), out.detach()) for args, out in blocks]
    mixed = [out.detach() for _, out in mixers]
    for layer, (stream, _) in enumerate(raw):
        again = net.mix(layer, stream, streams[layer].grid)
        torch.testing.assert_close(again, mixed[layer], **SUM)
        again.sum().backward()
        parameters = net.mixers()[layer].in_proj.parameters()
        assert all(p.grad.abs().sum() > 0 for p in parameters)


@pytest.mark.parametrize('with_cp', [False, True])
@every_backbone
def test_b_and_c_are_those_of_the_scans(name, kwargs, with_cp, monkeypatch):
    """Of each direction, by what the scan gets; shown to recorders alone."""
    net = build(name, kwargs, out_type='raw', with_cp=with_cp)
    scanned = []

    def spy(scan):
        def scan_here(*args, **options):
            scanned.append(args[3:5])  # B and C
            return scan(*args, **options)

        return scan_here

    module = sys.modules[type(net.mixers()[0]).__module__]
    monkeypatch.setattr(module, 'multi_scan', spy(module.multi_scan))
    (records,), _ = record(net, inputs(kwargs, 20, 28), 'bc')
    directions = len(net.directions)
    assert len(records) == len(scanned) == net.num_layers
    for layer, (each, maps) in enumerate(zip(records, scanned)):
        assert each.layer == layer
        wanted = torch.stack(
            [
                # (B, N, L) where directions share them
                x if x.dim() == 4 else torch.stack([x] * directions, 1)
                for x in maps
            ],
            dim=2,
        )  # (B, K, 2, N, L)
        slots = set(net.class_token_slots(*each.grid))
        keep = [i for i in range(wanted.shape[-1]) if i not in slots]
        wanted = wanted[..., keep].flatten(1, 3).mT
        assert torch.equal(each.tokens, wanted)
    last = records[-1].tokens.square().sum()
    last.backward()
    assert any(p.grad is not None for p in net.mixers()[-1].parameters())


@every_backbone
def test_final_tokens_are_the_normalised_stream(name, kwargs):
    net = build(name, kwargs, out_type='raw')
    with torch.no_grad():
        ((tokens,),), (raw,) = record(net, inputs(kwargs), 'tokens')
    assert tokens.layer == net.num_layers - 1
    wanted = net.split(raw, tokens.grid)[1]
    torch.testing.assert_close(tokens.tokens, wanted, **SUM)


class TwoTowers(nn.Module):
    def __init__(self, name, kwargs):
        super().__init__()
        self.image = build(name, kwargs, 1)
        self.text = build(name, kwargs, 2)

    def forward(self, x):
        return self.text(x)


@every_backbone
def test_towers_are_told_apart_by_name(name, kwargs):
    model = TwoTowers(name, kwargs)
    assert Student(model, 'text').backbone is model.text
    roles = Student(model, 'image').roles()
    assert roles
    assert all(key.startswith('image.') for key in roles)
    with pytest.raises(TypeError, match=r"one of \['image', 'text'\]"):
        Student(model)
    with pytest.raises(TypeError, match="no transmamba_mm backbone called 'a"):
        Student(model, 'a')
    with torch.no_grad():
        (found,), _ = record(model, inputs(kwargs), 'layers', backbone='text')
    assert len(found) == model.text.num_layers


def test_queries_and_keys_are_of_teachers_only():
    recorder = StudentSiteRecorder('qkv')
    net = build('PlainMamba', dict(arch='pmamba-tiny', img_size=16))
    with pytest.raises(ValueError, match="a student has no site 'qkv'"):
        recorder.initialize(net)
