# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The distillation configs: their teachers, and a step of training."""

import re
from copy import deepcopy

import pytest
import torch
from config_cases import (
    DISTILLED,
    build,
    mixed_batch,
    read,
    readme_row,
    zoo_weights,
)
from helpers import CONFIGS, ROOT
from mmengine.config import Config
from mmpretrain.registry import MODELS

from transmamba_mm.contract import KeptChannels
from transmamba_mm.registry import HOOKS

LATE = {'student.loss', 'distill.loss_hidden', 'distill.loss_kl'}


@pytest.mark.parametrize('name', DISTILLED)
def test_teacher_checkpoint_is_the_output_of_a_config(name):
    cfg = read(name)
    ckpt = cfg.model.teacher_ckpt
    assert [hook.type for hook in cfg.custom_hooks] == [
        'transmamba.SubcloneInitializer'
    ]
    if '://' in ckpt:
        assert ckpt == zoo_weights(cfg.model.teacher.backbone.arch)
        return
    config, epochs = re.fullmatch(
        r'work_dirs/(.+)/epoch_(\d+)\.pth', ckpt
    ).groups()
    teacher = read(f'transmamba/{config}.py')
    assert teacher.train_cfg.max_epochs == int(epochs)
    assert teacher.model.to_dict() == cfg.model.teacher.to_dict()
    assert teacher.load_from == zoo_weights(teacher.model.backbone.arch)
    assert (
        name.removesuffix('.py')
        .removesuffix('_paper')
        .endswith(f'_{config.rpartition("_")[2]}')
    ), 'same data'


def test_settings_of_the_distillation_guide():
    guide = (ROOT / 'docs/guides/distillation.md').read_text(encoding='utf-8')
    blocks = re.findall(r'```python\n(distiller.+?)```', guide, re.DOTALL)
    start = 'quickstart/transmamba_deit_pmamba_digits_paper.py'
    others = (CONFIGS / '_base_' / 'methods').glob('*.py')
    started = ('transmamba', 'transmamba_paper')
    bases = [path for path in others if path.stem not in started]
    bases = ', '.join(f"'{path}'" for path in [CONFIGS / start, *bases])
    distillers = []
    for block in blocks:
        settings = Config.fromstring(f'_base_ = [{bases}]\n{block}', '.py')
        cfg = deepcopy(read(start))
        cfg.model.distiller = settings.distiller
        distillers.append(build(cfg).distiller)
    depth, phases = distillers
    loss = depth.distill_losses['loss_transmamba']
    assert loss.teacher_layers == 'uniform'
    assert list(phases.distill_losses) == [
        'loss_mixer',
        'loss_hidden',
        'loss_kl',
    ]
    (phase,) = phases.schedule.phases
    assert (phase.trains, phase.task_loss) == ('mixers', False)


@pytest.mark.parametrize(
    'variant',
    [
        'deit-tiny_pmamba-tiny_8xb64-300e_cifar100_paper',
        'deit-tiny_pmamba-tiny_8xb64-300e_imagenet1k',
        'deit-tiny_pmamba-tiny_ffn4-patch-stem_8xb64-300e_cifar100',
        'deit-tiny_pmamba-tiny_uniform-layers_8xb64-300e_cifar100',
        'deit-tiny_vim-tiny_8xb64-300e_cifar100_paper',
        'deit-tiny_vim-tiny_d12-ffn4_8xb64-300e_cifar100',
        'deit-base_vmamba-tiny_8xb64-300e_cifar100',
    ],
)
def test_distilling_one_batch(variant, tmp_path):
    """From the teacher's checkpoint through subcloning to gradients."""
    name = f'transmamba/transmamba_{variant}.py'
    cfg = deepcopy(read(name))
    classes = cfg.data_preprocessor.num_classes
    teacher = MODELS.build(cfg.model.teacher)
    cfg.model.teacher_ckpt = str(tmp_path / 'teacher.pth')
    torch.save(teacher.state_dict(), cfg.model.teacher_ckpt)

    model = build(cfg, 'cpu')
    model.init_weights()
    (hook,) = cfg.custom_hooks
    if 'reference_ckpt' in hook:
        arch = cfg.model.teacher.backbone.arch
        assert hook.reference_ckpt == zoo_weights(arch)
        hook.update(reference_ckpt=cfg.model.teacher_ckpt)
    plan = HOOKS.build(hook).make_plan(model)
    plan.apply(model.student)
    for module in model.modules():
        if isinstance(module, KeptChannels):
            module.take(plan.kept)
    share = f'{plan.copied:,} of {plan.total:,} ({plan.coverage:.1f} %)'
    assert f' {share} |' in readme_row(name)
    state, student = teacher.state_dict(), model.student.state_dict()
    copied = {e.name: e.source for e in plan.entries if e.rule == 'copy'}
    sources = {e.source for e in plan.entries}
    assert 'backbone.ln1.weight' in copied.values()
    assert 'head.fc.weight' in copied, 'as many classes'
    hierarchical = 'vmamba' in variant
    assert ('backbone.pos_embed' in sources) == (not hierarchical)
    assert ('backbone.layers.0.ffn.layers.1.weight' in sources) == (
        'ffn4' in variant or hierarchical
    )
    for target, source in copied.items():
        if not target.endswith('pos_embed'):  # class tokens differ
            assert torch.equal(student[target], state[source]), target

    model.train()
    data = mixed_batch(model)
    assert data['data_samples'][0].gt_score.shape == (classes,), 'mixed'
    stages = {0.0: {'distill.loss_mixer'}, 0.9: LATE}
    if 'loss_transmamba' in model.distiller.distill_losses:
        stages = {0.9: {'student.loss', 'distill.loss_transmamba'}}
    for model.schedule.progress, wanted in stages.items():
        total, logged = model.parse_losses(model(**data, mode='loss'))
        assert wanted <= set(logged)
        assert torch.isfinite(total)
        model.zero_grad()
        total.backward()
    for key, parameter in model.student.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
    assert all(p.grad is not None for p in model.distiller.parameters())
    assert all(p.grad is None for p in model.teacher.parameters())
