# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Checkpoints with the same names and shapes are told apart."""

import argparse

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.runner import load_checkpoint
from official_files import (
    DIMS,
    FILES,
    SIDE,
    assert_same_logits,
    build,
    classifier,
    convert,
    lookalikes,
    official_file,
    official_names,
    positions,
)

from transmamba_mm.checkpoints import CheckpointError
from transmamba_mm.checkpoints.evidence import class_token_place
from transmamba_mm.registry import MODELS


@lookalikes
@pytest.mark.parametrize('evidence', ['file name', 'args.model', 'family'])
def test_a_lookalike_is_refused(tmp_path, family, other, evidence):
    content, kwargs, name = {}, {}, 'x.pth'
    if evidence == 'file name':
        name = FILES[other]
    elif evidence == 'args.model':
        args = argparse.Namespace(model=f'{other}_tiny_patch16')
        content = dict(args=args)
    else:
        kwargs = dict(family=other)
    model = build(classifier(other))
    path = official_file(tmp_path, other, model, name, **content)
    with pytest.raises(CheckpointError, match=other):
        convert(tmp_path, path, classifier(family), **kwargs)
    if evidence == 'args.model':  # which a name given does not overrule
        with pytest.raises(CheckpointError, match=r'args\.model'):
            convert(tmp_path, path, classifier(family), family=family)
    convert(tmp_path, path, classifier(other), **kwargs)


@lookalikes
def test_no_evidence_is_no_load(tmp_path, family, other):
    model = build(classifier(family))
    path = official_file(tmp_path, family, model, 'x.pth')
    with pytest.raises(
        CheckpointError, match=f'cannot tell {family} from {other}.*--family'
    ):
        convert(tmp_path, path, classifier(family))
    out = convert(tmp_path, path, classifier(family), family=family)
    loaded = MODELS.build(classifier(family))
    load_checkpoint(loaded, out)
    assert_same_logits(loaded, model)


@settings(max_examples=60, deadline=None, database=None)
@given(
    side=st.integers(8, 30),
    dims=st.integers(48, 200),
    place=st.sampled_from(['head', 'middle']),
    noise=st.floats(0, 0.25),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**31),
)
def test_smooth_positions_show_the_class_token(
    side, dims, place, noise, scale, seed
):
    embedding = scale * positions(side, dims, place, noise, seed)
    assert class_token_place(embedding) == place


@settings(max_examples=60, deadline=None, database=None)
@given(
    tokens=st.sampled_from([1, 2, 10, 65, 82, 197, 198, 290]),
    dims=st.integers(48, 200),
    seed=st.integers(0, 2**31),
)
def test_random_positions_show_nothing(tokens, dims, seed):
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(1, tokens, dims, generator=generator)
    assert class_token_place(embedding) is None
    assert class_token_place(torch.zeros_like(embedding)) is None


@lookalikes
def test_the_positions_are_evidence(tmp_path, family, other):
    model = build(classifier(family))
    place = dict(vim='middle', videomamba='head')[family]
    trained = positions(SIDE, DIMS, place, 0, seed=5)
    assert class_token_place(trained) == place
    model.backbone.pos_embed.data.copy_(trained)
    path = official_file(tmp_path, family, model, 'x.pth')
    convert(tmp_path, path, classifier(family))
    with pytest.raises(CheckpointError, match='position embedding'):
        convert(tmp_path, path, classifier(other))
    # They also speak against a name.
    path = official_file(tmp_path, family, model, FILES[other])
    with pytest.raises(CheckpointError, match='not surely'):
        convert(tmp_path, path, classifier(family))
    # A state dict alone, in torch.
    state = official_names(family, model)
    MODELS.build(classifier(family)).load_state_dict(state)
    with pytest.raises(CheckpointError, match='position embedding'):
        MODELS.build(classifier(other)).load_state_dict(state)


def test_settings_that_no_released_model_has_are_refused(tmp_path):
    path = official_file(tmp_path, 'vim', build(classifier('vim')))
    for wrong in (
        dict(class_token='head'),
        dict(mixer_cfg=dict(divide_out=False)),
    ):
        with pytest.raises(CheckpointError, match='another model'):
            convert(tmp_path, path, classifier('vim', **wrong))
