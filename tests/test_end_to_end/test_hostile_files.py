# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""No tool runs what a file holds, or removes what is not its own.

One line, exit status 2, whichever way a bad file comes in.
"""

import os
import shutil

import numpy as np
import pytest
import torch
from helpers import own_name, run_tool_here
from hostile_files import COMMAND, FILES, MARK, STATEMENT, served, write
from PIL import Image

from transmamba_mm.compat.environment import version_tuple

pytestmark = pytest.mark.skipif(
    version_tuple(torch.__version__) < (2, 6),
    reason='older versions of PyTorch read any pickle',
)
CONFIG = """
custom_imports = dict(imports=['transmamba_mm'], allow_failed_imports=False)
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=2, mean=[128] * 3, std=[64] * 3),
    backbone=dict(
        type='transmamba.VisionMamba',
        arch=dict(embed_dims=8, num_layers=1), img_size=16, patch_size=8),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=8))
_loader = dict(
    batch_size=4, num_workers=0,
    dataset=dict(
        type='CustomDataset', data_prefix='data',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))
train_dataloader = dict(
    sampler=dict(type='DefaultSampler', shuffle=True), **_loader)
test_dataloader = dict(
    sampler=dict(type='DefaultSampler', shuffle=False), **_loader)
val_dataloader = test_dataloader
test_evaluator = val_evaluator = dict(type='Accuracy', topk=(1,))
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=1e-3, momentum=0.9))
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0.0, T_max=9)]
default_hooks = dict(
    checkpoint=dict(type=HOOK, max_keep_ckpts=2, save_best='accuracy/top1'))
"""
VIT = """
_base_ = 'toy.py'
model = dict(backbone=dict(
    _delete_=True, type='VisionTransformer', img_size=16, patch_size=8,
    arch=dict(embed_dims=8, num_layers=1, num_heads=2,
              feedforward_channels=16), out_type='avg_featmap'))
"""
DISTILLED = """
_base_ = 'toy.py'
model = dict(
    _delete_=True, type='transmamba.TransMambaDistill',
    architecture={{_base_.model}}, teacher={{_base_.model}},
    teacher_ckpt='hostile.pth',
    distiller=dict(type='transmamba.MethodDistiller',
                   methods=[dict(type='transmamba.LogitsKD')]))
custom_hooks = [dict(type='transmamba.SubcloneInitializer')]
"""


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder with configs, pictures and a run of one epoch."""
    root = tmp_path_factory.mktemp('hostile')
    for i in range(4):
        folder = root / 'data' / 'ab'[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((16, 16, 3), 40 * i, np.uint8)
        Image.fromarray(pixels).save(folder / f'{i}.png')
    hook = repr('transmamba.SafeCheckpointHook')
    (root / 'toy.py').write_text(CONFIG.replace('HOOK', hook))
    (root / 'vit.py').write_text(VIT)
    (root / 'distilled.py').write_text(DISTILLED)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        train(patch, 'toy.py', '--work-dir', 'run')
    return root


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / 'project')
    monkeypatch.chdir(tmp_path / 'project')
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    return tmp_path / 'project'


def train(monkeypatch, *args):
    options = () if '--cfg-options' in args else ('--cfg-options',)
    run_tool_here(monkeypatch, 'train', *args, *options, own_name())


def refused(monkeypatch, capsys, tool, *args):
    """The one line that a tool ends with."""
    with pytest.raises(SystemExit) as end:
        if tool == 'train':
            train(monkeypatch, *args)
        else:
            run_tool_here(monkeypatch, tool, *args)
    assert end.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith('error: ')]
    assert len(errors) == 1 and lines[-1] == errors[0], lines
    assert not os.path.exists(MARK)
    return errors[0]


PRETRAINED = "init_cfg=dict(type='Pretrained',checkpoint='{}')"
ENTRIES = dict(
    load_from='train toy.py --cfg-options load_from={}',
    resume='train toy.py --resume {}',
    backbone='train toy.py --cfg-options model.backbone.init_cfg.type='
    'Pretrained model.backbone.init_cfg.checkpoint={}',
    vit='train vit.py --cfg-options model.backbone.init_cfg.type=Pretrained '
    'model.backbone.init_cfg.checkpoint={}',
    classifier='train vit.py --cfg-options model.init_cfg.type=Pretrained '
    'model.init_cfg.checkpoint={}',
    teacher='train distilled.py --cfg-options model.teacher_ckpt={}',
    ssm_from='transfer_plan distilled.py --cfg-options '
    'model.teacher_ckpt=run/epoch_1.pth custom_hooks.0.ssm_from={}',
    reference='transfer_plan distilled.py --cfg-options '
    'model.teacher_ckpt=run/epoch_1.pth custom_hooks.0.reference_ckpt={} '
    'model.architecture.backbone.arch.embed_dims=4',
    plan='transfer_plan distilled.py --cfg-options model.teacher_ckpt={}',
    test='test toy.py {}',
    cka='analysis_tools/cka distilled.py {}',
    export='export_student {}',
    official='model_converters/official_to_transmamba {} --config toy.py',
    timm='model_converters/timm_to_classifier vit_tiny_patch16_224 {} o.pth',
)


