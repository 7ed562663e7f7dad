# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""CLIP's checkpoints, whoever wrote them, load into a retriever or fail."""

import pytest
import torch
from mmengine.runner import load_checkpoint
from retrieval_models import build_random, clip4clip_cfg, mamba_cfg, text_cfg

from transmamba_mm.checkpoints import CheckpointError
from transmamba_mm.checkpoints.clip import as_openai, is_clip
from transmamba_mm.distill import TransMambaDistill
from transmamba_mm.registry import MODELS

HEADS = ('MeanPooling', 'SequenceTransformer')
DISTILLER = dict(
    type='transmamba.MethodDistiller',
    methods=[dict(type='transmamba.LogitsKD')],
)
# What OpenAI's archives hold beside weights.
SIZES = dict(
    input_resolution=torch.tensor(16),
    context_length=torch.tensor(6),
    vocab_size=torch.tensor(20),
)


def openai(model):
    """The two towers and the scale under OpenAI's names."""
    state = {}
    for key, value in model.state_dict().items():
        key = key.replace('backbone.model.', 'visual.')
        key = key.replace('text_encoder.', '')
        if not key.startswith('head.') or key == 'head.logit_scale':
            state[key.removeprefix('head.')] = value
    return state


def head_of(model, positions, layers):
    """A SequenceTransformer's tensors under others' names."""
    found = {}
    for key, value in model.head.state_dict().items():
        if key.startswith('transformer.'):
            found[layers + key.removeprefix('transformer.')] = value
        elif key.startswith('frame_position'):
            found[positions] = value
    return found


def written(style, model):
    """The content of a file in somebody's style."""
    state = openai(model)
    if style == 'OpenAI':
        return {**state, **SIZES}
    if style == 'open_clip':
        mask = torch.zeros(6, 6)
        return dict(state_dict={f'module.{k}': v for k, v in state.items()},
                    attn_mask=mask)  # fmt: skip
    if style == 'open_clip, text apart':
        return {
            key if key.startswith(('visual.', 'logit')) else f'text.{key}': x
            for key, x in state.items()
        }
    if style == 'CLIP4Clip':
        head = head_of(
            model, 'frame_position_embeddings.weight', 'transformerClip.'
        )
        return {**{f'clip.{k}': v for k, v in state.items()}, **head}
    head = head_of(
        model, 'adapter.positional_embedding', 'adapter.transformer.'
    )
    state = {**{f'clip.{k}': v for k, v in state.items()}, **head}
    return dict(meta={}, state_dict=state)


STYLES = (
    *('OpenAI', 'open_clip', 'open_clip, text apart'),
    *('CLIP4Clip', 'mmaction2'),
)


def pretrained(path, config, **init):
    config['init_cfg'] = dict(type='Pretrained', checkpoint=path, **init)
    model = MODELS.build(config)
    model.init_weights()
    return model


def assert_same(model, expected, without=()):
    theirs = expected.state_dict()
    for key, value in model.state_dict().items():
        if not key.startswith(tuple(without)):
            assert value.equal(theirs[key]), key


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('style', STYLES)
def test_styles(style, head, tmp_path):
    source = build_random(clip4clip_cfg(head), seed=1)
    torch.save(written(style, source), path := str(tmp_path / 'file.pt'))
    trained = style in ('CLIP4Clip', 'mmaction2')
    heads = () if trained else ('head.frame', 'head.transformer')
    model = pretrained(path, clip4clip_cfg(head))
    assert_same(model, source, heads)
    if not trained and head == 'SequenceTransformer':
        # As CLIP4Clip starts it.
        text = source.text_encoder
        ours = model.head.frame_position_embeddings.weight
        assert ours.equal(text.positional_embedding)
        for mine, theirs in zip(
            model.head.transformer.resblocks, text.transformer.resblocks
        ):
            assert_same(mine, theirs)
    if trained or head == 'MeanPooling':
        # As load_from, testing and teacher_ckpt do.
        other = MODELS.build(clip4clip_cfg(head))
        load_checkpoint(other, path)
        assert_same(other, source)
        distilled = TransMambaDistill(
            build_random(mamba_cfg()),
            clip4clip_cfg(head),
            DISTILLER,
            teacher_ckpt=path,
        )
        distilled.load_teacher()
        assert_same(distilled.teacher, source)
    tower = MODELS.build(
        text_cfg(init_cfg=dict(type='Pretrained', checkpoint=path))
    )
    tower.init_weights()
    assert_same(tower, source.text_encoder)


