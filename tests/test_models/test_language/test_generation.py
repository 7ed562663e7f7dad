# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Greedy, sampled and beam search against slow computations of the same."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from lm_cases import VOCAB, close, ids, tiny_lm

from transmamba_mm.models.language import generate, stream


@pytest.fixture(scope='module')
def model():
    return tiny_lm()


def recomputed(model, tokens, steps):
    """Greedy tokens, each from a forward pass over all before."""
    for _ in range(steps):
        best = model(tokens)[:, -1].argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, best], dim=1)
    return tokens[:, -steps:]


def test_greedy_equals_recomputation(model):
    tokens = ids(3, 5)
    out = generate(model, input_ids=tokens, max_new_tokens=6)
    assert torch.equal(out, recomputed(model, tokens, 6))
    parts = stream(model, input_ids=tokens, max_new_tokens=6)
    assert torch.equal(torch.stack(list(parts), 1), out)


@pytest.mark.parametrize('num_beams', [1, 3])
def test_a_padded_batch_equals_its_parts(model, num_beams):
    prompts = [ids(1, length, seed=length) for length in (2, 5, 4)]
    padded = torch.cat([F.pad(p, (5 - p.shape[1], 0)) for p in prompts])
    mask = torch.cat(
        [F.pad(torch.ones_like(p), (5 - p.shape[1], 0)) for p in prompts]
    )
    options = dict(max_new_tokens=4, num_beams=num_beams)
    both = generate(model, input_ids=padded, attention_mask=mask, **options)
    for row, prompt in zip(both, prompts):
        assert torch.equal(
            row, generate(model, input_ids=prompt, **options)[0]
        )
    with pytest.raises(ValueError, match='padded on the left'):
        generate(
            model, input_ids=padded, attention_mask=mask.flip(1), **options
        )


def test_what_ends_a_sequence(model):
    tokens = ids(2, 5)
    free = generate(model, input_ids=tokens, max_new_tokens=6)
    stop = free[0, 2].item()
    out = generate(
        model,
        input_ids=tokens,
        max_new_tokens=6,
        eos_token_id=stop,
        pad_token_id=22,
    )
    for row, whole in zip(out, free):
        hits = (whole == stop).nonzero()
        end = int(hits[0]) + 1 if len(hits) else 6
        assert torch.equal(row[:end], whole[:end])
        assert (row[end:] == 22).all()
    first = free[:, 0].unique().tolist()
    alone = generate(
        model, input_ids=tokens, max_new_tokens=6, eos_token_id=first
    )
    assert alone.shape == (2, 1)  # all have ended


def test_embedded_prompts_give_the_same(model):
    tokens = ids(2, 5)
    close(
        generate(model, input_ids=tokens, max_new_tokens=3),
        generate(
            model,
            inputs_embeds=model.embed_tokens(tokens).detach(),
            max_new_tokens=3,
        ),
    )


@pytest.mark.parametrize('length_penalty', [0.0, 1.0])
def test_wide_beams_find_the_best_sequence(length_penalty):
    model = tiny_lm(seed=3, arch=dict(vocab_size=4))
    tokens, stop, steps = ids(1, 3) % 4, 2, 3

    def score(new):
        logits = model(torch.cat([tokens, torch.tensor([new])], 1))
        scores = logits.log_softmax(-1)[0, 2:-1]
        total = scores.gather(1, torch.tensor(new)[:, None]).sum()
        return (total / len(new) ** length_penalty).item()

    sequences = [
        list(new)
        for length in range(1, steps + 1)
        for new in itertools.product(range(4), repeat=length)
        if stop not in new[:-1] and (length == steps or new[-1] == stop)
    ]
    best = max(sequences, key=score)
    out = generate(
        model,
        input_ids=tokens,
        max_new_tokens=steps,
        num_beams=16,
        eos_token_id=stop,
        length_penalty=length_penalty,
    )
    assert out[0].tolist() == best


def test_draws_come_from_the_likeliest(model):
    tokens = ids(1, 5).expand(400, -1)
    generator = torch.Generator().manual_seed(0)
    options = dict(input_ids=tokens, max_new_tokens=1, do_sample=True)
    probs = model(tokens[:1])[0, -1].softmax(-1)
    ranked, order = probs.sort(descending=True)
    few = int((ranked.cumsum(0) < 0.5).sum()) + 1
    out = generate(model, **options, top_p=0.5, generator=generator)
    assert set(out.unique().tolist()) == set(order[:few].tolist())
    out = generate(model, **options, generator=generator).flatten()
    shares = torch.bincount(out, minlength=VOCAB) / 400
    assert (shares - probs).abs().max() < 0.1
    cold = generate(model, **options, temperature=1e-3)
    assert (cold == order[0]).all()


def test_wrong_options_are_refused(model):
    prompt = dict(input_ids=ids(1, 2))
    for wrong in (
        dict(max_new_tokens=0),
        dict(max_new_tokens=1, top_p=0.0),
        dict(max_new_tokens=1, top_p=1.5),
        dict(max_new_tokens=1, temperature=0),
        dict(max_new_tokens=1, num_beams=0),
        dict(max_new_tokens=1, num_beams=2, do_sample=True),
    ):
        with pytest.raises(ValueError):
            generate(model, **prompt, **wrong)
    for beams in (1, 2):
        limits = dict(max_new_tokens=1, num_beams=beams)
        with pytest.raises(ValueError, match="no option 'top_k': it knows"):
            generate(model, **prompt, **limits, top_k=3)


def test_beams_ignore_how_to_draw(model):
    options = dict(input_ids=ids(2, 4), max_new_tokens=3, num_beams=2)
    found = generate(model, **options, temperature=0.7, top_p=0.9)
    assert found.equal(generate(model, **options))