# What each entry refuses, and in which words.
KINDS = dict(
    system='holds more than data',
    object_array='holds more than data',
    in_hub='holds more than data',
    bomb='holds more than data',
    truncated='is damaged',
    empty='is damaged',
    list='holds no tensors',
    number='its state_dict is of type int',
    nothing='holds no tensors',
    score='best_score in its message_hub',
)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('entry', ENTRIES)
def test_no_entry_takes_a_hostile_file(
    project, monkeypatch, capsys, entry, kind
):
    before = contents(project)
    write(kind, 'hostile.pth')
    args = ENTRIES[entry].format('hostile.pth').split()
    line = refused(monkeypatch, capsys, *args)
    assert "'hostile.pth'" in line and KINDS[kind] in line
    assert contents(project).items() >= before.items()


@pytest.mark.parametrize('entry', ENTRIES)
def test_no_entry_takes_a_hostile_url(project, monkeypatch, capsys, entry):
    write('system', 'hostile.pth')
    with served(project) as url:
        args = ENTRIES[entry].format(f'{url}/hostile.pth').split()
        line = refused(monkeypatch, capsys, *args)
    assert f"'{url}/hostile.pth' holds more than data" in line


def contents(folder):
    """All that was there before a tool ran, but for its own output."""
    return {
        path: path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file() and 'work_dirs' not in path.parts
    }


@pytest.mark.parametrize('scheme', ['local', 'http'])
def test_no_pointer_leads_to_code(project, monkeypatch, capsys, scheme):
    write('system', 'run/hostile.pth')
    args = ['train', 'toy.py', '--work-dir', 'run', '--resume']
    with served(project) as url:
        path = {'local': '', 'http': f'{url}/'}[scheme] + 'run/hostile.pth'
        (project / 'run' / 'last_checkpoint').write_text(path)
        line = refused(monkeypatch, capsys, *args)
    assert 'hostile.pth' in line and 'holds more than data' in line


@pytest.mark.parametrize('entry', ['load_from', 'resume', 'test'])
def test_no_entry_takes_weights_that_are_no_numbers(
    project, monkeypatch, capsys, entry
):
    nan = torch.full((8,), float('nan'))
    path = edited(project, **{'state_dict__backbone.norm_f.weight': nan})
    args = ENTRIES[entry].format(path).split()
    line = refused(monkeypatch, capsys, *args)
    assert f"'{path}' is no good: backbone.norm_f.weight" in line


def edited(project, **changes):
    """A checkpoint of the run with other content; ``a__b`` is a['b']."""
    content = torch.load(project / 'run' / 'epoch_1.pth', weights_only=True)
    for name, value in changes.items():
        owner, *rest = name.split('__')
        owner, keys = content, [owner, *rest]
        keys = [int(key) if key.isdigit() else key for key in keys]
        for key in keys[:-1]:
            owner = owner[key]
        if value is None:
            del owner[keys[-1]]
        else:
            owner[keys[-1]] = value
    torch.save(content, 'edited.pth')
    return 'edited.pth'


@pytest.mark.parametrize(
    'changes',
    [
        dict(meta=None),
        dict(meta__epoch='one'),
        dict(meta__iter=-1),
        dict(message_hub=None),
        dict(optimizer=5),
        dict(optimizer={}),
        dict(optimizer=None),
        dict(optimizer__param_groups__0__lr='high'),
        dict(optimizer__param_groups__0__lr=float('nan')),
        dict(optimizer__state__0__momentum_buffer='fast'),
        dict(param_schedulers=5, message_hub__resumed_keys=None),
        dict(param_schedulers=None),
        dict(param_schedulers=[]),
        dict(param_schedulers__0=5),
        dict(param_schedulers__0__step='now'),
        dict(param_schedulers__0__param_name='rl'),
        dict(param_schedulers__0__last_step=None),
        dict(param_schedulers__0__base_values=['x']),
    ],
    ids=str,
)
def test_no_training_state_is_one_line(project, monkeypatch, capsys, changes):
    path = edited(project, **changes)
    line = refused(monkeypatch, capsys, 'train', 'toy.py', '--resume', path)
    assert f"'{path}' holds no training state" in line


