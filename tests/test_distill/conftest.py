# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Fixtures of the tests of distillation."""

import sys
from pathlib import Path

import pytest
import torch
from helpers import save_teacher, tiny_distiller, tiny_student, tiny_teacher

from transmamba_mm.distill import TransMambaDistill

# For `teacher_cases`.
sys.path.append(str(Path(__file__).resolve().parents[1] / 'test_contract'))


@pytest.fixture(scope='module')
def teacher_ckpt(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp('teacher') / 'teacher.pth')


@pytest.fixture
def make(teacher_ckpt):
    """Builds and initialises a distillation model."""

    def build(**kwargs):
        torch.manual_seed(0)
        settings = dict(
            architecture=tiny_student(),
            teacher=tiny_teacher(),
            distiller=tiny_distiller(),
            teacher_ckpt=teacher_ckpt,
        )
        settings.update(kwargs)
        model = TransMambaDistill(**settings)
        model.init_weights()
        return model.train()

    return build
