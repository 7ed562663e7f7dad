# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""TransLlava: what it reads, learns from and answers."""

import json

import numpy as np
import pytest
import torch
from llava_cases import (
    LANGUAGE_MODELS,
    PATCHES,
    VIT,
    batch,
    build,
    close,
    config,
    pictures,
)
from mmengine.config import Config
from mmpretrain.apis import VisualQuestionAnsweringInferencer
from mmpretrain.structures import DataSample

from transmamba_mm.checkpoints import CheckpointError
from transmamba_mm.datasets.transforms import PadToSquare
from transmamba_mm.models.multimodal.merging import merge
from transmamba_mm.models.multimodal.prompts import IMAGE_ID, PromptTemplate
from transmamba_mm.registry import MODELS, TOKENIZER

LANGUAGES = list(LANGUAGE_MODELS)


def logits_of(model, images, samples):
    """Of the whole conversations, padded on the right."""
    return model.lang_encoder(**model.merge(images, samples).inputs)


def is_double(language):
    """transformers computes rotary positions in float32."""
    return language != 'llama'


def test_a_prompt_by_hand():
    tokenizer = TOKENIZER.build(dict(type='transmamba.ByteTokenizer'))
    template = PromptTemplate(tokenizer, 'Q:{question} A: {answer}', 'S.')
    prompt = template([('<image>x', 'no'), ('y{}', 'é')])
    wanted = (
        [(256, 0, 0)]
        + [(byte, 0, 1) for byte in b'S.Q:']
        + [(IMAGE_ID, 0, 0)]
        + [(byte, 0, 1) for byte in b'x A:']
        + [(byte, 1, 0) for byte in b' no']
        + [(257, 1, 0)]
        + [(byte, 0, 0) for byte in b'Q:y{} A:']
        + [(byte, 1, 0) for byte in b' \xc3\xa9']
        + [(257, 1, 0)]
    )
    assert prompt.ids.tolist() == [x for x, _, _ in wanted]
    assert prompt.labels.tolist() == [x if a else -100 for x, a, _ in wanted]
    assert prompt.question.tolist() == [bool(q) for _, _, q in wanted]
    asked = template([('<image>x', 'no'), ('y{}', None)])
    assert asked.ids.tolist() == prompt.ids.tolist()[: len(asked.ids)]
    assert len(prompt.ids) - len(asked.ids) == 4


@pytest.mark.parametrize('side', ['left', 'right'])
def test_merged_by_hand(side):
    model = build()
    images, samples = batch()
    merged = model.merge(images, samples, to_answer=side == 'left')
    turns = [list(sample.turns) for sample in samples]
    if side == 'left':
        turns = [[*each[:-1], (each[-1][0], None)] for each in turns]
    width = merged.labels.shape[1]
    for i, (shown, each) in enumerate(zip(images, turns)):
        prompt = model.template(each)
        if i == 2:
            assert IMAGE_ID not in prompt.ids
        tokens = iter(model.encode_images(shown) if len(shown) else ())
        rows, labels, image = [], [], []
        for token, label in zip(prompt.ids, prompt.labels):
            if token == IMAGE_ID:
                rows.append(next(tokens))
                labels += [-100] * PATCHES
                image += [True] * PATCHES
            else:
                rows.append(model.lang_encoder.embed_tokens(token[None]))
                labels.append(int(label))
                image.append(False)
        length = len(labels)
        place = slice(width - length, width)
        if side == 'right':
            place = slice(0, length)
        close(merged.inputs_embeds[i, place], torch.cat(rows))
        assert merged.labels[i, place].tolist() == labels
        assert merged.image_mask[i, place].tolist() == image
        assert merged.attention_mask[i, place].all()
        assert merged.attention_mask[i].sum() == length
        assert (merged.labels[i] != -100).sum() == sum(
            x != -100 for x in labels
        )
        assert merged.image_mask[i].sum() == sum(image)


