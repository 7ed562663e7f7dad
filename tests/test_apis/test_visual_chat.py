# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Questions to a TransLlava, by mmpretrain's inferencer and in a chat."""

import copy
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT, run_tool_here, tiny_student
from mmengine.config import Config
from mmpretrain import VisualQuestionAnsweringInferencer
from mmpretrain.structures import DataSample
from PIL import Image
from vqa_cases import TINY, read_tiny

from transmamba_mm.apis import VisualChatInferencer
from transmamba_mm.checkpoints import CheckpointError
from transmamba_mm.models.multimodal import ByteTokenizer
from transmamba_mm.registry import MODELS, TOKENIZER

TOKENS = 9


@TOKENIZER.register_module()
class LegibleTokenizer(ByteTokenizer):
    """A letter for each byte, so that all answers can be told apart."""

    def decode(self, ids):
        return ''.join(chr(0x4E00 + i) for i in ids)


def make(data='gqa', **model):
    """With no two parameters alike: answers depend on all that is asked."""
    cfg = Config(
        dict(
            model=dict(
                TINY,
                tokenizer=dict(type='transmamba.LegibleTokenizer'),
                generation_cfg=dict(max_new_tokens=TOKENS),
                **model,
            ),
            test_dataloader=dict(dataset=dataset(data)),
        )
    )
    torch.manual_seed(0)
    built = MODELS.build(copy.deepcopy(cfg.model))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    built._config = cfg
    return built.eval()


def dataset(data):
    cfg = read_tiny(data, ROOT)
    return (cfg.get('test_dataloader') or cfg.train_dataloader).dataset


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    paths = []
    for i, size in enumerate(((12, 20, 3), (30, 10, 3))):
        pixels = np.random.RandomState(i).randint(0, 256, size, np.uint8)
        paths.append(str(folder / f'{i}.png'))
        Image.fromarray(pixels).save(paths[-1])
    return paths


ANSWERED = [('What?', 'A fox.'), ('And?', None)]


def test_answers_are_the_models(pictures):
    chat = VisualChatInferencer(make())
    asked = [
        (pictures[:1], 'What?'),
        (pictures[1:], 'What?'),
        (pictures, 'Is <image> like <image>?'),
        ([], 'What?'),
        (pictures[:1], ANSWERED),
    ]
    found = chat(asked)
    assert len(set(found)) == 5
    assert chat(asked, batch_size=3) == found
    images = [chat.pipeline(dict(img=read(path)))['img'] for path in pictures]
    images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    samples = [
        DataSample(question='Is <image> like <image>?'),
        DataSample(turns=ANSWERED),
    ]
    batch = dict(inputs=[images, images[:1]], data_samples=samples)
    wanted = [x.pred_answer for x in chat.llava.test_step(batch)]
    assert wanted == [found[2], found[4]]
    assert chat(asked[:1], max_new_tokens=2)[0] == found[0][:2].strip()


def read(path):
    return np.asarray(Image.open(path))[..., ::-1]


def test_a_picture_may_be_a_path_a_picture_or_an_array(pictures):
    chat = VisualChatInferencer(make())
    path = pictures[0]
    found = chat(
        [([x], 'What?') for x in (path, Image.open(path), read(path))]
    )
    assert len(set(found)) == 1
    with pytest.raises(ValueError, match=r"_chat\.py' cannot be read"):
        chat([([__file__], 'What?')])


def test_it_asks_without_the_prompt_of_the_test_set(pictures):
    asked = [(pictures[:1], 'What?')]
    found = {
        name: VisualChatInferencer(make(name))(asked)
        for name in ('gqa', 'vizwiz', 'llava_instruct')
    }
    assert found['gqa'] == found['vizwiz'] == found['llava_instruct']
    theirs = VisualQuestionAnsweringInferencer(make('gqa'))
    (told,) = theirs(pictures[0], 'What?')
    assert told['question'].startswith('What?\nAnswer the question using')
    assert [told['pred_answer']] != found['gqa']


@pytest.mark.parametrize('images', [0, 1, 2])
def test_a_stream_grows_into_the_answer(images, pictures):
    chat = VisualChatInferencer(make())
    found = list(chat.stream(pictures[:images], 'What?'))
    (whole,) = chat([(pictures[:images], 'What?')])
    assert found[-1] == whole and 1 < len(found) <= TOKENS
    for shorter, longer in zip(found, found[1:]):
        assert longer.startswith(shorter)
    drawn = [
        list(chat.stream([], 'What?', do_sample=True, temperature=5.0))[-1]
        for _ in range(3)
    ]
    assert len({whole, *drawn}) > 1


def test_what_cannot_stream_comes_at_once(pictures):
    chat = VisualChatInferencer(make())
    found = list(chat.stream(pictures[:1], 'What?', num_beams=2))
    assert found == chat([(pictures[:1], 'What?')], num_beams=2)


