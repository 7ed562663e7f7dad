# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Models that answer questions as teacher and student."""

import pytest
import torch
import torch.nn.functional as F
from llava_cases import (
    LANGUAGE_MODELS,
    PATCHES,
    VIT,
    batch,
    build,
)
from torch import nn

from transmamba_mm.contract import Answers, Pair
from transmamba_mm.contract.sites import ANSWERS, LAYERS, LOGITS
from transmamba_mm.distill import TransMambaDistill
from transmamba_mm.distill.methods import AnswerLogitsLoss
from transmamba_mm.distill.recorders import (
    StudentSiteRecorder,
    TeacherSiteRecorder,
)
from transmamba_mm.ops.chunks import summed_in_chunks

METHODS = {
    'paper': dict(type='transmamba.AdaptiveBidirectional'),
    'hidden': dict(type='transmamba.HiddenStates'),
    'mixer': dict(type='transmamba.MixerMatching'),
    'hint': dict(type='transmamba.LastLayerHint'),
    'logits': dict(type='transmamba.LogitsKD'),
    'answer logits': dict(type='transmamba.AnswerLogitsKD', name='chunks'),
    'hard label': dict(type='transmamba.HardLabel'),
}


def distiller(*methods, teacher=None, **student):
    return TransMambaDistill(
        architecture=build('mamba', double=False, **student),
        teacher=teacher or build('llama', double=False),
        distiller=dict(type='transmamba.MethodDistiller', methods=methods),
    ).train()


# ------------------------------------------------------------------- chunks


def answers(rows, width, vocab, labels, tied):
    """Answers in float64, and the parameters that they come from."""
    head = nn.Linear(width, vocab, bias=not tied).double()
    tokens = torch.randn(rows, width).double().requires_grad_()
    used = F.embedding(labels, head.weight).sum(-1, True) if tied else 0.0
    found = Answers(tokens * (1.0 + 0.1 * used), labels, head)
    return found, [tokens, *head.parameters()]


@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('max_scores', [1, 3 * 19, 2**25])
def test_chunks_give_the_plain_loss_and_gradient(tied, max_scores):
    torch.manual_seed(0)
    labels = torch.randint(19, (11,))
    student, parameters = answers(11, 6, 19, labels, tied)
    teacher, _ = answers(11, 9, 19, labels, tied)
    teacher = Answers(teacher.tokens.detach(), labels, teacher.head)
    loss = AnswerLogitsLoss(tau=3.0, max_scores=max_scores, loss_weight=0.7)
    total = loss(student, teacher)
    plain = (
        0.7
        * 9
        * F.kl_div(
            F.log_softmax(student.logits / 3, -1),
            F.softmax(teacher.logits / 3, -1),
            reduction='batchmean',
        )
    )
    torch.testing.assert_close(total, plain, rtol=1e-9, atol=1e-9)
    grads = torch.autograd.grad(total, parameters, retain_graph=True)
    wanted = torch.autograd.grad(plain, parameters, retain_graph=True)
    for ours, theirs in zip(grads, wanted):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    # The label loss, on the same chunks.
    label = summed_in_chunks(
        lambda x, y: F.cross_entropy(student.score(x), y, reduction='sum'),
        student.tokens,
        labels,
        width=19,
        max_scores=max_scores,
    )
    whole = F.cross_entropy(student.logits, labels, reduction='sum')
    torch.testing.assert_close(label, whole, rtol=1e-9, atol=1e-9)
    grads, wanted = (
        torch.autograd.grad(x, parameters, retain_graph=True)
        for x in (label, whole)
    )
    for ours, theirs in zip(grads, wanted):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_no_more_than_a_chunk_is_scored_at_a_time():
    labels = torch.randint(19, (11,))
    student, _ = answers(11, 6, 19, labels, tied=False)
    rows = []
    student.head.register_forward_hook(
        lambda *args: rows.append(args[-1].shape[0])
    )
    loss = AnswerLogitsLoss(max_scores=4 * 19)(student, student)
    loss.backward()
    assert max(rows) == 4 and sum(rows) >= 4 * 11


def test_no_answers_and_other_answers():
    student, parameters = answers(0, 6, 19, torch.zeros(0).long(), False)
    loss = AnswerLogitsLoss()(student, student)
    loss.backward()
    assert loss == 0 and not parameters[0].grad.any()
    student, _ = answers(2, 6, 19, torch.tensor([1, 2]), False)
    others, _ = answers(2, 6, 19, torch.tensor([1, 3]), False)
    with pytest.raises(ValueError, match='same max_length'):
        AnswerLogitsLoss()(student, others)
    fewer, _ = answers(2, 6, 18, torch.tensor([1, 2]), False)
    with pytest.raises(ValueError, match='the same classes'):
        AnswerLogitsLoss()(student, fewer)


