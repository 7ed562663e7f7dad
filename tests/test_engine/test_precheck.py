# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The check before training: classes, labels, and what has no effect."""

import numpy as np
import pytest
import torch
from helpers import (
    TinyPictures,
    save_teacher,
    tiny_distiller,
    tiny_runner,
    tiny_student,
    tiny_teacher,
)
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from PIL import Image
from torch.utils.data import DataLoader

from transmamba_mm.datasets import PartlyLabelledDataset
from transmamba_mm.distill import TransMambaDistill
from transmamba_mm.engine import PreCheckError, PreCheckHook
from transmamba_mm.registry import MODELS

DIRECTIONS = 4


@pytest.fixture(scope='module')
def teacher_ckpt(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp('teacher') / 'teacher.pth')


@pytest.fixture
def make(teacher_ckpt):
    def build(**kwargs):
        settings = dict(
            architecture=tiny_student(),
            teacher=tiny_teacher(),
            distiller=tiny_distiller(),
            teacher_ckpt=teacher_ckpt,
        )
        settings.update(kwargs)
        return TransMambaDistill(**settings)

    return build


class Steps(Hook):
    """Counts the iterations."""

    def __init__(self):
        self.num = 0

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.num += 1


def train(tmp_path, model, *hooks, **kwargs):
    """Trains with the check, from a config as a tool would."""
    cfg = {key: x for key, x in kwargs.items() if isinstance(x, dict)}
    if isinstance(model, dict):
        cfg['model'] = model
    hooks = [PreCheckHook(), *hooks]
    tiny_runner(tmp_path, model, custom_hooks=hooks, cfg=cfg, **kwargs).train()


def check(tmp_path, model, **kwargs):
    """Runs the check alone; returns its message."""
    steps = Steps()
    with pytest.raises(PreCheckError) as caught:
        train(tmp_path, model, steps, **kwargs)
    assert steps.num == 0
    return str(caught.value)


@pytest.mark.parametrize('max_epochs', [0, -1])
def test_no_epoch(tmp_path, max_epochs):
    message = check(tmp_path, tiny_student(), max_epochs=max_epochs)
    assert 'train_cfg.max_epochs must be positive' in message


@pytest.mark.parametrize('norm', [0, -1.0])
def test_no_gradient(tmp_path, norm):
    wrapper = dict(
        optimizer=dict(type='SGD', lr=0.1), clip_grad=dict(max_norm=norm)
    )
    message = check(tmp_path, tiny_student(), optim_wrapper=wrapper)
    assert 'optim_wrapper.clip_grad.max_norm must be positive' in message


@pytest.mark.parametrize('interval', [0, -1, '1', None])
def test_no_interval_of_evaluations(tmp_path, interval):
    message = check(
        tmp_path,
        tiny_student(),
        train_cfg=dict(by_epoch=True, max_epochs=1, val_interval=interval),
        val_cfg=dict(),
        val_dataloader=DataLoader(TinyPictures(), collate_fn=pseudo_collate),
        val_evaluator=dict(type='Accuracy'),
    )
    assert 'train_cfg.val_interval must be an integer from 1 on' in message


def test_no_batch(tmp_path):
    loader = DataLoader(
        TinyPictures(3),
        batch_size=4,
        drop_last=True,
        collate_fn=pseudo_collate,
    )
    message = check(tmp_path, tiny_student(), train_dataloader=loader)
    assert 'gives no batch: its dataset has 3 samples' in message


@pytest.mark.parametrize(('num', 'warns'), [(8, False), (16, True)])
def test_a_run_that_goes_on_with_other_data(tmp_path, num, warns):
    train(tmp_path, tiny_student(), max_epochs=1)
    train(tmp_path, tiny_student(), max_epochs=4, num=num, resume=True)
    (log,) = [
        path.read_text()
        for path in tmp_path.rglob('*.log')
        if 'resumed epoch: 1, iter: 2' in path.read_text()
    ]
    message = '1 epochs are 4 iterations of this train_dataloader'
    assert (message in log) == warns
    assert ('go on at 12% of the training, not 25%' in log) == warns


# ------------------------------------------------------------ paramwise_cfg


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(norm_deacy_mult=0.0), "has 'norm_deacy_mult', which does nothi"),
        (dict(custom_keys=dict(backbne=dict(lr_mult=0))), "mean 'backbone'?"),
        (dict(custom_keys={'layers.9': dict(lr_mult=0)}), "has 'layers.9'"),
        (dict(custom_keys=dict(head=dict(lrmult=0))), r"has 'lrmult'"),
    ],
)
def test_options_without_effect(tmp_path, options, message):
    wrapper = dict(
        optimizer=dict(type='SGD', lr=0.1, weight_decay=0.1),
        paramwise_cfg=options,
    )
    assert message in check(tmp_path, tiny_student(), optim_wrapper=wrapper)


