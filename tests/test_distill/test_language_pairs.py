# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Methods on a LLaMA and its student: sites, and padding that never counts."""

import pytest
import torch
import torch.nn.functional as F
from language_models import DIMS, VOCAB, tiny_llama, tiny_student
from mmengine.model import BaseModel
from torch import Tensor

from transmamba_mm.contract import Student, Teacher
from transmamba_mm.contract.sequences import TokenMasks
from transmamba_mm.contract.sites import (
    LAYERS,
    LOGITS,
    MIXER_INPUTS,
    MIXERS,
    QKV,
    STREAMS,
    TOKENS,
)
from transmamba_mm.distill import TransMambaDistill
from transmamba_mm.distill.losses import normalised_mse
from transmamba_mm.distill.recorders import (
    StudentSiteRecorder,
    TeacherSiteRecorder,
)

METHODS = {
    'transmamba': dict(type='transmamba.AdaptiveBidirectional'),
    'transmamba, residual': dict(
        type='transmamba.AdaptiveBidirectional', tap='residual'
    ),
    'hidden': dict(type='transmamba.HiddenStates'),
    'hidden, learned': dict(
        type='transmamba.HiddenStates', channels='learned'
    ),
    'hint': dict(type='transmamba.LastLayerHint'),
    'mixer': dict(type='transmamba.MixerMatching'),
    'own mixer': dict(type='transmamba.MixerMatching', teacher_forced=False),
    'kl': dict(type='transmamba.LogitsKD'),
    'standardised kl': dict(type='transmamba.StandardisedLogitsKD'),
    'hard label': dict(type='transmamba.HardLabel'),
}


class CausalLM(BaseModel):
    """A language model that learns the next token."""

    def __init__(self, lm: torch.nn.Module) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, inputs, data_samples=None, mode='tensor'):
        out = self.lm(**inputs)
        logits = out if isinstance(out, Tensor) else out.logits
        if mode == 'tensor':
            return logits
        mask = inputs['attention_mask'][:, 1:].bool()
        labels = inputs['input_ids'][:, 1:].masked_fill(~mask, -100)
        scores = logits[:, :-1].flatten(0, 1)
        return dict(loss=F.cross_entropy(scores, labels.flatten()))


def distiller(*methods, **settings):
    """Both in float64."""
    model = TransMambaDistill(
        architecture=CausalLM(tiny_student(**settings)),
        teacher=CausalLM(tiny_llama()),
        distiller=dict(type='transmamba.MethodDistiller', methods=methods),
    )
    return model.double().train()


