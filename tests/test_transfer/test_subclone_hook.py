# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""SubcloneInitializer inside MMEngine's Runner."""

import copy
import json
import os
import re
import socket
import uuid

import pytest
import torch
from helpers import (
    build,
    pmamba_cfg,
    save_teacher,
    snapshot,
    tiny_distiller,
    vit_cfg,
)
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.model import PretrainedInit, is_model_wrapper
from mmengine.runner import Runner
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample
from teacher_cases import CASES, swin
from torch import multiprocessing
from torch.utils.data import Dataset

from transmamba_mm.checkpoints import read_state_dict
from transmamba_mm.compat import prepare_cpu_launch
from transmamba_mm.contract import TeacherError
from transmamba_mm.transfer import SubcloneInitializer, TransferError

PROCESSES = 2
PREPROCESSOR = dict(num_classes=3, mean=[128] * 3, std=[64] * 3)
# Student tensor, the teacher's counterpart.
COPIED = {
    'backbone.ln1.weight': 'backbone.ln1.weight',
    'backbone.layers.1.ffn.layers.1.weight': (
        'backbone.layers.1.ffn.layers.1.weight'
    ),
    'head.fc.bias': 'head.layers.head.bias',
}


class Noise(Dataset):
    """Eight random pictures of three classes."""

    def __init__(self, size=16):
        self.size = size

    def __len__(self):
        return 8

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        shape = 3, self.size, self.size
        picture = torch.randint(256, shape, generator=generator)
        sample = DataSample().set_gt_label(index % 3)
        return dict(inputs=picture.byte(), data_samples=sample)


class Probe(Hook):
    """Takes the weights when training starts, after all other hooks."""

    priority = 'LOWEST'

    def __init__(self):
        self.start = None
        self.ema = None
        self.iterations = 0

    def before_train(self, runner):
        self.start = weights(runner.model)
        for hook in runner.hooks:
            if type(hook).__name__ == 'EMAHook':
                self.ema = weights(hook.ema_model.module)

    def after_train_iter(self, *args, **kwargs):
        self.iterations += 1


def weights(model):
    state = snapshot(getattr(model, 'module', model))
    return {name: value.cpu() for name, value in state.items()}


def student_cfg(**kwargs):
    return dict(pmamba_cfg(**kwargs), data_preprocessor=PREPROCESSOR)


def distill_cfg(teacher_ckpt, **kwargs):
    return dict(
        type='transmamba.TransMambaDistill',
        architecture=student_cfg(**kwargs),
        teacher=vit_cfg(),
        teacher_ckpt=teacher_ckpt,
        distiller=tiny_distiller(),
    )


