# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Our configs by name, through mmpretrain's own functions."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmpretrain import get_model, inference_model, list_models
from mmpretrain.apis import ModelHub
from mmpretrain.models import ImageClassifier

from transmamba_mm.apis import model_hub
from transmamba_mm.checkpoints import CheckpointError
from transmamba_mm.distill import TransMambaDistill
from transmamba_mm.models import VideoTextRetriever

ROOT = Path(__file__).resolve().parents[2]


def test_every_name_of_the_index_is_listed_beside_mmpretrains():
    names = set()
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    for path in index['Import']:
        content = yaml.safe_load((ROOT / path).read_text())
        names |= {model['Name'] for model in content['Models']}
    listed = list_models()
    assert names <= set(listed)
    assert 'deit-tiny_4xb256_in1k' in listed
    assert 'plainmamba-l1_8xb256-300e_imagenet1k' in list_models('plainmamba')
    assert set(list_models('*pmamba*', task='Image Classification')) <= names
    videos = list_models('*toy-videos', task='Text-To-Video Retrieval')
    assert len(videos) == 4 and set(videos) <= names


def test_a_plain_student_classifies_a_picture():
    name = 'pmamba-tiny_8xb64-300e_cifar100'
    model = get_model(name)
    assert type(model) is ImageClassifier
    assert not model.training
    assert model._metainfo.weights is None
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 64)).shape == (1, 100)
    picture = np.random.randint(0, 256, (32, 32, 3), dtype=np.uint8)
    # Smaller than 224 for the test's sake.
    model._config.test_dataloader.dataset.pipeline[0].scale = (64, 64)
    result = inference_model(model, picture)
    assert len(result['pred_scores']) == 100
    assert result['pred_class'] in model._dataset_meta['classes']


def test_a_distillation_of_retrievers_gives_its_student():
    model = get_model('transmamba_clip4clip_videomamba_toy-videos')
    assert type(model) is VideoTextRetriever
    assert model.data_preprocessor.mean.unique().tolist() == [60.0]
    with torch.no_grad():
        video, frames = model(torch.rand(1, 3, 8, 32, 32))
    assert (video.shape, frames.shape) == ((1, 64), (1, 8, 64))


def test_options_and_a_checkpoint_reach_the_model(tmp_path):
    options = dict(backbone=dict(out_type='featmap'), head=None)
    source = get_model('pmamba_scratch_digits')
    torch.save(source.state_dict(), tmp_path / 'student.pth')
    model = get_model(
        'pmamba_scratch_digits', str(tmp_path / 'student.pth'), **options
    )
    (feature,) = model.extract_feat(torch.rand(1, 3, 16, 16))
    assert feature.shape == (1, 64, 4, 4)
    loaded = model.backbone.state_dict()
    for key, value in source.backbone.state_dict().items():
        assert torch.equal(loaded[key], value), key


def test_a_distillation_gives_its_student(tmp_path):
    name = 'lifted-logits-kd_deit_pmamba-narrow_digits'
    model = get_model(name, head=dict(topk=(1, 2)))
    assert type(model) is ImageClassifier
    assert model.head.topk == (1, 2)
    assert not model.training
    whole = get_model(Config.fromfile(ModelHub._models_dict[name].config))
    assert type(whole) is TransMambaDistill
    student = whole.student
    normalised = (m.data_preprocessor.mean for m in (model, student))
    assert torch.equal(*normalised)
    torch.save(student.state_dict(), tmp_path / 'student.pth')
    loaded = get_model(name, str(tmp_path / 'student.pth'))
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, student.state_dict()[key]), key
    torch.save(whole.state_dict(), tmp_path / 'epoch_1.pth')
    with pytest.raises(CheckpointError, match=r'export_student\.py'):
        get_model(name, str(tmp_path / 'epoch_1.pth'))


def test_registering_twice_changes_nothing():
    before = ModelHub._register_mmpretrain_models
    model_hub.register_models()
    assert ModelHub._register_mmpretrain_models is before


def test_a_registration_by_hand_is_respected():
    """In a process of its own, where nothing is registered yet."""
    code = (
        'import transmamba_mm.apis.model_hub as hub\n'
        'from mmpretrain.apis import ModelHub, list_models\n'
        'assert not ModelHub._models_dict, "importing must cost nothing"\n'
        'index = hub.find_model_index()\n'
        'ModelHub.register_model_index(index, config_prefix=index.parent)\n'
        "assert 'pmamba_scratch_digits' in list_models()\n"
    )
    subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], check=True, cwd=ROOT
    )


@pytest.mark.parametrize('layout', ['installed', 'repository', 'neither'])
def test_where_the_index_is_looked_for(tmp_path, monkeypatch, layout):
    package = tmp_path / 'transmamba_mm'
    folder = package / '.mim' if layout == 'installed' else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'model-index.yml').write_text('Import: []\n')
    if layout != 'neither':
        (folder / 'configs').mkdir()
    monkeypatch.setattr(model_hub, '_PACKAGE', package)
    found = model_hub.find_model_index()
    expected = None if layout == 'neither' else folder / 'model-index.yml'
    assert found == expected