@pytest.mark.parametrize('language', LANGUAGES)
def test_loss_and_logits_are_those_of_singles(language):
    """One sequence, no padding, a loss written out, for each sample."""
    double = is_double(language)
    model = build(language, double)
    images, samples = batch(double)
    logits = logits_of(model, images, samples)
    total, count = 0, 0
    for i, (shown, sample) in enumerate(zip(images, samples)):
        merged = model.merge([shown], [sample])
        inputs = dict(merged.inputs, attention_mask=None)
        single = model.lang_encoder(**inputs)[0]
        close(logits[i, : len(single)], single, double)
        for place, label in enumerate(merged.labels[0].tolist()):
            if label != -100:
                total = total - single[place - 1].log_softmax(-1)[label]
                count += 1
    # Bytes of the answers, of the spaces before, and of what ends them.
    assert count == sum(
        len(answer) + 2 for sample in samples for _, answer in sample.turns
    )
    close(model.loss(images, samples)['loss'], total / count, double)


@pytest.mark.parametrize('language', LANGUAGES)
def test_padding_on_either_side(language):
    double = is_double(language)
    model = build(language, double)
    images, samples = batch(double)
    prompts = [model.template(sample.turns) for sample in samples]
    tokens = [
        model.encode_images(x) if len(x) else x.new_zeros(0, PATCHES, 16)
        for x in images
    ]
    embed = model.lang_encoder.embed_tokens
    found = []
    for pad_left in (False, True):
        merged = merge(prompts, tokens, embed, pad_left=pad_left)
        logits = model.lang_encoder(**merged.inputs)
        found.append(logits[merged.attention_mask])
    close(*found, double)


@pytest.mark.parametrize('language', LANGUAGES)
def test_answers_of_a_batch_are_those_of_singles(language):
    double = is_double(language)
    model = build(language, double)
    images, samples = batch(double)
    merged = model.merge(images, samples, to_answer=True)
    assert not merged.attention_mask[:, 0].all()
    options = dict(max_new_tokens=6, do_sample=False)
    options.update(eos_token_id=257, pad_token_id=257)
    tokens = model.lang_encoder.generate(**merged.inputs, **options)
    model.forward(images, samples, mode='predict')
    answers = [sample.pred_answer for sample in samples]
    for i in range(3):
        single = model.merge(images[i : i + 1], samples[i : i + 1], True)
        alone = model.lang_encoder.generate(**single.inputs, **options)[0]
        assert tokens[i, : len(alone)].tolist() == alone.tolist()
        model.predict(images[i : i + 1], samples[i : i + 1])
        assert samples[i].pred_answer == answers[i]
    # The first token is the likeliest of the whole forward pass.
    logits = model.lang_encoder(**merged.inputs)[:, -1]
    assert tokens[:, 0].tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize('language', LANGUAGES)
def test_an_answer_does_not_leak(language):
    double = is_double(language)
    model = build(language, double)
    images, _ = batch(double)
    found = []
    for answer in ('no', 'up'):
        sample = DataSample(turns=[('a<image>b<image>', answer)])
        merged = model.merge(images[1:2], [sample])
        found.append(logits_of(model, images[1:2], [sample])[0])
    first = int((merged.labels[0] != -100).nonzero()[0]) + 1
    close(found[0][:first], found[1][:first], double)
    assert (found[0][first:] - found[1][first:]).abs().amax(-1).min() > 1e-4


def test_the_last_answer_is_not_shown_to_predict():
    model = build()
    images, samples = batch()
    model.predict(images, samples)
    blind = [
        DataSample(turns=[*each.turns[:-1], (each.turns[-1][0], None)])
        for each in samples
    ]
    model.predict(images, blind)
    assert [x.pred_answer for x in blind] == [x.pred_answer for x in samples]