def test_a_language_model_of_transformers(pictures):
    pytest.importorskip('transformers')
    config = dict(
        model_type='llama',
        vocab_size=258,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    llama = dict(
        type='transmamba.TransformersCausalLM',
        name_or_path=config,
        load_pretrained=False,
    )
    chat = VisualChatInferencer(make(lang_encoder=llama))
    found = list(chat.stream(pictures[:1], 'What?'))
    assert found == chat([(pictures[:1], 'What?')])


def test_other_models_are_refused():
    model = MODELS.build(tiny_student())
    model._config = make()._config
    with pytest.raises(TypeError, match='ImageClassifier is no TransLlava'):
        VisualChatInferencer(model)


def test_mmpretrains_inferencer(pictures):
    model = make()
    ask = VisualQuestionAnsweringInferencer(model)
    questions = ['What?', 'Why?']
    together = ask(pictures, questions, batch_size=2)
    apart = [ask(x, y)[0] for x, y in zip(pictures, questions)]
    assert together == apart
    assert together[0]['pred_answer'] != together[1]['pred_answer']
    brief = 'What?\nAnswer the question using a single word or phrase.'
    chat = VisualChatInferencer(model)
    assert chat([(pictures[:1], brief)]) == [together[0]['pred_answer']]


@pytest.fixture
def saved(tmp_path):
    model = make()
    config, checkpoint = tmp_path / 'config.py', tmp_path / 'model.pth'
    model._config.dump(str(config))
    torch.save(model.state_dict(), checkpoint)
    return model, str(config), str(checkpoint)


def test_demo(saved, pictures, monkeypatch, capsys):
    model, config, checkpoint = saved
    (wanted,) = VisualChatInferencer(model)([(pictures[:1], 'What?')])
    options = ('--config', config, '--checkpoint', checkpoint)
    args = (pictures[0], 'What?', *options)
    run_tool_here(monkeypatch, '../demo/vqa_demo', *args)
    assert capsys.readouterr().out.splitlines()[-1] == wanted.splitlines()[-1]
    drawn = ('--temperature', 2.0, '--top-p', 0.9, '--max-new-tokens', 3)
    run_tool_here(monkeypatch, '../demo/vqa_demo', *args, *drawn)
    assert capsys.readouterr().out
    with pytest.raises(SystemExit):
        args = ('gone.png', 'What?', *options)
        run_tool_here(monkeypatch, '../demo/vqa_demo', *args)
    assert "no picture 'gone.png'" in capsys.readouterr().err


def test_the_page_names_what_it_needs(saved, monkeypatch, capsys):
    _, config, checkpoint = saved
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(SystemExit):
        run_tool_here(monkeypatch, '../demo/vqa_page', config, checkpoint)
    assert 'pip install "gradio>=5"' in capsys.readouterr().err


def test_the_page_answers(saved, pictures, monkeypatch):
    gradio = pytest.importorskip('gradio')
    model, config, checkpoint = saved
    pages = []
    monkeypatch.setattr(
        gradio.Interface, 'launch', lambda self, **_: pages.append(self)
    )
    run_tool_here(monkeypatch, '../demo/vqa_page', config, checkpoint)
    (page,) = pages
    found = list(page.fn(Image.open(pictures[0]), 'What?', TOKENS))
    wanted = VisualChatInferencer(model)([(pictures[:1], 'What?')])
    assert found[-1:] == wanted and len(found) > 1
    assert list(page.fn(None, 'What?', 3))
    with pytest.raises(gradio.Error, match='ask a question'):
        list(page.fn(None, ' ', 3))


@pytest.mark.parametrize('lacks', ['lang_encoder.', 'shape'])
def test_a_checkpoint_that_does_not_fit(saved, lacks, monkeypatch, capsys):
    """It would answer with random weights."""
    model, config, checkpoint = saved
    state = model.state_dict()
    if lacks == 'shape':
        state['projector.layers.0.bias'] = torch.zeros(3)
    state = {k: v for k, v in state.items() if not k.startswith(lacks)}
    torch.save(state, checkpoint)
    with pytest.raises(CheckpointError, match='is of another model'):
        VisualChatInferencer(config, checkpoint)
    with pytest.raises(CheckpointError, match='is of another model'):
        VisualChatInferencer(model, checkpoint)
    options = ('--config', config, '--checkpoint', checkpoint)
    with pytest.raises(SystemExit):
        run_tool_here(
            monkeypatch, '../demo/vqa_demo', __file__, 'What?', *options
        )
    assert 'is of another model' in capsys.readouterr().err


def test_the_demo_names_mistakes(saved, pictures, monkeypatch, capsys):
    _, config, checkpoint = saved

    def mistake(config, checkpoint, *options):
        args = ('--config', config, '--checkpoint', checkpoint, *options)
        with pytest.raises(SystemExit) as stop:
            run_tool_here(
                monkeypatch, '../demo/vqa_demo', pictures[0], 'What?', *args
            )
        assert stop.value.code == 2
        return capsys.readouterr().err

    assert "'gone.py'" in mistake('gone.py', checkpoint)
    assert "'gone.pth'" in mistake(config, 'gone.pth')
    path = Config.fromfile(config)
    path.pop('test_dataloader')
    path.dump(config)
    assert 'the config has no test_dataloader' in mistake(config, checkpoint)


def test_images_of_a_config_that_only_trains(pictures):
    model = make('llava_instruct')
    asked = [(pictures[:1], 'What?')]
    wanted = VisualChatInferencer(model)(asked)
    model._config.train_dataloader = model._config.pop('test_dataloader')
    assert VisualChatInferencer(model)(asked) == wanted


def test_photos_are_upright(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (12, 20, 3), np.uint8)
    image, path = Image.fromarray(pixels), str(tmp_path / 'photo.png')
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(path, exif=exif)
    chat = VisualChatInferencer(make())
    data = [chat.prepare([([x], 'What?')]) for x in (path, Image.open(path))]
    assert data[0]['inputs'][0].equal(data[1]['inputs'][0])
    upright = image.rotate(-90, expand=True)
    data = chat.prepare([([upright], 'What?')])['inputs'][0]
    assert data.equal(chat.prepare([([path], 'What?')])['inputs'][0])


def test_what_makes_no_question():
    chat = VisualChatInferencer(make())
    with pytest.raises(ValueError, match='needs a question'):
        chat([([], [])])
    with pytest.raises(ValueError, match=r'\(H, W, 3\), got \(4, 5\)'):
        chat([([np.zeros((4, 5), np.uint8)], 'What?')])
    assert list(chat.stream([], 'What?', length_penalty=2.0))
