# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""CKA: identities, the direct formula, and the tool on two models."""

import json

import pytest
import torch
from helpers import (
    CONFIGS,
    build,
    pmamba_cfg,
    run_tool_here,
    snapshot,
    vit_cfg,
)
from mmengine.config import Config
from mmpretrain.registry import DATASETS

from transmamba_mm.apis.cka import CKA, compare_layers

EXACT = dict(rtol=1e-9, atol=1e-9)


def cka_of(rows, columns, batches=1):
    cka = CKA()
    for n in range(batches):
        part = slice(n, None, batches)
        cka.update([x[part] for x in rows], [x[part] for x in columns])
    return cka.result()


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def hsic(x, y):
    """HSIC_1 as Song et al. write it."""
    n, ones = len(x), torch.ones(len(x), dtype=x.dtype)
    K, L = (z @ z.T * (1 - torch.eye(n)) for z in (x, y))
    total = (K @ L).trace()
    total += (ones @ K @ ones) * (ones @ L @ ones) / ((n - 1) * (n - 2))
    total -= 2 / (n - 2) * (ones @ K @ L @ ones)
    return total / (n * (n - 3))


def test_identities():
    x = random(32, 6) + 3
    turn, _ = torch.linalg.qr(random(6, 6))
    same = [x, 7 * x, x @ turn, x + random(6), x.reshape(32, 2, 3)]
    got = cka_of(same, same, batches=2)
    torch.testing.assert_close(got, torch.ones_like(got), **EXACT)
    # Not so for maps that stretch.
    assert cka_of([x], [x @ torch.diag(random(6).exp() ** 3)]) < 0.9
    other = random(32, 9)
    one_way = cka_of([x], [other])
    torch.testing.assert_close(one_way, cka_of([other], [x]).T, **EXACT)


def test_independent_features_are_about_zero_however_many():
    """The biased estimate would be near 1 here."""
    x, y = random(640, 500), random(640, 500)
    assert cka_of([x], [y], batches=10).abs() < 0.02


@pytest.mark.parametrize('batches', [1, 3])
def test_the_direct_formula(batches):
    rows = [random(24, 5), random(24, 7) + 1]
    columns = [random(24, 4), rows[0] @ random(5, 3), rows[1]]
    got = cka_of(rows, columns, batches)
    parts = [slice(n, None, batches) for n in range(batches)]
    for i, x in enumerate(rows):
        for j, y in enumerate(columns):
            across, one, other = (
                sum(hsic(a[part], b[part]) for part in parts)
                for a, b in ((x, y), (x, x), (y, y))
            )
            wanted = across / (one * other).sqrt()
            torch.testing.assert_close(got[i, j], wanted, **EXACT)


def test_too_few_images():
    with pytest.raises(ValueError, match='4 images or more, got 3'):
        CKA().update([random(3, 2)], [random(3, 2)])


# ------------------------------------------------------------- of two models


@pytest.fixture
def run(tmp_path):
    """A config of a distillation, and a checkpoint as a run writes it."""
    base = CONFIGS / 'quickstart/transmamba_deit_pmamba_digits.py'
    cfg = Config.fromfile(base)
    cfg.model.architecture = pmamba_cfg(dims=12, depth=2, classes=10)
    cfg.model.teacher = vit_cfg(dims=16, depth=3, classes=10)
    cfg.model.distiller = dict(
        type='transmamba.MethodDistiller',
        methods=[dict(type='transmamba.LogitsKD')],
    )
    cfg.dump(tmp_path / 'config.py')
    cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = build(cfg.model)
    torch.save(dict(state_dict=snapshot(model)), tmp_path / 'run.pth')
    student = snapshot(model.student)
    torch.save(dict(state_dict=student), tmp_path / 'student.pth')
    torch.save(snapshot(model.teacher), tmp_path / 'teacher.pth')
    return cfg, model, tmp_path


def outputs(modules, model, images):
    seen = []
    handles = [
        module.register_forward_hook(lambda m, i, out: seen.append(out))
        for module in modules
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize('tokens', ['mean', 'all'])
def test_a_student_and_its_teacher_by_plain_hooks(run, tokens):
    cfg, model, folder = run
    found = compare_layers(
        cfg, str(folder / 'run.pth'), 16, 8, tokens=tokens, device='cpu'
    )
    assert (len(found.cka), len(found.cka[0])) == (2, 3)
    assert found.num_images == 16

    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(dataset), generator=generator).tolist()
    by_hand = CKA()
    for start in (0, 8):
        picked = [dataset[i]['inputs'] for i in order[start : start + 8]]
        images = model.data_preprocessor(dict(inputs=picked))['inputs']
        with torch.no_grad():
            ours = outputs(
                model.student.backbone.layers, model.student, images
            )
            theirs = outputs(
                model.teacher.backbone.layers, model.teacher, images
            )
        theirs = [x[:, 1:] for x in theirs]  # without the class token
        by_hand.update(
            *(
                [x.mean(1) if tokens == 'mean' else x for x in side]
                for side in (ours, theirs)
            )
        )
    torch.testing.assert_close(
        torch.tensor(found.cka, dtype=torch.float64),
        by_hand.result(),
        rtol=1e-3,
        atol=1e-4,
    )


def test_the_tool(run, monkeypatch, capsys):
    _, _, folder = run
    monkeypatch.chdir(folder)
    tool, few = 'analysis_tools/cka', ('--num-images', 16, '--batch-size', 8)
    run_tool_here(monkeypatch, tool, 'config.py', 'run.pth', *few)
    whole = json.loads((folder / 'cka.json').read_text())
    assert (folder / 'cka.png').stat().st_size > 1000
    # The student alone needs the teacher's own checkpoint.
    run_tool_here(
        *(monkeypatch, tool, 'config.py', 'student.pth', *few),
        *('--out', 'student/cka', '--cfg-options'),
        'model.teacher_ckpt=teacher.pth',
    )
    alone = json.loads((folder / 'student/cka.json').read_text())
    assert alone == whole

    for args, message in (
        (('run.pth', '--batch-size', 3), 'batch_size must be at least 4'),
        (('none.pth',), "checkpoint 'none.pth' does not exist"),
        (('student.pth',), 'epoch_60.pth'),  # where its teacher is not
    ):
        with pytest.raises(SystemExit):
            run_tool_here(monkeypatch, tool, 'config.py', *args)
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_what_cannot_be_compared(run):
    cfg, _, folder = run
    with pytest.raises(ValueError, match='site must be one of layers'):
        compare_layers(cfg, str(folder / 'run.pth'), site='logits')
    with pytest.raises(ValueError, match='fewer than 4096 images'):
        compare_layers(cfg, str(folder / 'run.pth'), 9999, 4096, device='cpu')
    plain = Config(dict(cfg, model=pmamba_cfg()))
    with pytest.raises(ValueError, match='config of a distillation'):
        compare_layers(plain, str(folder / 'student.pth'), device='cpu')