def test_options_that_recipes_share(tmp_path):
    keys = {
        'backbone.layers.0': dict(lr_mult=0.1),
        '.absolute_pos_embed': dict(decay_mult=0.0),
    }
    wrapper = dict(
        optimizer=dict(type='SGD', lr=0.1, weight_decay=0.1),
        paramwise_cfg=dict(custom_keys=keys, norm_decay_mult=0.0),
    )
    train(tmp_path, tiny_student(), optim_wrapper=wrapper)


# -------------------------------------------------------------- the classes


@pytest.fixture
def folders(tmp_path):
    """Makes class folders with two pictures each; returns a loader."""

    def make_folders(kind, names, empty=(), **kwargs):
        for name in (*names, *empty):
            (tmp_path / kind / name).mkdir(parents=True)
        for name in names:
            for i in range(2):
                pixels = np.full((16, 16, 3), 40 * i, np.uint8)
                path = tmp_path / kind / name / f'{i}.png'
                Image.fromarray(pixels).save(path)
        return dict(
            batch_size=2,
            num_workers=0,
            collate_fn=dict(type='pseudo_collate'),
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(
                type='CustomDataset',
                data_prefix=str(tmp_path / kind),
                pipeline=[
                    dict(type='LoadImageFromFile'),
                    dict(type='PackInputs'),
                ],
                **kwargs,
            ),
        )

    return make_folders


def validated(val):
    return dict(
        val_dataloader=val,
        val_cfg=dict(),
        val_evaluator=dict(type='Accuracy'),
    )


@pytest.mark.parametrize(
    ('names', 'empty', 'message'),
    [
        ('ab', '', "missing: 'c'"),
        ('abcd', '', "superfluous: 'd'"),
        ('abx', '', "missing: 'c'; superfluous: 'x'"),
        ('ab', 'c', "val_dataloader has no image of 'c' in "),
        ('abc', ['.ipynb_checkpoints'], "'.ipynb_checkpoints'"),
    ],
)
@pytest.mark.parametrize('kind', ['val', 'test'])
def test_class_folders_that_differ(
    tmp_path, folders, names, empty, message, kind
):
    own = folders('train', 'abc')
    other = folders('other', names, empty)
    if kind == 'val':
        more = validated(other)
    else:
        more = dict(
            validated(folders('val', 'abc')),
            test_dataloader=other,
            test_cfg=dict(),
            test_evaluator=dict(type='Accuracy'),
        )
    found = check(
        tmp_path / 'run', tiny_student(), train_dataloader=own, **more
    )
    assert message.replace('val_', f'{kind}_') in found
    assert f'{kind}_dataloader' in found


def test_a_part_of_the_data_may_lack_a_class(tmp_path, folders):
    loader = folders('train', 'abc')
    for indices in (5, [0, 1]):
        loader['dataset']['indices'] = indices
        train(tmp_path / 'run', tiny_student(), train_dataloader=loader)


def test_classes_in_another_order(tmp_path, folders):
    names = dict(metainfo=dict(classes=['x', 'y', 'z']))
    other = dict(metainfo=dict(classes=['x', 'z', 'y']))
    found = check(
        tmp_path / 'run',
        tiny_student(),
        train_dataloader=folders('train', 'abc', **names),
        **validated(folders('val', 'abc', **other)),
    )
    assert "in another order: class 1 is 'z' instead of 'y'" in found


def test_test_data_may_be_elsewhere(tmp_path, folders):
    own, test = folders('train', 'abc'), folders('test', 'abc')
    test['dataset']['data_prefix'] = str(tmp_path / 'gone')
    train(
        tmp_path / 'run',
        tiny_student(),
        train_dataloader=own,
        test_dataloader=test,
        test_cfg=dict(),
        test_evaluator=dict(type='Accuracy'),
    )