def test_a_config_in_a_checkpoint_is_not_run(project, monkeypatch, capsys):
    path = edited(
        project,
        meta__config=STATEMENT,
        meta__cfg=STATEMENT,
        message_hub__runtime_info__cfg=STATEMENT,
    )
    train(
        *(monkeypatch, 'toy.py', '--resume', path, '--work-dir', 'other'),
        *('--cfg-options', 'train_cfg.max_epochs=2'),
    )
    assert (project / 'other' / 'epoch_2.pth').exists()
    assert not os.path.exists(MARK)
    refused(monkeypatch, capsys, 'export_student', path)


@pytest.mark.parametrize(
    'hook', ['transmamba.SafeCheckpointHook', 'CheckpointHook']
)
@pytest.mark.parametrize('target', ['file', 'folder', 'run'])
def test_only_own_checkpoints_are_removed(project, monkeypatch, hook, target):
    (project / 'precious').mkdir()
    (project / 'precious' / 'best_x.pth').write_text('mine')
    victim = dict(
        file=str(project / 'precious' / 'best_x.pth'),
        folder=str(project / 'precious'),
        run=str(project / 'run' / 'best_x.pth'),
    )[target]
    if target == 'run':
        (project / 'run' / 'best_x.pth').write_text('mine')
    path = edited(
        project,
        message_hub__runtime_info__best_ckpt=victim,
        message_hub__runtime_info__best_score=-1.0,
        message_hub__runtime_info__keep_ckpt_ids=['../../x', 1, True, 0],
        message_hub__runtime_info__doomed_ckpts=[victim, 5, '../x'],
        message_hub__resumed_keys=dict.fromkeys(
            ('best_ckpt', 'best_score', 'keep_ckpt_ids', 'doomed_ckpts'), True
        ),
    )
    train(
        *(monkeypatch, 'toy.py', '--resume', path, '--work-dir', 'other'),
        *('--cfg-options', 'train_cfg.max_epochs=2'),
        f'default_hooks.checkpoint.type={hook}',
    )
    assert os.path.exists(victim)
    assert list((project / 'other').glob('best_*'))


def test_a_copy_of_a_run_is_a_run_of_its_own(project, monkeypatch, capsys):
    shutil.copytree('run', 'copy')
    before = {p.name: p.read_bytes() for p in (project / 'run').glob('*.pth')}
    path = project / 'copy' / 'epoch_1.pth'
    content = torch.load(path, weights_only=True)
    content['message_hub']['runtime_info']['best_score'] = -1.0
    torch.save(content, path)
    (best,) = (project / 'copy').glob('best_*')
    train(
        *(monkeypatch, 'toy.py', '--work-dir', 'copy', '--resume'),
        *('--cfg-options', 'train_cfg.max_epochs=2'),
    )
    said = capsys.readouterr()
    assert 'is taken instead' in said.out + said.err
    after = {p.name: p.read_bytes() for p in (project / 'run').glob('*.pth')}
    assert after == before
    assert (project / 'copy' / 'epoch_2.pth').exists()
    assert not best.exists()  # its own is replaced, as it should be


@pytest.mark.parametrize(
    ('spoil', 'said', 'whole'),
    [
        (
            lambda run: (run / 'last_checkpoint').write_bytes(b''),
            'names no',
            2,
        ),
        (
            lambda run: (run / 'last_checkpoint').write_bytes(b'\xff\0' * 9),
            'names no checkpoint',
            2,
        ),
        (lambda run: (run / 'epoch_2.pth').unlink(), 'does not exist', 1),
        (
            lambda run: (run / 'epoch_2.pth').write_bytes(
                FILES['truncated']()
            ),
            'is damaged',
            1,
        ),
    ],
    ids=['empty', 'binary', 'deleted', 'truncated'],
)
def test_a_lost_checkpoint_names_an_older_one(
    project, monkeypatch, capsys, spoil, said, whole
):
    run = project / 'run'
    shutil.copy(run / 'epoch_1.pth', run / 'epoch_2.pth')
    (run / 'last_checkpoint').write_text(str(run / 'epoch_2.pth'))
    spoil(run)
    args = ('toy.py', '--work-dir', str(run))
    for resume in (('--resume',), ('--cfg-options', 'resume=True')):
        line = refused(monkeypatch, capsys, 'train', *args, *resume)
        assert (
            said in line and f"epoch_{whole}.pth' beside it is whole" in line
        )


def test_annotations_are_read_as_data(project, monkeypatch, capsys):
    base = 'train_dataloader.dataset'
    (project / 'x.pkl').write_bytes(FILES['pickle_4']())
    (project / 'x.yaml').write_text(
        f"!!python/object/apply:os.system ['{COMMAND}']"
    )
    for name, said in (('x.pkl', 'a pickle'), ('x.yaml', 'python/object')):
        line = refused(
            *(monkeypatch, capsys, 'train', 'toy.py', '--cfg-options'),
            *(f'{base}.type=BaseDataset', f'{base}.ann_file={name}'),
        )
        assert name in line and said in line
