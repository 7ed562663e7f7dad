# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Images without labels teach by the distillation losses alone."""

import numpy as np
import pytest
import torch
from helpers import (
    build,
    save_teacher,
    tiny_batch,
    tiny_student,
    tiny_teacher,
)
from mmengine.registry import init_default_scope

from transmamba_mm.contract.answers import IGNORED
from transmamba_mm.registry import DATASETS

DIGITS = dict(
    type='transmamba.Digits',
    pipeline=[dict(type='mmpretrain.PackInputs')],
)


def partly(**options):
    return DATASETS.build(
        dict(
            type='transmamba.PartlyLabelledDataset', dataset=DIGITS, **options
        )
    )


def labels(dataset):
    samples = [dataset[i]['data_samples'] for i in range(len(dataset))]
    return torch.cat([sample.gt_label for sample in samples]).numpy()


def test_the_labels_of_a_balanced_share_are_left():
    whole = labels(DATASETS.build(DIGITS))
    dataset = partly(labelled=0.25, seed=3)
    assert len(dataset) == 1297
    assert dataset.metainfo['classes'] == tuple('0123456789')
    found = labels(dataset)
    known = found != IGNORED
    assert (found[known] == whole[known]).all()
    counts = np.bincount(found[known]) / np.bincount(whole)
    assert np.abs(counts - 0.25).max() < 0.005
    # The same images as a training on that share alone would see.
    share = DATASETS.build(
        dict(
            type='transmamba.FractionDataset',
            dataset=DIGITS,
            fraction=0.25,
            seed=3,
        )
    )
    inputs = torch.stack([share[i]['inputs'] for i in range(len(share))])
    own = [dataset[i]['inputs'] for i in np.flatnonzero(known)]
    assert torch.stack(own).equal(inputs)


@pytest.mark.parametrize('labelled', [0, 1.1, '1'])
def test_a_wrong_share(labelled):
    with pytest.raises((ValueError, TypeError), match='labelled'):
        partly(labelled=labelled)


def distillation(tmp_path, **head):
    student = tiny_student()
    student['head'].update(head)
    return build(
        dict(
            type='transmamba.TransMambaDistill',
            architecture=student,
            teacher=tiny_teacher(),
            teacher_ckpt=save_teacher(tmp_path / 'teacher.pth'),
            alpha=0.3,
            distiller=dict(
                type='transmamba.MethodDistiller',
                methods=[
                    dict(type='transmamba.LogitsKD', in_alpha=True),
                    dict(type='transmamba.HiddenStates', channels='learned'),
                ],
            ),
        )
    )


def test_only_labelled_images_have_a_task_loss(tmp_path):
    model = distillation(tmp_path)
    images, samples = tiny_batch(6)
    whole = model.loss(images, samples)
    for sample in samples[2:]:
        sample.set_gt_label(IGNORED)
    found = model.loss(images, samples)
    known = model.loss(images[:2], samples[:2])['student.loss']
    task = found.pop('student.loss')
    torch.testing.assert_close(task, known * 2 / 6)
    whole.pop('student.loss')
    assert found.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(found[name], value)
    for sample in samples[:2]:
        sample.set_gt_label(IGNORED)
    assert model.loss(images, samples)['student.loss'] == 0


def test_label_smoothing_refuses_them(tmp_path):
    init_default_scope('mmpretrain')
    loss = dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=3)
    model = distillation(tmp_path, loss=loss)
    images, samples = tiny_batch(6)
    samples[1].set_gt_label(IGNORED)
    with pytest.raises(RuntimeError, match='non-negative'):
        model.loss(images, samples)
