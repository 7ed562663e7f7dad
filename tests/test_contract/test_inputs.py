# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What a teacher sees of the student's batch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_teacher
from hypothesis import given
from hypothesis import strategies as st
from mmengine.model import BaseDataPreprocessor, ImgDataPreprocessor
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.structures import DataSample

from transmamba_mm.contract import TeacherInput
from transmamba_mm.registry import MODELS

IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
HALF = dict(mean=[127.5] * 3, std=[127.5] * 3)
SAME = dict(rtol=1e-6, atol=2e-6)


def pixels(channels=3, num=2, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (num, channels, size, size)
    return torch.randint(256, shape, generator=generator).byte()


def teacher_with(backbone=None, **preprocessor):
    config = tiny_teacher(**(backbone or {}))
    return MODELS.build(dict(config, data_preprocessor=preprocessor))


def normalised(preprocessor, images):
    return preprocessor(dict(inputs=images))['inputs']


constants = st.one_of(
    st.just({}),
    st.integers(0, 2**16).map(
        lambda seed: dict(
            mean=(200 * torch.rand(3, generator=_seeded(seed))).tolist(),
            std=(1 + 99 * torch.rand(3, generator=_seeded(~seed))).tolist(),
        )
    ),
    st.just(dict(mean=[30.0], std=[70.0])),
)
preprocessors = st.tuples(constants, st.booleans()).map(
    lambda drawn: dict(drawn[0], to_rgb=drawn[1])
)


def _seeded(seed):
    return torch.Generator().manual_seed(seed % 2**32)


@given(ours=preprocessors, theirs=preprocessors)
def test_it_sees_what_its_own_preprocessor_would_give(ours, theirs):
    teacher, student = teacher_with(**theirs), ClsDataPreprocessor(**ours)
    found = TeacherInput(teacher, student)(normalised(student, pixels()))
    # One that says nothing of pixels takes them as the student does.
    declared = theirs['to_rgb'] or 'mean' in theirs
    own = teacher.data_preprocessor if declared else student
    wanted = normalised(own, pixels())
    # Pixels are as large as 255 deviations where nothing is normalised.
    scale = wanted.abs().max().item()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize('own', [{}, dict(IMAGENET, to_rgb=True)])
def test_the_same_preprocessing_costs_nothing(own):
    student = ClsDataPreprocessor(**IMAGENET, to_rgb=True)
    images = normalised(student, pixels())
    found = TeacherInput(teacher_with(**own), student)(images)
    assert found.data_ptr() == images.data_ptr()


def test_mmengines_preprocessor_of_a_student():
    student = ImgDataPreprocessor(**IMAGENET, bgr_to_rgb=True)
    images = student(dict(inputs=list(pixels())))['inputs']
    teacher = teacher_with(**HALF)
    found = TeacherInput(teacher, student)(images)
    wanted = normalised(teacher.data_preprocessor, pixels())
    torch.testing.assert_close(found, wanted, **SAME)


def test_a_mixed_batch_is_mixed_alike():
    """Mixing commutes with the normalisation, so any weights will do."""
    augments = [dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]
    mixing = dict(
        batch_augments=dict(augments=augments), num_classes=3, to_onehot=True
    )
    student = ClsDataPreprocessor(**IMAGENET, to_rgb=True, **mixing)
    teacher = teacher_with(**HALF)
    oracle = ClsDataPreprocessor(**HALF, **mixing)
    for seed in range(6):
        found, wanted = (
            each(
                dict(
                    inputs=pixels(seed=seed),
                    data_samples=[
                        DataSample().set_gt_label(i) for i in (0, 2)
                    ],
                ),
                training=True,
            )['inputs']
            for each in map(_with_seed(seed), (student, oracle))
        )
        converted = TeacherInput(teacher, student)(found)
        torch.testing.assert_close(converted, wanted, **SAME)


def _with_seed(seed):
    def seeded(preprocessor):
        def call(*args, **kwargs):
            np.random.seed(seed)
            torch.manual_seed(seed)
            return preprocessor(*args, **kwargs)

        return call

    return seeded


# ------------------------------------------------------- size and channels


def test_its_own_size():
    size = dict(type='transmamba.ResizingDataPreprocessor', size=24)
    teacher = teacher_with(**size, **HALF)
    student = ClsDataPreprocessor(**IMAGENET, to_rgb=True)
    found = TeacherInput(teacher, student)(normalised(student, pixels()))
    plain = normalised(ClsDataPreprocessor(**HALF), pixels())
    wanted = F.interpolate(plain, (24, 24), mode='bicubic', antialias=True)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    # Its preprocessor does the same by itself.
    alone = normalised(teacher.data_preprocessor, pixels())
    assert alone.equal(wanted)


def test_a_size_alone_keeps_the_students_normalisation():
    size = dict(type='transmamba.ResizingDataPreprocessor', size=(8, 12))
    student = ClsDataPreprocessor(**IMAGENET)
    images = normalised(student, pixels())
    found = TeacherInput(teacher_with(**size), student)(images)
    wanted = F.interpolate(images, (8, 12), mode='bicubic', antialias=True)
    assert found.equal(wanted)


def test_grey_images_are_repeated_for_a_teacher_of_colours():
    student = ClsDataPreprocessor(mean=[33.0], std=[78.0])
    grey = pixels(1)
    found = TeacherInput(teacher_with(**IMAGENET), student)(
        normalised(student, grey)
    )
    wanted = normalised(
        ClsDataPreprocessor(**IMAGENET), grey.repeat(1, 3, 1, 1)
    )
    torch.testing.assert_close(found, wanted, **SAME)


def test_colours_cannot_become_grey():
    teacher = teacher_with(dict(in_channels=1), mean=[33.0], std=[78.0])
    convert = TeacherInput(teacher, ClsDataPreprocessor(**IMAGENET))
    with pytest.raises(ValueError, match=r'images of 3 channels.*wants 1'):
        convert(torch.zeros(2, 3, 16, 16))


def test_constants_of_another_number_of_channels():
    student = ClsDataPreprocessor(mean=[1.0] * 4, std=[2.0] * 4)
    teacher = teacher_with(dict(in_channels=4), **HALF)
    with pytest.raises(ValueError, match=r'4 channels.*\[1.0, .*\[127.5, '):
        TeacherInput(teacher, student)(torch.zeros(2, 4, 16, 16))


def test_padding_cannot_be_converted():
    student = ClsDataPreprocessor(**IMAGENET, pad_size_divisor=32)
    with pytest.raises(ValueError, match=r'123.675.*127.5.*pad in the pipel'):
        TeacherInput(teacher_with(**HALF), student)
    TeacherInput(teacher_with(**IMAGENET, pad_size_divisor=32), student)


def test_an_unknown_preprocessor_is_named():
    class Mine(BaseDataPreprocessor):
        pass

    teacher = teacher_with(**HALF)
    with pytest.raises(ValueError, match='how Mine normalises'):
        TeacherInput(teacher, Mine())
    teacher.data_preprocessor = Mine()
    with pytest.raises(ValueError, match='how Mine normalises'):
        TeacherInput(teacher, ClsDataPreprocessor())
