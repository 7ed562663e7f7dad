# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The plan of a config, made without training."""

import json

import pytest
from helpers import CONFIGS, save_teacher
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from transmamba_mm.apis import plan_transfer
from transmamba_mm.registry import MODELS
from transmamba_mm.transfer import SubcloneInitializer, TransferError

QUICKSTART = CONFIGS / 'quickstart' / 'transmamba_deit_pmamba_digits.py'
ONLY = CONFIGS / 'quickstart' / 'pmamba_subclone-only_digits.py'
PAPER = CONFIGS / 'transmamba'


@pytest.fixture(scope='module')
def teacher_ckpt(tmp_path_factory):
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return save_teacher(path, Config.fromfile(str(QUICKSTART)).teacher)


def config(path, **options):
    cfg = Config.fromfile(str(path))
    cfg.merge_from_dict(options)
    return cfg


def test_covers_every_parameter_once(teacher_ckpt):
    cfg = config(QUICKSTART, **{'model.teacher_ckpt': teacher_ckpt})
    plan = plan_transfer(cfg)
    student = MODELS.build(cfg.model.architecture)
    assert [e.name for e in plan.entries] == [
        name for name, _ in student.named_parameters()
    ]
    assert plan.total == sum(p.numel() for p in student.parameters())
    assert (plan.copied, round(plan.coverage, 1)) == (154954, 77.6)


def test_plan_with_and_without_a_distiller_agree(teacher_ckpt, tmp_path):
    full = plan_transfer(
        config(QUICKSTART, **{'model.teacher_ckpt': teacher_ckpt})
    )
    cfg = config(ONLY)
    cfg.custom_hooks[0].teacher_ckpt = teacher_ckpt
    only = plan_transfer(cfg)
    assert only.to_dict() == full.to_dict()
    only.dump(str(tmp_path / 'plan.json'))
    loaded = json.loads((tmp_path / 'plan.json').read_text())
    assert loaded['copied_values'] == 154954
    rules = {t['name']: t['rule'] for t in loaded['tensors']}
    assert rules['backbone.layers.0.mamba.in_proj.weight'] == 'fresh'
    assert rules['backbone.layers.0.mamba.out_proj.weight'] == 'copy'


def test_a_teacher_is_fine_tuned_for_the_plan_as_for_a_run(
    teacher_ckpt, tmp_path
):
    """The same channels, without training."""
    cfg = config(
        QUICKSTART,
        **{
            'model.teacher_ckpt': teacher_ckpt,
            'model.architecture.backbone.arch.embed_dims': 32,
            'model.architecture.head.in_channels': 32,
        },
    )
    cfg.custom_hooks[0].fine_tune = dict(num_iters=2, share=0.05)
    plan = plan_transfer(cfg)
    assert plan.selections['residual'].startswith('32 of 64 [')
    cfg.work_dir = str(tmp_path)
    runner = Runner.from_cfg(cfg)
    runner._train_loop = runner.build_train_loop(cfg.train_cfg)
    (hook,) = (h for h in runner.hooks if isinstance(h, SubcloneInitializer))
    hook.before_run(runner)
    assert hook.plan.to_dict() == plan.to_dict()


def test_shapes_only_needs_no_checkpoint():
    cfg = config(
        PAPER / 'transmamba_deit-tiny_pmamba-tiny_8xb64-300e_cifar100.py'
    )
    with pytest.raises(FileNotFoundError, match='does not exist'):
        plan_transfer(cfg)
    plan = plan_transfer(cfg, shapes_only=True)
    assert 0 < plan.coverage < 100
    assert 'student tensor' in plan.table()
    # Not even memory for weights.
    assert all(x.value.is_meta for x in plan.entries if x.rule == 'copy')


def test_the_real_pair_of_language_models_is_planned_without_weights():
    """3.5 billion parameters of the teacher, in float32 14 GB."""
    pytest.importorskip('transformers')
    name = 'transmamba_600m_llava-llama3.2-3b_4xb32-1e_llava-instruct.py'
    cfg = config(CONFIGS / 'vqa' / name)
    for part in ('architecture', 'teacher'):
        cfg.model[part].tokenizer = dict(type='transmamba.ByteTokenizer')
    cfg.custom_hooks[0].ssm_from = None
    plan = plan_transfer(cfg, shapes_only=True)
    assert plan.coverage == pytest.approx(83.5, abs=0.1)
    copied = [x.value for x in plan.entries if x.rule == 'copy']
    assert copied
    assert all(x.is_meta for x in copied)


def test_errors_name_the_fix():
    with pytest.raises(TransferError, match='SubcloneInitializer'):
        plan_transfer(
            config(CONFIGS / 'quickstart' / 'pmamba_scratch_digits.py')
        )
    with pytest.raises(TransferError, match='holds a teacher model'):
        plan_transfer(config(ONLY), shapes_only=True)