def test_images_stand_first_where_no_place_is_named():
    model = build()
    images, _ = batch()
    placed = DataSample(turns=[('<image>\n<image>\nwhy?', 'so')])
    plain = DataSample(question='why?', gt_answer=['so'])
    args = [[images[1]], [placed]], [[images[1]], [plain]]
    close(*(model.loss(*each)['loss'] for each in args))


@pytest.mark.parametrize('language', LANGUAGES)
def test_it_learns_two_pairs(language):
    model = build(language, double=False)
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    images = list(pictures(2, 3).split(1))
    samples = [
        DataSample(question='what?', gt_answer=answer)
        for answer in ('fox', 'yes')
    ]
    model.train()
    assert not model.vision_encoder.training and model.projector.training
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.loss(images, samples)['loss']
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    model.eval().predict(images, samples)
    assert [sample.pred_answer for sample in samples] == ['fox', 'yes']


def test_frozen_parts_and_gradients():
    model = build(frozen=('vision_encoder', 'lang_encoder')).train()
    images, samples = batch()
    model.loss(images, samples)['loss'].backward()
    having = {
        name.split('.')[0]
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().max() > 0
    }
    assert having == {'projector'}
    assert not model.lang_encoder.training
    # Text alone: as DistributedDataParallel wants, none is left out.
    model.zero_grad()
    loss = model.loss(images[2:], samples[2:])['loss']
    loss.backward()
    assert loss > 0
    assert all(
        parameter.grad is not None and not parameter.grad.any()
        for parameter in model.projector.parameters()
    )


def test_long_conversations_are_cut():
    model = build()
    images, samples = batch()
    whole = logits_of(model, images, samples)
    for length in (8, 20):
        model.max_length = length
        close(logits_of(model, images, samples), whole[:, :length])
    model.max_length = 4
    assert model.loss(images, samples)['loss'] == 0
    # But where likelihoods are compared.
    merged = model.merge(images, samples, cut=False)
    close(model.lang_encoder(**merged.inputs), whole)


def test_vision_encoders():
    """Layer -2 without the class token: mmpretrain's, in two forms, CLIP's."""
    model = build()
    vit, images = model.vision_encoder, pictures(2).double()
    stream = []
    hook = vit.layers[1].register_forward_hook(
        lambda *args: stream.append(args[-1])
    )
    tokens = model.encode_images(images)
    hook.remove()
    close(tokens, model.projector(stream[0][:, 1:]))
    maps = build(vision_encoder=dict(VIT, out_type='featmap'))
    maps.load_state_dict(model.state_dict())
    close(maps.encode_images(images), tokens)
    tower = dict(
        type='transmamba.CLIPVisionTower',
        arch=dict(
            embed_dims=8,
            num_layers=3,
            num_heads=2,
            patch_size=8,
            out_channels=4,
        ),
        img_size=16,
    )
    clip = build(vision_encoder=dict(tower, out_layer=-2))
    found = clip.encode_images(images)
    blocks = clip.vision_encoder.transformer.resblocks
    hook = blocks[1].register_forward_hook(
        lambda *args: stream.append(args[-1])
    )
    clip.vision_encoder.out_layer = None
    assert clip.vision_encoder(images).shape == (2, 4)
    hook.remove()
    close(found, clip.projector(stream[-1][:, 1:]))
    with pytest.raises(ValueError, match='out_layer is 3'):
        MODELS.build(dict(tower, out_layer=3))


def test_preprocessed_images():
    model = build(
        data_preprocessor=dict(mean=[1, 2, 3], std=[2, 2, 4], to_rgb=True)
    )
    image = torch.arange(12, dtype=torch.uint8).view(3, 2, 2)
    sample = DataSample(question='x')
    data = dict(inputs=[image, image[None].repeat(2, 1, 1, 1)])
    data['data_samples'] = [sample, sample]
    one, two = model.data_preprocessor(data)['inputs']
    wanted = torch.stack(
        [(image[2] - 1.0) / 2, (image[1] - 2.0) / 2, (image[0] - 3.0) / 4]
    )
    close(one, wanted[None].double())
    close(two, wanted.double().expand(2, -1, -1, -1))
    none = model.data_preprocessor(dict(data_samples=[sample]))['inputs']
    assert [len(x) for x in none] == [0]


