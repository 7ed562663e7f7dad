# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""mmpretrain's inferencers on wrapped test sets and on distillations."""

import numpy as np
import pytest
import torch
from helpers import CONFIGS
from mmengine.config import Config
from mmpretrain import (
    FeatureExtractor,
    ImageClassificationInferencer,
    get_model,
)

QUICKSTART = CONFIGS / 'quickstart'
PICTURE = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)


@pytest.mark.parametrize('wrapper', ['FractionDataset', 'RepeatDataset'])
def test_the_pipeline_inside_of_a_wrapped_test_set_is_found(wrapper):
    cfg = Config.fromfile(QUICKSTART / 'pmamba_scratch_digits.py')
    inner = cfg.test_dataloader.dataset
    assert 'pipeline' in inner
    plain = ImageClassificationInferencer(get_model(cfg))
    cfg.test_dataloader.dataset = dict(
        type='transmamba.FractionDataset',
        dataset=dict(type=wrapper, dataset=inner),
    )
    wrapped = ImageClassificationInferencer(get_model(cfg))
    wrapped.model.load_state_dict(plain.model.state_dict())
    (found,), (wanted,) = wrapped(PICTURE), plain(PICTURE)
    assert np.array_equal(found['pred_scores'], wanted['pred_scores'])


def test_features_of_a_distillation_are_its_students():
    path = QUICKSTART / 'transmamba_deit_pmamba_digits.py'
    model = get_model(str(path))
    (found,) = FeatureExtractor(model)(PICTURE, stage='pre_logits')
    model._config.model = model._config.model.architecture
    student = model.student
    student._config = model._config
    (wanted,) = FeatureExtractor(student)(PICTURE, stage='pre_logits')
    assert torch.equal(found, wanted)
