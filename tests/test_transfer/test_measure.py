# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What is measured on a running teacher: changes, activations, means."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TinyPictures, build, pmamba_cfg, tiny_batch, vit_cfg
from mmengine.dataset import pseudo_collate
from mmengine.logging import MessageHub
from mmpretrain.models import LabelSmoothLoss
from teacher_cases import CASES
from torch.utils.data import DataLoader

from transmamba_mm.contract import Teacher, read_teacher
from transmamba_mm.contract.answers import IGNORED
from transmamba_mm.contract.roles import split_role
from transmamba_mm.registry import DATASETS
from transmamba_mm.transfer import Subcloner, TransferError
from transmamba_mm.transfer.importance import CRITERIA
from transmamba_mm.transfer.measure import (
    collect_activations,
    collect_changes,
    collect_mixer_inputs,
    draw_batches,
    restored,
    seeded,
)

SGD = dict(optimizer=dict(type='SGD', lr=0.01))


def labelled(num=1):
    return [
        dict(zip(('inputs', 'data_samples'), tiny_batch(seed=seed)))
        for seed in range(num)
    ]


def loader(num=20, batch_size=4):
    return DataLoader(TinyPictures(num), batch_size, collate_fn=pseudo_collate)


# ---------------------------------------------------------- fine-tuning


def test_one_step_of_sgd_changes_channels_by_their_gradient():
    """Checked where an axis has few tensors: FFN and inner channels."""
    teacher = build(vit_cfg(), 1)
    (batch,) = labelled()
    logits = teacher.head(teacher.backbone(batch['inputs']))
    labels = torch.tensor([int(s.gt_label) for s in batch['data_samples']])
    layer = teacher.backbone.layers[1]
    first, second = layer.ffn.layers[0][0], layer.ffn.layers[1]
    parameters = [first.weight, first.bias, second.weight]
    parameters.append(layer.attn.proj.weight)
    grads = torch.autograd.grad(F.cross_entropy(logits, labels), parameters)
    rows, bias, columns, inner = (grad.abs() for grad in grads)
    scores = collect_changes(teacher, [batch], optim_wrapper=SGD)
    hidden = [rows.mean(1), bias, columns.mean(0)]
    expected = sum(each / each.mean() for each in hidden) / 3
    close = dict(rtol=1e-2, atol=1e-3)  # a difference of float32 weights
    torch.testing.assert_close(scores['layers.1.hidden'], -expected, **close)
    expected = inner.mean(0) / inner.mean()
    torch.testing.assert_close(scores['layers.1.inner'], -expected, **close)