def test_weights_of_transformers(tmp_path):
    pytest.importorskip('transformers')
    model = build('llama', double=False)
    model.lang_encoder.model.save_pretrained(tmp_path)
    path = dict(type='transmamba.TransformersCausalLM')
    path['name_or_path'] = str(tmp_path)
    again = MODELS.build(config(lang_encoder=path))
    again.init_weights()
    ours, theirs = (x.lang_encoder.state_dict() for x in (model, again))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    # Greedy, whatever the folder says of generation.
    settings = tmp_path / 'generation_config.json'
    settings.write_text(json.dumps(dict(repetition_penalty=5.0)))
    prompt = dict(input_ids=torch.tensor([[3, 4]]), max_new_tokens=12)
    found = MODELS.build(path).eval().generate(**prompt, do_sample=False)
    wanted = model.lang_encoder.eval().generate(**prompt, do_sample=False)
    assert found.equal(wanted)
    drawn = MODELS.build(dict(path, load_pretrained=False, dtype='bfloat16'))
    key = 'model.model.embed_tokens.weight'
    assert drawn.state_dict()[key].dtype == torch.bfloat16
    assert not torch.equal(drawn.state_dict()[key].float(), ours[key])
    from safetensors.torch import load_file, save_file

    (file,) = tmp_path.glob('*.safetensors')
    state = load_file(file)
    state.pop('model.norm.weight')
    save_file(state, file, metadata=dict(format='pt'))
    with pytest.raises(ValueError, match=r'no weights for model\.norm'):
        MODELS.build(path)


def test_a_language_model_that_is_recomputed():
    """Its layers run twice, and the gradients are the same."""
    pytest.importorskip('transformers')
    runs, grads = [], []
    for with_cp in (False, True):
        torch.manual_seed(0)
        lang = dict(LANGUAGE_MODELS['llama'], with_cp=with_cp)
        model = build('llama', double=False, lang_encoder=lang).train()
        layer = model.lang_encoder.model.model.layers[0].mlp
        runs.append([])
        layer.register_forward_pre_hook(lambda *_: runs[-1].append(1))
        model.loss(*batch(double=False))['loss'].backward()
        grads.append(layer.down_proj.weight.grad)
    assert [len(x) for x in runs] == [1, 2]
    torch.testing.assert_close(*grads)


def test_a_language_model_in_half_precision():
    """It gets tokens of images, and gradients reach the projector."""
    pytest.importorskip('transformers')
    lang = dict(LANGUAGE_MODELS['llama'], dtype='bfloat16')
    model = build('llama', double=False, lang_encoder=lang).train()
    images, samples = batch(double=False)
    loss = model.loss(images, samples)['loss']
    loss.backward()
    assert loss.dtype == torch.float32
    assert model.projector.layers[0].weight.grad.abs().max() > 0
    for change, text in (
        (dict(dtype='half a one'), 'dtype must be'),
        (dict(load_pretrained=True), 'a config has no weights'),
    ):
        with pytest.raises(ValueError, match=text):
            MODELS.build(dict(lang, **change))


def test_a_tokenizer_of_transformers(tmp_path):
    transformers = pytest.importorskip('transformers')
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {word: i for i, word in enumerate(['<s>', '</s>', 'a', 'fox'])}
    words = Tokenizer(models.WordLevel(vocab, unk_token='<s>'))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    kind = transformers.PreTrainedTokenizerFast
    kind(
        tokenizer_object=words, bos_token='<s>', eos_token='</s>'
    ).save_pretrained(tmp_path)
    cfg = dict(type='transmamba.CausalTokenizer', path=str(tmp_path))
    tokenizer = TOKENIZER.build(cfg)
    assert len(tokenizer) == 4
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert tokenizer.encode('a fox') == [2, 3]
    assert tokenizer.decode([0, 2, 3, 1]) == 'a fox'
    assert TOKENIZER.build(dict(cfg, eos_token='fox')).eos_token_id == 3
    with pytest.raises(ValueError, match='eos_token'):
        TOKENIZER.build(dict(cfg, eos_token='bear'))


