# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""TransLlava as a model of lmms-eval, where that is installed."""

import math
from importlib.metadata import EntryPoint

import pytest
import torch
from helpers import ROOT
from mmengine.config import Config
from PIL import Image
from vqa_cases import TINY, read_tiny

from transmamba_mm.registry import MODELS

pytest.importorskip('lmms_eval')

from lmms_eval.api.instance import Instance
from lmms_eval.models.registry_v2 import ModelRegistryV2

GREEDY = dict(max_new_tokens=4, temperature=0, do_sample=False, num_beams=1)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """Found and built as lmms-eval does."""
    root = tmp_path_factory.mktemp('model')
    torch.manual_seed(0)
    built = MODELS.build(dict(TINY))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    torch.save(built.state_dict(), root / 'model.pth')
    dataset = read_tiny('gqa', ROOT).test_dataloader.dataset
    cfg = Config(dict(model=TINY, test_dataloader=dict(dataset=dataset)))
    cfg.dump(str(root / 'config.py'))
    registry = ModelRegistryV2()
    payload = 'transmamba_mm.apis.lmms_eval:MANIFEST'
    assert f"'trans_llava = {payload}'" in (ROOT / 'setup.py').read_text()
    point = EntryPoint('trans_llava', payload, 'lmms_eval.models')
    registry._select_entry_points = lambda group: [point]
    registry.load_entrypoint_manifests()
    kind = registry.get_model_class('trans_llava')
    args = f'config={root}/config.py,checkpoint={root}/model.pth'
    model = kind.create_from_arg_string(
        args, dict(batch_size=2, max_batch_size=None, device='cpu')
    )
    pictures = [
        [Image.new('RGB', (20, 12), color)] for color in ('red', 'blue')
    ]
    shown = [*pictures, [], pictures[0] + pictures[1]]
    model.task_dict = dict(seen=dict(test=shown))
    return model


def instance(number, question='What?', options=GREEDY, kind='generate_until'):
    return Instance(
        request_type=kind,
        arguments=(question, options, list, number, 'seen', 'test'),
        idx=0,
        metadata=dict(task='seen', doc_id=number, repeats=1),
    )


def test_answers_are_the_chats(model):
    found = model.generate_until(
        [
            instance(0),
            instance(1, 'Why is that?'),
            instance(2, options=dict(GREEDY, max_new_tokens=2)),
            instance(3),
        ]
    )
    shown = model.task_dict['seen']['test']
    wanted = [
        model.chat([(shown[0], 'What?')], max_new_tokens=4),
        model.chat([(shown[1], 'Why is that?')], max_new_tokens=4),
        model.chat([(shown[2], 'What?')], max_new_tokens=2),
        model.chat([(shown[3], 'What?')], max_new_tokens=4),
    ]
    assert [[x] for x in found] == wanted
    assert len(set(found)) > 1


def test_texts_that_end_an_answer(model):
    (whole,) = model.generate_until([instance(0)])
    options = dict(GREEDY, until=['nothing', whole[1:]])
    assert model.generate_until([instance(0, options=options)]) == [whole[:1]]
    options = dict(GREEDY, until=whole)
    assert model.generate_until([instance(0, options=options)]) == ['']
    # What lmms-eval has where a task says nothing.
    options = dict(until=['\n\n'], do_sample=False)
    (found,) = model.generate_until([instance(0, options=options)])
    assert whole.startswith(found.rstrip('\ufffd'))


def test_likelihoods_are_the_models_losses(model):
    kind = 'loglikelihood'
    (one, _), (two, sure) = model.loglikelihood(
        [
            instance(0, options='yes', kind=kind),
            instance(0, options=lambda doc: 'no', kind=kind),
        ]
    )
    assert not sure and not math.isclose(one, two)
    picture = model.task_dict['seen']['test'][0]
    data = model.chat.prepare([(picture, [('What?', 'yes')])])
    loss = model.chat.llava.loss(**data)['loss']
    assert one == pytest.approx(loss.item(), rel=1e-5)


def test_what_it_cannot_do(model):
    model.task_dict['seen']['video'] = [['clip.mp4']]
    request = instance(0)
    request.arguments = (*request.arguments[:-1], 'video')
    with pytest.raises(TypeError, match='sees images, but seen shows str'):
        model.generate_until([request])
    with pytest.raises(NotImplementedError, match='one round only'):
        model.generate_until_multi_round([instance(0)])