def batch(side: str, filler: int = 7):
    """Sequences of 8 and of 5 tokens, padded on one side."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCAB, (2, 8), generator=generator)
    mask = torch.ones(2, 8, dtype=torch.long)
    short = tokens[1, :5]
    pads = (0, 3) if side == 'right' else (3, 0)
    tokens[1] = F.pad(short, pads, value=filler)
    mask[1] = F.pad(mask[1, :5], pads)
    return dict(input_ids=tokens, attention_mask=mask)


@pytest.mark.parametrize('name', list(METHODS))
def test_padding_never_counts(name):
    model = distiller(METHODS[name])
    found, grads = [], []
    for given in (
        batch('right'),
        batch('right', filler=3),
        batch('left'),
    ):
        model.zero_grad()
        losses = model.loss(given, [])
        (loss,) = [
            x for key, x in losses.items() if key.startswith('distill.loss')
        ]
        loss.backward()
        found.append(loss)
        grads.append(
            [p.grad for p in model.student.parameters() if p.grad is not None]
        )
    assert found[0].item() > 0 and grads[0]
    assert found[0].item() == pytest.approx(found[1].item(), abs=1e-9)
    # LLaMA's positions are in float32.
    assert found[0].item() == pytest.approx(found[2].item(), rel=1e-5)
    for a, b, c in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(a, c, rtol=1e-3, atol=1e-5)


def test_methods_together_and_a_narrower_student():
    methods = [METHODS[x] for x in ('transmamba', 'hint', 'kl')]
    model = distiller(*methods, arch=dict(embed_dims=12))
    losses = model.loss(batch('left'), [])
    assert {k for k in losses if 'loss' in k} == {
        'student.loss',
        'distill.loss_transmamba',
        'distill.loss_hint',
        'distill.loss_kl',
    }
    sum(v for k, v in losses.items() if 'loss' in k).backward()
    for name, parameter in model.student.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_what_is_compared():
    """Hidden states by hand, of the tokens that count alone."""
    model, given = distiller(METHODS['hidden']), batch('right')
    loss = model.loss(given, [])['distill.loss_hidden']
    valid = given['attention_mask'].bool()
    with torch.no_grad():
        seen = model.teacher.lm(**given, output_hidden_states=True)
    student, errors = model.student.lm, []
    x = student.embed_tokens(given['input_ids'])
    # The last of transformers' hidden states is normalised.
    layers = {0: seen.hidden_states[1]}
    for i, block in enumerate(student.layers):
        x = block(x, (8,), TokenMasks(valid))
        if i in layers:
            errors.append(normalised_mse(x[valid], layers[i][valid]))
    statistics = model.distiller.distill_losses['loss_hidden']
    recorded = statistics.layer_statistics()['errors']['all']
    torch.testing.assert_close(recorded[0], errors[0].detach())
    torch.testing.assert_close(
        loss.detach(), torch.stack(list(recorded.values())).mean()
    )


def read(side, site, model, given):
    recorder = side(site)
    recorder.initialize(model)
    with recorder, torch.no_grad():
        model(given)
    return recorder.data_buffer[-1]


def test_sites_of_the_teacher():
    model, given = CausalLM(tiny_llama()).eval(), batch('right')
    valid = given['attention_mask'].bool()
    with torch.no_grad():
        want = model.lm(**given, output_hidden_states=True)
    states = [x[valid] for x in want.hidden_states]
    for site, tensors in ((STREAMS, states[:3]), (LAYERS, states[1:3])):
        records = read(TeacherSiteRecorder, site, model, given)
        assert len(records) == 3
        for record, tensor in zip(records, tensors):
            torch.testing.assert_close(record.tokens[0], tensor)
            assert record.grid == (13,) and record.classes.shape[1] == 0
    (tokens,) = read(TeacherSiteRecorder, TOKENS, model, given)
    torch.testing.assert_close(tokens.tokens[0], states[3])
    logits = read(TeacherSiteRecorder, LOGITS, model, given)
    torch.testing.assert_close(logits, want.logits[valid])
    mixers = read(TeacherSiteRecorder, MIXERS, model, given)
    inputs = read(TeacherSiteRecorder, MIXER_INPUTS, model, given)
    layer = model.lm.model.layers[1]
    torch.testing.assert_close(
        inputs[1].tokens[0], layer.input_layernorm(states[1])
    )
    middle = states[1] + mixers[1].tokens[0]
    middle = middle + layer.mlp(layer.post_attention_layernorm(middle))
    torch.testing.assert_close(middle, states[2])
    # Without padding, sequences stay apart.
    given = {key: x[:1] for key, x in given.items()}
    records = read(TeacherSiteRecorder, LAYERS, model, given)
    assert records[0].tokens.shape == (1, 8, DIMS)
    assert records[0].grid == (8,) and records[0].valid is None


def test_sites_of_the_student():
    model = CausalLM(tiny_student(cross_layers=(1,))).eval()
    given = batch('left')
    given['image_mask'] = torch.zeros(2, 8)
    given['image_mask'][:, 4:6] = 1
    valid = given['attention_mask'].bool()
    lm = model.lm
    logits = read(StudentSiteRecorder, LOGITS, model, given)
    torch.testing.assert_close(logits, model(given)[valid])
    streams = read(StudentSiteRecorder, STREAMS, model, given)
    mixers = read(StudentSiteRecorder, MIXERS, model, given)
    layers = read(StudentSiteRecorder, LAYERS, model, given)
    for block, stream, mixed, layer in zip(lm.layers, streams, mixers, layers):
        middle = stream.tokens + mixed.tokens
        middle = middle + block.ffn(block.norm2(middle))
        torch.testing.assert_close(middle, layer.tokens)
    (tokens,) = read(StudentSiteRecorder, TOKENS, model, given)
    torch.testing.assert_close(lm.head(tokens.tokens[0]), logits)
    assert torch.equal(tokens.in_sequences()[valid], tokens.tokens[0])
    assert tokens.in_sequences()[~valid].abs().max() == 0


def test_what_does_not_fit_is_said():
    teacher = Teacher(CausalLM(tiny_llama()))
    assert teacher.layer_dims == (DIMS,) * 3
    for ask in (
        lambda: teacher.modules_of(QKV),
        lambda: teacher.num_heads,
        lambda: teacher.patch_size,
    ):
        with pytest.raises(ValueError, match='the teacher'):
            ask()
    assert Student(tiny_student()).modules_of(LOGITS).keys() == {LOGITS, '0'}
    model = distiller(dict(type='transmamba.TokenRelations', stages=1))
    model.loss({k: x[:1] for k, x in batch('right').items()}, [])
    with pytest.raises(ValueError, match='no batch of padded sequences'):
        model.loss(batch('right'), [])
    model = distiller(METHODS['mixer'], cross_layers=(1,))
    with pytest.raises(ValueError, match='layer 1 is Cross-Mamba'):
        model.loss(batch('right'), [])
    model = distiller(METHODS['hidden'])
    short = {k: x[:, :6] for k, x in batch('right').items()}
    forward = model.teacher.forward
    model.teacher.forward = lambda inputs, *args, **kw: forward(
        short, *args, **kw
    )
    with pytest.raises(ValueError, match='must read the same tokens'):
        model.loss(batch('right'), [])