def test_checkpoints_must_fit(tmp_path):
    model = build()
    file = str(tmp_path / 'model.pth')
    torch.save(model.state_dict(), file)
    pretrained = dict(type='Pretrained', checkpoint=file)
    again = MODELS.build(config(init_cfg=pretrained))
    again.init_weights()
    ours, theirs = model.state_dict(), again.state_dict()
    assert all(torch.equal(ours[key].float(), theirs[key]) for key in ours)
    other = MODELS.build(config('cross', init_cfg=pretrained))
    with pytest.raises(ValueError, match=r'layers\.1\.mixer'):
        other.init_weights()
    with pytest.raises(CheckpointError, match='holds nothing for TransLlava'):
        model.load_state_dict(dict(weight=torch.ones(2)), strict=False)


@pytest.mark.parametrize(
    ('settings', 'text'),
    [
        (dict(prompt_tmpl='{answer} {question}'), 'prompt_tmpl must have'),
        (dict(prompt_tmpl='{question} {answer}.'), 'end with {answer}'),
        (dict(frozen=('tower',)), 'frozen must be'),
        (
            dict(
                lang_encoder=dict(
                    type='transmamba.TransMambaLM',
                    arch=dict(embed_dims=8, num_layers=1, vocab_size=100),
                )
            ),
            '258 tokens, the language model only 100',
        ),
    ],
)
def test_mistakes_of_settings(settings, text):
    with pytest.raises(ValueError, match=text):
        MODELS.build(config(**settings))


def test_mistakes_of_samples():
    model = build()
    images, samples = batch()
    with pytest.raises(ValueError, match=r'1 x <image> .* but 2 images'):
        model(images[1:2], samples[:1])
    with pytest.raises(ValueError, match="'why' needs one answer"):
        model.loss(images[2:], [DataSample(question='why')])
    several = DataSample(question='why', gt_answer=['a', 'b'])
    with pytest.raises(ValueError, match="'why' needs one answer"):
        model.loss(images[2:], [several])
    with pytest.raises(ValueError, match='needs turns, or a question'):
        model(images[2:], [DataSample()])
    with pytest.raises(ValueError, match='differ in size'):
        model([images[0], images[0][..., :8]], samples[:1] * 2)
    turns = [('a', None), ('b', 'c')]
    with pytest.raises(ValueError, match="no answer to 'a'"):
        model(images[2:], [DataSample(turns=turns)])


def test_inferencer_of_mmpretrain():
    """Images and questions give the answers of the model itself."""
    model = build(double=False)
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='transmamba.PadToSquare'),
        dict(type='Resize', scale=(16, 16)),
        dict(type='PackInputs', algorithm_keys=['question']),
    ]
    model._config = Config(
        dict(test_dataloader=dict(dataset=dict(pipeline=pipeline)))
    )
    inferencer = VisualQuestionAnsweringInferencer(model, device='cpu')
    image = np.random.RandomState(0).randint(0, 256, (16, 12, 3), np.uint8)
    questions = ['what?', 'and what?']
    found = inferencer([image, image], questions, batch_size=2)
    assert [x['question'] for x in found] == questions
    square = PadToSquare()(dict(img=image))['img']
    inputs = torch.from_numpy(square).permute(2, 0, 1)
    data = dict(inputs=[inputs], data_samples=[DataSample(question='what?')])
    (sample,) = model.test_step(data)
    assert found[0]['pred_answer'] == sample.pred_answer