# -------------------------------------------------------------------- pairs


def test_every_method_reads_the_language_models():
    model = distiller(*METHODS.values())
    images, samples = batch(double=False)
    losses = model.loss(images, samples)
    # In chunks or not, it is the same loss.
    torch.testing.assert_close(
        losses['distill.loss_chunks'], losses['distill.loss_kl']
    )
    assert all(x > 0 for key, x in losses.items() if 'loss' in key)
    sum(x for key, x in losses.items() if 'loss' in key).backward()
    for name, parameter in model.student.named_parameters():
        learns = parameter.grad is not None and parameter.grad.any()
        assert learns != name.startswith('vision_encoder'), name
    assert all(p.grad is None for p in model.teacher.parameters())


def test_what_is_read():
    """Hidden states of all tokens but padding, logits of answers alone."""
    model = distiller(METHODS['hidden'])
    images, samples = batch(double=False)
    merged = model.student.merge(images, samples)
    valid, labels = merged.attention_mask, merged.labels
    assert merged.image_mask.sum() == 3 * PATCHES
    for kind, side in (
        (StudentSiteRecorder, 'student'),
        (TeacherSiteRecorder, 'teacher'),
    ):
        one = getattr(model, side).eval()
        inputs = one.merge(images, samples).inputs
        read = {}
        for site in (LAYERS, LOGITS, ANSWERS):
            recorder = kind(site)
            recorder.initialize(one)
            with recorder, torch.no_grad():
                one(images, samples)
            read[site] = recorder.data_buffer[-1]
        assert {x.tokens.shape for x in read[LAYERS]} == {
            (1, int(valid.sum()), 16)
        }
        with torch.no_grad():
            logits = one.lang_encoder(**inputs)
        answer = labels[:, 1:] != -100
        torch.testing.assert_close(read[LOGITS], logits[:, :-1][answer])
        torch.testing.assert_close(read[ANSWERS].labels, labels[:, 1:][answer])
        torch.testing.assert_close(read[ANSWERS].logits, read[LOGITS])


def test_a_teacher_in_half_precision_and_in_another_normalisation():
    lang = dict(LANGUAGE_MODELS['llama'], dtype='bfloat16')
    norm = dict(mean=[1.0, 2.0, 3.0], std=[2.0, 2.0, 4.0], to_rgb=True)
    teacher = build(
        'llama', double=False, lang_encoder=lang, data_preprocessor=norm
    )
    ours = dict(mean=[5.0] * 3, std=[0.5] * 3)
    model = distiller(
        METHODS['hidden'],
        METHODS['answer logits'],
        teacher=teacher,
        data_preprocessor=ours,
    )
    seen = []
    teacher.vision_encoder.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0])
    )
    images, samples = batch(double=False)
    losses = model.loss(images, samples)
    assert losses['distill.loss_chunks'].dtype == torch.float32
    pixels = torch.cat(images[:2]) * 0.5 + 5.0
    mean, std = (torch.tensor(norm[x]).view(3, 1, 1) for x in ('mean', 'std'))
    torch.testing.assert_close(seen[0], (pixels.flip(1) - mean) / std)


def test_both_must_read_the_same_tokens():
    with pytest.raises(ValueError, match='other tokens of the same convers'):
        distiller(METHODS['hidden'], prompt_tmpl='{question}? {answer}')
    model = distiller(METHODS['answer logits'])
    model.student.max_length = 20
    images, samples = batch(double=False)
    with pytest.raises(ValueError, match='give both the same max_length'):
        model.loss(images, samples)
    model = distiller(
        METHODS['hidden'], vision_encoder=dict(VIT, patch_size=4)
    )
    with pytest.raises(ValueError, match='must read the same tokens'):
        model.loss(images, samples)
    with pytest.raises(ValueError, match='has no answers'):
        Pair(
            nn.Identity(), build('llama', double=False).lang_encoder
        ).teacher().modules_of(ANSWERS)


def test_a_model_that_caps_its_logits_is_refused():
    transformers = pytest.importorskip('transformers')
    if not hasattr(transformers, 'Gemma2Config'):
        pytest.skip('no Gemma 2')
    config = dict(
        model_type='gemma2',
        vocab_size=258,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.1,
    )
    lang = dict(LANGUAGE_MODELS['llama'], name_or_path=config)
    with pytest.raises(ValueError, match='changes the logits'):
        build('llama', double=False, lang_encoder=lang)