def test_the_teacher_is_as_it_was():
    teacher = build(vit_cfg(drop_rate=0.1), 1)
    frozen = teacher.backbone.pos_embed.requires_grad_(False)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    collect_changes(teacher, labelled(3))
    for name, value in teacher.state_dict().items():
        assert value.equal(before[name]), name
    assert not frozen.requires_grad
    assert teacher.backbone.cls_token.requires_grad
    assert all(p.grad is None for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    with pytest.raises(RuntimeError, match='stop'), restored(teacher):
        teacher.train()
        teacher.backbone.cls_token.data.zero_()
        raise RuntimeError('stop')
    assert not teacher.training
    assert teacher.backbone.cls_token.equal(before['backbone.cls_token'])


def test_random_numbers_are_seeded_and_go_on_where_they_were():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draw()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    with seeded(3, torch.device('cpu')):
        first = draw()
    assert draw() == expected
    with seeded(3, torch.device('cpu')):
        assert draw() == first


def test_batches_are_a_share_of_the_images_reread():
    def images(**kwargs):
        found = [
            image.sum().item()
            for batch in draw_batches(loader(), **kwargs)
            for image in batch['inputs']
        ]
        assert len(found) == 4 * kwargs['num']
        return found

    quarter = images(num=5, seed=1, share=0.25)
    assert len(set(quarter)) == 5
    # Each is read four times before any is read a fifth time.
    assert all(quarter.count(image) == 4 for image in quarter)
    assert images(num=5, seed=1, share=0.25) == quarter
    assert set(images(num=5, seed=2, share=0.25)) != set(quarter)
    assert len(set(images(num=5, seed=1))) == 20
    for wrong in (dict(num=0), dict(num=1, share=0.0), dict(num=1, share=2)):
        with pytest.raises(TransferError, match=r'share in \(0, 1\]'):
            draw_batches(loader(), seed=0, **wrong)


def test_a_fine_tuning_that_cannot_work_is_refused():
    with pytest.raises(TransferError, match=r'label 2.*has 2 classes'):
        collect_changes(build(vit_cfg(classes=2)), labelled())
    with pytest.raises(TransferError, match='diverged'):
        wild = dict(optimizer=dict(type='SGD', lr=1e30))
        collect_changes(build(vit_cfg()), labelled(3), optim_wrapper=wild)
    with pytest.raises(TransferError, match='no calibration batch'):
        collect_changes(build(vit_cfg()), [])
    bare = CASES['CLIP vision, batch first'].make()
    with pytest.raises(TransferError, match='or give reference_ckpt'):
        collect_changes(bare, labelled())


# ---------------------------------------------------------- observation


def projected_input(attention, tokens):
    """What CLIP's attention projects, one head after the other."""
    q, k, v = F.linear(
        tokens, attention.in_proj_weight, attention.in_proj_bias
    ).chunk(3, dim=-1)
    parts = []
    for head in range(attention.num_heads):
        part = slice(8 * head, 8 * head + 8)
        weights = (q[..., part] @ k[..., part].mT / 8**0.5).softmax(-1)
        parts.append(weights @ v[..., part])
    return torch.cat(parts, dim=-1)


@pytest.mark.parametrize('order', ['batch', 'length'])
def test_inner_activations_of_pytorchs_attention(order):
    teacher = CASES[f'CLIP vision, {order} first'].make().eval()
    attention = teacher.transformer.resblocks[1].attn
    torch.nn.init.normal_(attention.in_proj_bias)
    images, seen = tiny_batch()[0], []
    handle = attention.register_forward_hook(
        lambda module, args, out: seen.append(args[0])
    )
    with torch.no_grad():
        teacher(images)
        tokens = seen[0] if order == 'batch' else seen[0].transpose(0, 1)
        expected = projected_input(attention, tokens).abs().mean((0, 1))
    handle.remove()
    scores = collect_activations(teacher, [images])
    expected = expected / expected.mean()
    torch.testing.assert_close(scores['layers.1.inner'], expected)


@pytest.mark.parametrize('name', ['mmpretrain ViT', 'Swin'])
def test_mean_inputs_are_those_of_patches(name):
    case = CASES[name]
    teacher, size = case.make().eval(), case.size
    images = torch.randn(2, 3, size, size)
    seen = []
    norm = Teacher(teacher).module('layers.1.mixer_norm.weight')
    handle = norm.register_forward_hook(lambda m, a, out: seen.append(out))
    means = collect_mixer_inputs(teacher, [images, 2 * images])
    handle.remove()
    assert [len(mean) for mean in means] == list(case.dims)
    expected = torch.stack(
        [out.detach()[:, case.extra :].flatten(0, 1).mean(0) for out in seen]
    )
    torch.testing.assert_close(means[1], expected.mean(0))


# ------------------------------------------------------- every family


def plan_of(case, teacher, importance):
    weights = read_teacher(teacher.state_dict())
    student = build(
        pmamba_cfg(
            dims=10, depth=2, classes=5, img_size=case.size, ffn_ratio=1.2
        ),
        2,
    )
    batch = torch.randn(2, 3, case.size, case.size)
    changed = dict(weights.tensors)
    changed = {k: v + torch.randn_like(v) for k, v in changed.items()}
    return student, Subcloner(
        student,
        weights,
        importance=importance,
        reference=type(weights)(
            weights.family, changed, weights.names, weights.num_extra_tokens
        ),
        activations=lambda: collect_activations(teacher, [batch]),
    )


@pytest.mark.parametrize('importance', CRITERIA)
@pytest.mark.parametrize('name', [n for n in CASES if n != 'Swin'])
def test_every_criterion_cuts_every_family(name, importance):
    """The widths of Swin's stages cannot be cut."""
    case = CASES[name]
    if name == 'CLIP, both towers' and importance == 'activation':
        pytest.skip('its text tower is not run by this model alone')
    teacher = case.make().eval()
    student, subcloner = plan_of(case, teacher, importance)
    plan = subcloner.plan()
    plan.apply(student)
    kept = subcloner.pairing.indices('residual', None, 10)
    own, tensors = subcloner.pairing, subcloner.pairing.teacher.tensors
    found = set()
    for entry in plan.entries:
        role = own.roles.get(entry.name, '')
        layer, kind = split_role(role)
        if kind not in ('mixer_norm.weight', 'ffn_out.bias'):
            continue
        source = tensors[f'layers.{own.layers[layer]}.{kind}']
        assert student.get_parameter(entry.name).equal(source[kept])
        found.add(entry.rule)
    assert found == {'select'}
    assert plan.settings['importance'] == importance
    assert len(plan.selections) == 5


def test_a_head_with_a_hidden_layer_does_not_count():
    """Its last layer reads channels of its own, not the residual stream."""
    config = vit_cfg()
    config['head']['hidden_dim'] = 24
    teacher, student = build(config, 1), build(pmamba_cfg(dims=10), 2)
    weights = read_teacher(teacher.state_dict())
    for importance in ('magnitude', 'activation'):
        plan = Subcloner(
            student,
            weights,
            importance=importance,
            activations=lambda: collect_activations(
                teacher, [tiny_batch()[0]]
            ),
        ).plan()
        (head,) = (e for e in plan.entries if e.name == 'head.fc.weight')
        assert head.rule == 'fresh'
        assert plan.selections['residual'].startswith('10 of 16 [')
    assert collect_changes(teacher, labelled())['residual'].shape == (16,)


def test_no_trace_of_a_fine_tuning_in_the_log():
    hub = MessageHub.get_current_instance()
    collect_changes(build(vit_cfg()), labelled(2))
    assert 'train/grad_norm' not in hub.log_scalars


def test_images_without_a_label_do_not_count():
    teacher = build(vit_cfg(), 1)
    teacher.head.loss_module = LabelSmoothLoss(0.1, 3)
    (batch,) = labelled()
    part = dict(
        inputs=batch['inputs'][:2], data_samples=batch['data_samples'][:2]
    )
    wanted = collect_changes(teacher, [part], optim_wrapper=SGD)
    for sample in batch['data_samples'][2:]:
        sample.set_gt_label(IGNORED)
    without = dict(
        inputs=batch['inputs'][2:], data_samples=batch['data_samples'][2:]
    )
    found = collect_changes(teacher, [without, batch], optim_wrapper=SGD)
    for name, value in wanted.items():
        assert value.equal(found[name]), name


def test_data_that_ask_for_the_epoch():
    pipeline = [dict(type='mmpretrain.PackInputs')]
    data = DATASETS.build(
        dict(
            type='transmamba.SeededAugment',
            dataset=dict(type='transmamba.Digits', pipeline=pipeline),
        )
    )
    given = DataLoader(data, 2, collate_fn=pseudo_collate)
    (batch,) = draw_batches(given, 1, 0)
    assert len(batch['data_samples']) == 2