def config(folder, model=None, hooks=(), size=16, **kwargs):
    """A run of one epoch of two iterations."""
    loader = dict(
        batch_size=4,
        num_workers=0,
        dataset=Noise(size),
        collate_fn=dict(type='pseudo_collate'),
    )
    return dict(
        model=copy.deepcopy(model or student_cfg()),
        work_dir=str(folder),
        train_dataloader=dict(
            sampler=dict(type='DefaultSampler', shuffle=True), **loader
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        val_dataloader=dict(
            sampler=dict(type='DefaultSampler', shuffle=False), **loader
        ),
        val_cfg=dict(),
        val_evaluator=dict(type='Accuracy'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=list(hooks),
        default_scope='mmpretrain',
        experiment_name=uuid.uuid4().hex,
        log_level='WARNING',
        randomness=dict(seed=3),
        **kwargs,
    )


def subcloner(teacher_ckpt=None, **kwargs):
    return dict(
        type='transmamba.SubcloneInitializer',
        teacher_ckpt=teacher_ckpt,
        **kwargs,
    )


def train(folder, hook, **kwargs):
    """Trains; returns the runner, our hook and a probe."""
    hooks = kwargs.pop('hooks', [])
    runner = Runner(**config(folder, hooks=[*hooks, hook], **kwargs))
    probe = Probe()
    runner.register_hook(probe)
    runner.train()
    found = next(h for h in runner.hooks if isinstance(h, SubcloneInitializer))
    return runner, found, probe


def is_subcloned(state, teacher, prefix=''):
    found = {
        ours: state[prefix + ours].equal(teacher[theirs])
        for ours, theirs in COPIED.items()
    }
    assert len(set(found.values())) == 1, found
    return all(found.values())


@pytest.fixture
def ckpt(tmp_path):
    return save_teacher(tmp_path / 'teacher.pth', vit_cfg())


@pytest.fixture
def teacher(ckpt):
    return torch.load(ckpt)


# ---------------------------------------------------------- a fresh start


def test_a_fresh_run_starts_subcloned(tmp_path, ckpt, teacher):
    runner, hook, probe = train(tmp_path, subcloner(ckpt))
    assert probe.iterations == 2
    assert is_subcloned(probe.start, teacher)
    assert not is_subcloned(weights(runner.model), teacher)  # it has trained
    # The rest has the backbone's own start values, not the constructor's.
    assert probe.start['backbone.layers.0.mamba.dt_proj.bias'].eq(0).all()
    assert probe.start['backbone.layers.0.mamba.D'].eq(1).all()
    assert probe.start['backbone.layers.0.mamba.in_proj.weight'].std() < 0.03
    content = json.loads((tmp_path / 'transfer_plan.json').read_text())
    assert content == hook.plan.to_dict()
    assert content['coverage_percent'] > 50
    # Nothing of the hook stays on the model.
    assert 'init_weights' not in vars(runner.model)
    assert runner.model.init_weights.__self__ is runner.model


def test_weights_are_initialised_once(tmp_path, ckpt, monkeypatch):
    calls = []
    original = ImageClassifier.init_weights

    def counting(self):
        calls.append(self)
        original(self)

    monkeypatch.setattr(ImageClassifier, 'init_weights', counting)
    runner, _, _ = train(tmp_path, subcloner(ckpt))
    assert calls == [runner.model]


def test_training_on_and_testing_after_it_do_not_subclone_again(
    tmp_path, ckpt, teacher
):
    runner, hook, _ = train(tmp_path, subcloner(ckpt))
    trained, plan = weights(runner.model), hook.plan
    runner.val()
    hook.before_run(runner)
    assert hook.plan is plan
    for name, value in weights(runner.model).items():
        assert value.equal(trained[name])


def test_ema_starts_from_the_subcloned_weights(tmp_path, ckpt, teacher):
    """Wherever the hook stands among the others."""
    ema = dict(type='EMAHook', momentum=0.1)
    _, _, probe = train(tmp_path, subcloner(ckpt), hooks=[ema])
    assert is_subcloned(probe.ema, teacher)
    for name, value in probe.start.items():
        assert value.equal(probe.ema[name]), name


def test_options_reach_the_plan(tmp_path, ckpt, teacher):
    other = save_teacher(tmp_path / 'other.pth', vit_cfg(), seed=8)
    mamba = build(student_cfg(dims=12), 5)
    torch.save(mamba.state_dict(), tmp_path / 'mamba.pth')
    hook = subcloner(
        ckpt,
        reference_ckpt=other,
        layer_map=[1, 0],
        early_layers=1,
        ssm_from=str(tmp_path / 'mamba.pth'),
        conv_init='normal',
        conv_std=0.1,
    )
    _, hook, probe = train(tmp_path, hook, model=student_cfg(dims=12))
    assert hook.plan.settings == dict(
        teacher_family='mmpretrain VisionTransformer',
        importance='least_changed',
        layer_map=[1, 0],
        early_layers=1,
        widen=None,
        ssm='pretrained Mamba',
    )
    name = 'backbone.layers.0.mamba.x_proj.weight'
    assert probe.start[name].equal(mamba.state_dict()[name])
    conv = probe.start['backbone.layers.0.mamba.conv2d.weight']
    assert 0.05 < conv.std() < 0.15
    # The residual channels are found again in a tensor of teacher layer 1.
    change = torch.load(other)
    kept = hook.plan.selections['residual'].split('[')[1].rstrip(']').split()
    kept = torch.tensor([int(index) for index in kept])
    source = teacher['backbone.layers.1.attn.proj.weight']
    assert not source.equal(change['backbone.layers.1.attn.proj.weight'])
    actual = probe.start['backbone.layers.0.mamba.out_proj.weight']
    assert torch.isin(actual, source[kept]).all()


def test_widen_reaches_the_plan(tmp_path, ckpt):
    model = student_cfg(dims=24)
    with pytest.raises(TransferError, match='wider than the teacher'):
        train(tmp_path, subcloner(ckpt), model=model)
    _, hook, _ = train(tmp_path, subcloner(ckpt, widen='leading'), model=model)
    assert hook.plan.settings['widen'] == 'leading'


# ------------------------------------------- checkpoints have precedence


def test_load_from_wins_for_the_keys_it_has(tmp_path, ckpt, teacher):
    loaded = torch.full((16,), 0.5)
    path = tmp_path / 'partial.pth'
    torch.save({'backbone.ln1.bias': loaded}, path)
    _, _, probe = train(tmp_path, subcloner(ckpt), load_from=str(path))
    assert probe.start['backbone.ln1.bias'].equal(loaded)
    assert is_subcloned(probe.start, teacher)


def test_resume_skips_subcloning_and_its_files(tmp_path, ckpt):
    saving = dict(checkpoint=dict(type='CheckpointHook', interval=1))
    first, _, _ = train(tmp_path, subcloner(ckpt), default_hooks=saving)
    trained = weights(first.model)
    stored = read_state_dict(str(tmp_path / 'epoch_1.pth'))
    assert stored.keys() == trained.keys()
    (tmp_path / 'teacher.pth').unlink()
    (tmp_path / 'transfer_plan.json').unlink()
    for kwargs in (
        dict(resume=True),
        dict(resume=True, load_from=str(tmp_path / 'epoch_1.pth')),
    ):
        runner = config(tmp_path, hooks=[subcloner(ckpt)], **kwargs)
        runner['train_cfg']['max_epochs'] = 2
        runner = Runner(**runner)
        probe = Probe()
        runner.register_hook(probe)
        runner.train()
        assert runner.epoch == 2
        assert probe.iterations == 2
        for name, value in probe.start.items():
            assert value.equal(trained[name]), name
    assert not (tmp_path / 'transfer_plan.json').exists()


def test_resume_without_a_checkpoint_is_a_fresh_start(tmp_path, ckpt, teacher):
    _, _, probe = train(tmp_path, subcloner(ckpt), resume=True)
    assert is_subcloned(probe.start, teacher)


@pytest.mark.parametrize('loop', ['val', 'test'])
def test_evaluation_alone_does_nothing(tmp_path, loop):
    """It needs no file of the teacher either."""
    settings = config(tmp_path, hooks=[subcloner('nowhere/teacher.pth')])
    if loop == 'test':
        for key in ('dataloader', 'cfg', 'evaluator'):
            settings[f'test_{key}'] = settings[f'val_{key}']
    runner = Runner(**settings)
    before = weights(runner.model)
    metrics = getattr(runner, loop)()
    assert 'accuracy/top1' in metrics
    for name, value in weights(runner.model).items():
        assert value.equal(before[name])
    assert not (tmp_path / 'transfer_plan.json').exists()


# ----------------------------------------------------- with a distiller


def test_a_distilled_student_is_subcloned_from_its_teacher(
    tmp_path, ckpt, teacher
):
    _, hook, probe = train(tmp_path, subcloner(), model=distill_cfg(ckpt))
    assert is_subcloned(probe.start, teacher, 'architecture.')
    for name, value in teacher.items():
        assert probe.start[f'teacher.{name}'].equal(value)
    # The plan speaks of the student alone, by its own names.
    assert not any('architecture' in e.name for e in hook.plan.entries)
    assert 'backbone.ln1.weight' in {e.name for e in hook.plan.entries}


def test_another_teacher_may_give_the_weights(tmp_path, ckpt):
    other = save_teacher(tmp_path / 'other.pth', vit_cfg(), seed=8)
    _, _, probe = train(tmp_path, subcloner(other), model=distill_cfg(ckpt))
    assert is_subcloned(probe.start, torch.load(other), 'architecture.')
    name = 'backbone.layers.0.attn.qkv.weight'
    assert probe.start[f'teacher.{name}'].equal(torch.load(ckpt)[name])


@pytest.mark.parametrize('distilled', [True, False])
def test_activations_are_collected_from_training_data(
    tmp_path, ckpt, distilled
):
    model = student_cfg(dims=12)
    hook = subcloner(ckpt, importance='activation', num_batches=1)
    if distilled:
        model = distill_cfg(ckpt, dims=12)
        hook['teacher_ckpt'] = None
    else:
        hook['teacher'] = vit_cfg()
    _, found, _ = train(tmp_path, hook, model=model)
    assert found.plan.settings['importance'] == 'activation'
    assert found.plan.selections['residual'].startswith('12 of 16 [')


@pytest.mark.parametrize('kind', ['Swin', 'CLIP'])
def test_other_families_start_students_in_a_run(tmp_path, kind):
    """Stages onto stages; a tower that is no classifier."""
    if kind == 'Swin':
        teacher = build(swin(), 1)
        model = dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(
                type='transmamba.VMamba',
                arch=dict(embed_dims=8, depths=(1, 1, 1, 1), patch_embed='v1'),
            ),
            head=dict(type='LinearClsHead', num_classes=3, in_channels=64),
            data_preprocessor=PREPROCESSOR,
        )
        ours, theirs = 'backbone.layers.2.blocks.0.norm', 'stages.2.blocks.1'
        theirs = f'backbone.{theirs}.norm1'
    else:
        teacher = CASES['CLIP, both towers'].make()
        model = student_cfg(ffn_ratio=3)
        ours = 'backbone.layers.1.norm'
        theirs = 'visual.transformer.resblocks.2.ln_1'
    torch.save(teacher.state_dict(), tmp_path / 'other.pth')
    hook = subcloner(str(tmp_path / 'other.pth'), importance='magnitude')
    _, hook, probe = train(
        tmp_path, hook, model=model, size=64 if kind == 'Swin' else 16
    )
    assert probe.iterations == 2
    assert hook.plan.coverage > 40
    expected = teacher.get_parameter(f'{theirs}.weight')
    assert probe.start[f'{ours}.weight'].equal(expected)


# ------------------------------------------- fine-tuned here, no reference

SHORT = dict(num_iters=2, share=0.5)


def never(*args, **kwargs):
    raise AssertionError('the teacher was fine-tuned')


@pytest.mark.parametrize('distilled', [True, False])
def test_the_least_changed_are_found_without_a_reference(
    tmp_path, ckpt, teacher, distilled
):
    def run(name, **kwargs):
        hook = subcloner(ckpt, fine_tune=SHORT, **kwargs)
        model = student_cfg(dims=12)
        if distilled:
            model = distill_cfg(ckpt, dims=12)
        else:
            hook['teacher'] = vit_cfg()
        _, found, probe = train(tmp_path / name, hook, model=model)
        return found.plan, probe.start

    plan, start = run('first')
    assert plan.settings['importance'] == 'least_changed'
    assert plan.selections['residual'].startswith('12 of 16 [')
    again, same = run('again')
    assert again.to_dict() == plan.to_dict()
    for name, value in start.items():
        assert value.equal(same[name]), name
        if name.startswith('teacher.') and 'preprocessor' not in name:
            assert value.equal(teacher[name.removeprefix('teacher.')]), name
    other, _ = run('other', seed=5)
    assert other.selections != plan.selections


def test_the_fine_tuning_sees_mixed_images_as_training_does(tmp_path, ckpt):
    """Once mixed, the one-hot labels are no integers any more."""
    hook = subcloner(ckpt, fine_tune=SHORT, teacher=vit_cfg())
    augments = dict(augments=[dict(type='Mixup', alpha=0.8)])
    model = dict(student_cfg(dims=12), train_cfg=augments)
    _, found, probe = train(tmp_path, hook, model=model)
    assert found.plan.selections['residual'].startswith('12 of 16 [')
    assert probe.iterations == 2


def test_its_cost_is_told(tmp_path, ckpt, monkeypatch):
    lines = []
    monkeypatch.setattr(
        'transmamba_mm.transfer.measure.print_log',
        lambda line, **kwargs: lines.append(line),
    )
    hook = subcloner(fine_tune=SHORT)
    train(tmp_path, hook, model=distill_cfg(ckpt, dims=12))
    (line,) = lines
    assert re.search(r'for 2 steps on 8 images in \d+\.\d s', line)


def test_nothing_is_fine_tuned_in_vain(tmp_path, ckpt, monkeypatch):
    """Nor where no channel is dropped, nor with a reference, nor again."""
    monkeypatch.setattr('transmamba_mm.transfer.hook.collect_changes', never)
    saving = dict(checkpoint=dict(type='CheckpointHook', interval=1))
    train(tmp_path / 'equal', subcloner(), model=distill_cfg(ckpt))
    model = distill_cfg(ckpt, dims=12)
    other = save_teacher(tmp_path / 'other.pth', vit_cfg(), seed=8)
    train(
        tmp_path / 'run',
        subcloner(reference_ckpt=other),
        model=model,
        default_hooks=saving,
    )
    with pytest.raises(AssertionError, match='was fine-tuned'):
        train(tmp_path / 'fresh', subcloner(), model=model)
    settings = config(
        tmp_path / 'run', model=model, hooks=[subcloner()], resume=True
    )
    settings['train_cfg']['max_epochs'] = 2
    runner = Runner(**settings)
    runner.train()
    assert runner.epoch == 2


@pytest.mark.parametrize('centred', [False, True])
def test_attention_gives_the_ssm_with_the_default_importance(
    tmp_path, ckpt, teacher, monkeypatch, centred
):
    """Neither a reference nor a fine-tuning where nothing is dropped."""
    monkeypatch.setattr('transmamba_mm.transfer.hook.collect_changes', never)
    hook = subcloner(ssm_from='attention', centre_keys=centred, num_batches=1)
    _, hook, probe = train(tmp_path, hook, model=distill_cfg(ckpt))
    told = 'attention, keys centred' if centred else 'attention'
    assert hook.plan.settings['ssm'] == told
    mixer = 'architecture.backbone.layers.1.mamba.'
    query, key, value = teacher['backbone.layers.1.attn.qkv.weight'].chunk(3)
    assert probe.start[f'{mixer}in_proj.weight'][:16].equal(value)
    B = probe.start[f'{mixer}x_proj.weight'][-8:-4]
    states = (query.norm(dim=1) * key.norm(dim=1)).topk(4).indices
    error = B @ value - key[states.sort().values]
    # Centred, they differ along one direction alone.
    assert torch.linalg.matrix_rank(error, atol=1e-2) == int(centred)


def test_what_is_measured_has_the_weights_that_are_copied(tmp_path, ckpt):
    """Where ``teacher_ckpt`` is not what the distillation's teacher has."""
    other = save_teacher(tmp_path / 'other.pth', vit_cfg(), seed=8)
    model = dict(model=student_cfg(dims=12))
    hook = dict(fine_tune=SHORT, teacher=vit_cfg())
    _, alone, _ = train(tmp_path / 'a', subcloner(other, **hook), **model)
    model = distill_cfg(ckpt, dims=12)
    _, found, probe = train(
        tmp_path / 'b', subcloner(other, fine_tune=SHORT), model=model
    )
    assert found.plan.selections == alone.plan.selections
    name = 'backbone.layers.0.attn.qkv.weight'
    assert probe.start[f'teacher.{name}'].equal(torch.load(ckpt)[name])


# -------------------------------------------------------------- mistakes


@pytest.mark.parametrize('lazy', [False, True])
def test_two_initialisers_are_refused(tmp_path, ckpt, lazy):
    pretrained = build(student_cfg(), 4)
    torch.save(pretrained.state_dict(), tmp_path / 'mamba.pth')
    model = student_cfg()
    model['backbone']['init_cfg'] = dict(
        type=PretrainedInit if lazy else 'Pretrained',
        checkpoint=str(tmp_path / 'mamba.pth'),
        prefix='backbone.',
    )
    assert_refused(
        tmp_path,
        subcloner(ckpt),
        TransferError,
        r"backbone has init_cfg=dict\(type='Pretrained'.*give that "
        'checkpoint to SubcloneInitializer as ssm_from',
        model=model,
    )


def assert_refused(folder, hook, error, message, **kwargs):
    runner = Runner(**config(folder, hooks=[hook], **kwargs))
    probe = Probe()
    runner.register_hook(probe)
    with pytest.raises(error, match=message):
        runner.train()
    assert probe.start is None
    assert probe.iterations == 0


@pytest.mark.parametrize('key', ['teacher_ckpt', 'reference_ckpt', 'ssm_from'])
def test_a_missing_checkpoint_is_named_before_training(tmp_path, ckpt, key):
    hook = subcloner(**dict(dict(teacher_ckpt=ckpt), **{key: 'gone/x.pth'}))
    assert_refused(tmp_path, hook, FileNotFoundError, r"'gone/x\.pth'")


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    path = tmp_path / 'else.pth'
    torch.save({'conv1.weight': torch.ones(3)}, path)
    assert_refused(
        tmp_path,
        subcloner(str(path)),
        TeacherError,
        r'no known Transformer.*starts with conv1\.weight',
    )


def test_a_student_without_any_teacher_is_refused(tmp_path):
    message = 'holds no teacher: give SubcloneInitializer a teacher_ckpt'
    assert_refused(tmp_path, subcloner(), TransferError, message)


def test_a_model_without_our_backbone_is_refused(tmp_path, ckpt):
    model = dict(vit_cfg(), data_preprocessor=PREPROCESSOR)
    message = 'expected one transmamba_mm backbone'
    assert_refused(tmp_path, subcloner(ckpt), TypeError, message, model=model)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(), 'give reference_ckpt'),
        (dict(centre_keys=True), 'centre_keys needs the teacher model'),
        (
            dict(teacher=vit_cfg(), fine_tune=dict(epochs=1)),
            r"fine_tune has no \['epochs'\]",
        ),
        (dict(importance='activation'), 'needs the teacher model'),
        (dict(importance='best'), "unknown importance 'best'"),
        (dict(importance='first', layer_map=[0]), 'each of the 2'),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, ckpt, options, message):
    assert_refused(
        tmp_path,
        subcloner(ckpt, **options),
        TransferError,
        message,
        model=student_cfg(dims=12),
    )