def test_half_precision_is_widened(tmp_path):
    source = build_random(clip4clip_cfg(), seed=1)
    state = {k: v.half() for k, v in openai(source).items()}
    torch.save(state, path := str(tmp_path / 'file.pt'))
    model = pretrained(path, clip4clip_cfg())
    assert model.text_encoder.text_projection.dtype == torch.float32
    expected = source.text_encoder.text_projection.half().float()
    assert model.text_encoder.text_projection.equal(expected)


@pytest.mark.filterwarnings('ignore')
def test_archives_load_as_they_are(tmp_path):
    """OpenAI's are of traced towers, whose attributes are nested objects."""

    class Whole(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.visual = model.backbone.model
            for key, value in model.text_encoder.named_children():
                self.add_module(key, value)
            for key in ('positional_embedding', 'text_projection'):
                setattr(self, key, getattr(model.text_encoder, key))
            self.logit_scale = model.head.logit_scale
            self.register_buffer('context_length', torch.tensor(6))

        def forward(self, images):
            return self.visual(images)

    source = build_random(clip4clip_cfg(), seed=1).eval()
    images, path = torch.randn(1, 3, 16, 16), str(tmp_path / 'file.pt')
    traced = torch.jit.trace(Whole(source), images, check_trace=False)
    torch.jit.save(traced, path)
    assert_same(pretrained(path, clip4clip_cfg()), source)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda x: x.pop('visual.proj'), 'missing: backbone.model.proj'),
        (lambda x: x.pop('text_projection'), 'missing: text_encoder.text_p'),
        (
            lambda x: x.update({'cross.pooler': torch.ones(1)}),
            'unexpected: cross.pooler',
        ),
        (
            lambda x: x.update({'visual.conv2.weight': torch.ones(1)}),
            'unexpected: backbone.model.conv2.weight',
        ),
        (
            lambda x: x.update({'ln_final.bias': torch.ones(3)}),
            r'of another shape: text_encoder.ln_final.bias \(\[3\], not',
        ),
    ],
)
def test_what_does_not_fit_is_named(change, message, tmp_path):
    state = openai(build_random(clip4clip_cfg()))
    change(state)
    torch.save(state, path := str(tmp_path / 'file.pt'))
    with pytest.raises(CheckpointError, match=message):
        pretrained(path, clip4clip_cfg())
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(MODELS.build(clip4clip_cfg()), path)


def test_a_tower_refuses_what_is_no_clip(tmp_path):
    state = openai(build_random(clip4clip_cfg()))
    state['visual_adapter.weight'] = torch.ones(1)
    torch.save(state, path := str(tmp_path / 'file.pt'))
    with pytest.raises(CheckpointError, match='visual_adapter'):
        pretrained(path, text_cfg())


def test_other_state_dicts_are_left_alone():
    student = build_random(mamba_cfg(), seed=1)
    assert not is_clip(student.state_dict())
    model = build_random(mamba_cfg())
    model.load_state_dict(student.state_dict())
    assert_same(model, student)
    clip = openai(build_random(clip4clip_cfg()))
    assert is_clip(clip) and as_openai(clip).keys() == clip.keys()
    # Into a student only the text tower could go; it takes it by itself.
    with pytest.raises(CheckpointError, match='missing: backbone'):
        model.load_state_dict(clip)
