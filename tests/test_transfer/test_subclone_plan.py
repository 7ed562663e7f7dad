# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Weight subcloning: what a plan tells, and what applying it keeps."""

import json

import pytest
import torch
from helpers import build, pmamba_cfg, snapshot, vit_cfg
from subclone_cases import assert_untouched, narrow_student, rules, subclone
from torch import nn

from transmamba_mm.transfer import TransferEntry, TransferError, TransferPlan


def test_the_table_and_the_file_tell_every_tensor(tmp_path):
    teacher, student = build(vit_cfg(), 1), narrow_student(classes=4)
    plan, _ = subclone(student, teacher, early_layers=1)
    path = tmp_path / 'plan.json'
    plan.dump(str(path))
    content = json.loads(path.read_text())
    assert content == plan.to_dict()
    assert path.read_text().endswith('}\n')
    names = [name for name, _ in student.named_parameters()]
    assert [tensor['name'] for tensor in content['tensors']] == names
    parameters = dict(student.named_parameters())
    for tensor in content['tensors']:
        assert tensor['shape'] == list(parameters[tensor['name']].shape)
        copied = tensor['rule'] in ('copy', 'select', 'resize')
        numel = parameters[tensor['name']].numel()
        assert tensor['copied_values'] == (numel if copied else 0)
        assert (tensor['source'] is not None) == copied
        assert tensor['note'] or tensor['rule'] == 'copy'
    copied = sum(t['copied_values'] for t in content['tensors'])
    total = sum(p.numel() for p in student.parameters())
    assert content['copied_values'] == copied
    assert content['total_values'] == total
    percent = 100 * copied / total
    assert content['coverage_percent'] == pytest.approx(percent, abs=1e-3)
    assert content['settings']['early_layers'] == 1
    assert content['settings']['importance'] == 'first'
    assert content['settings']['ssm'] == 'fresh'
    table = plan.table()
    lines = table.splitlines()
    assert lines[0].split() == ['student', 'tensor', *lines[0].split()[2:]]
    for name, line in zip(names, lines[2:]):
        assert line.startswith(name)
        assert rules(plan)[name] in line.split()
    assert f'{copied:,} of {total:,} values copied' in lines[-1]
    assert 'residual: 10 of 16 [0 1 2 3 4 5 6 7 8 9]' in lines


def test_long_index_sets_are_abbreviated():
    teacher = build(vit_cfg(dims=32), 1)
    student = build(pmamba_cfg(dims=16), 2)
    plan, _ = subclone(student, teacher)
    expected = '16 of 32 [0 1 2 3 4 5 ... 13 14 15]'
    assert plan.selections['residual'] == expected


def test_a_plan_that_copies_nothing_is_an_error():
    module = nn.Linear(2, 2)
    before = snapshot(module)
    entries = [
        TransferEntry('weight', (2, 2), note='why it is fresh'),
        # Re-drawn values come from no other model.
        TransferEntry('bias', (2,), rule='init', value=torch.ones(2)),
    ]
    plan = TransferPlan(entries)
    assert plan.coverage == 0
    with pytest.raises(TransferError, match='copy nothing') as error:
        plan.apply(module)
    assert 'why it is fresh' in str(error.value)
    assert_untouched(module, before, before)


def test_applying_keeps_dtype_and_gradient_state():
    teacher = build(vit_cfg(), 1).double()
    student = build(pmamba_cfg(), 2)
    subclone(student, teacher)
    for parameter in student.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.requires_grad
        assert parameter.is_leaf
    expected = teacher.backbone.ln1.weight.float()
    assert student.backbone.ln1.weight.equal(expected)