# ---------------------------------------------------------- two processes


def train_rank(rank, port, folder, ckpt):
    """One of the processes; each has its own idea of randomness."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(PROCESSES),
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    cfg = Config(dict(launcher='pytorch'))
    prepare_cpu_launch(cfg)
    hook = subcloner(
        ckpt,
        teacher=vit_cfg(),
        fine_tune=SHORT,
        conv_init='normal',
        seed=rank,
    )
    settings = config(
        folder,
        model=student_cfg(dims=12),
        hooks=[hook],
        launcher='pytorch',
        cfg=cfg,
    )
    settings['experiment_name'] = 'two_processes'
    settings['randomness'] = dict(seed=3, diff_rank_seed=True)
    runner = Runner(**settings)
    assert is_model_wrapper(runner.model)
    probe = Probe()
    runner.register_hook(probe)
    runner.train()
    hook = next(h for h in runner.hooks if isinstance(h, SubcloneInitializer))
    result = dict(
        start=probe.start,
        end=weights(runner.model),
        residual=hook.plan.selections['residual'],
        conv=next(e.value for e in hook.plan.entries if e.rule == 'init'),
    )
    torch.save(result, f'{folder}/rank{rank}.pth')


@pytest.mark.skipif(get_device() != 'cpu', reason='for machines without GPU')
def test_all_ranks_start_and_stay_equal(tmp_path, ckpt, teacher):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    multiprocessing.start_processes(
        train_rank,
        (port, str(tmp_path), ckpt),
        nprocs=PROCESSES,
        start_method='forkserver',  # spares the imports
    )
    first, second = (
        torch.load(tmp_path / f'rank{rank}.pth') for rank in range(PROCESSES)
    )
    # Each seed finds channels of its own, but all take the first rank's.
    assert first['residual'] == second['residual']
    # These would differ if each rank kept what it had drawn.
    conv = 'backbone.layers.0.mamba.conv2d.weight'
    assert first['conv'].equal(first['start'][conv])
    assert not second['conv'].equal(first['conv'])
    for when in ('start', 'end'):
        for name, value in first[when].items():
            assert value.equal(second[when][name]), (when, name)
    kept = first['residual'].split('[')[1].rstrip(']').split()
    kept = torch.tensor([int(index) for index in kept])
    expected = teacher['backbone.pos_embed'][:, 1:, kept]
    assert first['start']['backbone.pos_embed'].equal(expected)
    plan = json.loads((tmp_path / 'transfer_plan.json').read_text())
    assert plan['selections']['residual'] == first['residual']
