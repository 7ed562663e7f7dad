# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Which patches are masked, and that nothing else sees it.

The loss itself is tested with all others in :mod:`test_methods`.
"""

import pytest
import torch
from distill_cases import method, of_methods
from hypothesis import given
from hypothesis import strategies as st
from pair_cases import batch_of, plain_mamba, vit

from transmamba_mm.distill import TransMambaDistill
from transmamba_mm.distill.methods.masked_relation import random_mask


@given(
    batch=st.integers(1, 5),
    tokens=st.integers(2, 40),
    ratio=st.floats(0.01, 0.99),
)
def test_as_many_of_each_image_and_never_all(batch, tokens, ratio):
    mask = random_mask(torch.empty(batch, tokens, 3), ratio)
    (masked,) = set(mask.sum(1).tolist())
    assert 1 <= masked < tokens
    assert abs(masked - ratio * tokens) <= 1


def test_every_place_is_masked_as_often():
    mask = random_mask(torch.empty(4000, 8, 1), 0.75)
    share = mask.float().mean(0)
    torch.testing.assert_close(
        share, torch.full((8,), 0.75), rtol=0, atol=0.05
    )
    assert len({tuple(row.tolist()) for row in mask}) == 28  # 8 over 2


def test_one_patch_cannot_be_masked():
    with pytest.raises(ValueError, match='image of one patch'):
        random_mask(torch.empty(2, 1, 3), 0.5)


def test_masks_come_from_the_random_numbers_of_the_run():
    """So that a resumed run, whose epochs are seeded, draws the same."""
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(random_mask(torch.empty(3, 16, 1), 0.5))
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])


def test_the_pass_of_the_task_loss_is_not_masked():
    methods = method('MaskedTokenRelations'), method('HiddenStates')
    model = TransMambaDistill(plain_mamba(), vit(), of_methods(*methods))
    batch = batch_of(16)
    plain = model.student(*batch, mode='loss')
    losses = model.train()(*batch, mode='loss')
    assert losses['student.loss'].equal(plain['loss'])
    alone = TransMambaDistill(
        model.student, model.teacher, of_methods(methods[1])
    )
    wanted = alone.train()(*batch, mode='loss')['distill.loss_hidden']
    assert losses['distill.loss_hidden'].equal(wanted)
    assert not model.student.backbone.patch_embed._forward_hooks
    parts = losses['distill.relations'] + losses['distill.prediction']
    torch.testing.assert_close(losses['distill.loss_masked_relations'], parts)