class LateLabel(TinyPictures):
    """A plain dataset of PyTorch's, the last label of which is 9."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        if index == len(self) - 1:
            sample['data_samples'].set_gt_label(9)
        return sample


@pytest.mark.parametrize('kind', ['train', 'val'])
def test_a_label_without_a_score_of_a_plain_dataset(tmp_path, kind):
    loader = DataLoader(LateLabel(), batch_size=4, collate_fn=pseudo_collate)
    evaluation = dict(
        val_dataloader=loader,
        val_cfg=dict(),
        val_evaluator=dict(type='Accuracy'),
    )
    settings = evaluation if kind == 'val' else dict(train_dataloader=loader)
    message = (
        rf'{kind}_dataloader has the label 9 \(LateLabel\), but model.head'
    )
    with pytest.raises(PreCheckError, match=message):
        train(tmp_path, tiny_student(), **settings)


def test_a_label_without_a_score(tmp_path, folders):
    found = check(
        tmp_path / 'run',
        tiny_student(),
        train_dataloader=folders('train', 'abcde'),
    )
    assert 'train_dataloader has the label 4 (CustomDataset)' in found
    assert 'model.head has num_classes=3, labels 0 to 2' in found


def test_a_teacher_of_classes_in_another_order(
    make, tmp_path, folders, teacher_ckpt
):
    path = tmp_path / 'teacher.pth'
    state = torch.load(teacher_ckpt)
    distiller = dict(
        type='transmamba.MethodDistiller',
        methods=[dict(type='transmamba.LogitsKD')],
    )
    for classes, wrong in (('acb', True), ('xyz', False), ('abc', False)):
        meta = dict(dataset_meta=dict(classes=tuple(classes)))
        torch.save(dict(state_dict=state, meta=meta), path)
        model = make(distiller=distiller, teacher_ckpt=str(path))
        loader = folders(classes + '_run', 'abc')
        work_dir = tmp_path / f'run_{classes}'
        if wrong:
            found = check(work_dir, model, train_dataloader=loader)
            assert "class 1 is 'c' instead of 'b'" in found
            assert str(path) in found
        else:
            train(work_dir, model, train_dataloader=loader)


# ------------------------------------------------------------ the evaluation


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        (dict(save_best='acuracy'), PreCheckError, 'save_best is .acuracy.'),
        (dict(topk=[None]), TypeError, 'NoneType'),
        (dict(pipeline=[]), Exception, ''),
    ],
)
def test_an_evaluation_that_would_fail(
    tmp_path, folders, change, error, message
):
    val = folders('val', 'abc')
    val['dataset'].update(
        pipeline=change.get('pipeline', val['dataset']['pipeline'])
    )
    steps = Steps()
    checkpoint = dict(type='transmamba.SafeCheckpointHook', rule='greater')
    if 'save_best' in change:
        checkpoint['save_best'] = change['save_best']
    with pytest.raises(error, match=message):
        train(
            tmp_path / 'run',
            tiny_student(),
            steps,
            train_dataloader=folders('train', 'abc'),
            val_dataloader=val,
            val_cfg=dict(),
            val_evaluator=dict(type='Accuracy', topk=change.get('topk', [1])),
            default_hooks=dict(checkpoint=checkpoint),
        )
    assert steps.num == 0


def test_the_evaluation_leaves_no_trace(tmp_path, folders):
    weights = []
    for name, check_it in (('with', True), ('without', False)):
        torch.manual_seed(5)
        model = MODELS.build(tiny_student(drop_rate=0.3))
        torch.manual_seed(6)
        tiny_runner(
            tmp_path / name,
            model,
            custom_hooks=[PreCheckHook()] if check_it else [],
            **validated(folders(f'{name}_val', 'abc')),
        ).train()
        weights.append(model.state_dict())
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key


# ------------------------------------------------- images without a label


@pytest.fixture
def partly(folders):
    """A loader of six pictures, three of which have a label."""
    loader = folders('train', 'abc')
    loader['dataset'] = dict(
        type='transmamba.PartlyLabelledDataset',
        dataset=loader['dataset'],
        labelled=0.5,
    )
    return loader


@pytest.mark.parametrize('distils', [True, False])
def test_images_without_a_label(make, partly, distils, tmp_path):
    model = make() if distils else tiny_student()
    steps = Steps()
    train(tmp_path / 'run', model, steps, train_dataloader=partly)
    assert steps.num == 3


@pytest.mark.parametrize('distils', [True, False])
@pytest.mark.parametrize(
    'loss',
    [
        dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=3),
        dict(type='CrossEntropyLoss', use_soft=True),
        dict(type='CrossEntropyLoss', use_sigmoid=True),
    ],
)
def test_a_loss_without_a_place_for_them(
    make, partly, loss, distils, tmp_path
):
    student = tiny_student()
    student['head']['loss'] = loss
    model = make(architecture=student) if distils else student
    found = check(tmp_path / 'run', model, train_dataloader=partly)
    assert f'LinearClsHead with {loss["type"]} cannot leave out' in found


def test_they_cannot_be_mixed(partly, tmp_path):
    student = tiny_student()
    student['train_cfg'] = dict(augments=dict(type='Mixup', alpha=0.8))
    found = check(tmp_path / 'run', student, train_dataloader=partly)
    assert 'mixup and cutmix cannot mix' in found


def test_labels_of_others_are_checked_inside(folders, partly, tmp_path):
    partly['dataset']['dataset'] = folders('more', 'abcde')['dataset']
    found = check(tmp_path / 'run', tiny_student(), train_dataloader=partly)
    assert 'train_dataloader has the label 4 (PartlyLabelled' in found


def test_they_are_in_no_way_of_a_plain_dataset(tmp_path):
    data = PartlyLabelledDataset(dict(type=TinyPictures), 0.5)
    loader = DataLoader(data, batch_size=4, collate_fn=pseudo_collate)
    steps = Steps()
    train(tmp_path, tiny_student(), steps, train_dataloader=loader)
    assert steps.num == 2


def test_a_method_that_reads_labels(make, partly, tmp_path):
    model = make(
        distiller=dict(
            type='transmamba.MethodDistiller',
            methods=[dict(type='transmamba.OneForAll')],
        )
    )
    with pytest.raises(ValueError, match='leave that method out for unlab'):
        train(tmp_path / 'run', model, train_dataloader=partly)
