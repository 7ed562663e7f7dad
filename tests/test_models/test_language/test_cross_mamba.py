# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Cross-Mamba: who writes, who reads, and what never happens."""

import pytest
import torch
import torch.nn.functional as F
from lm_cases import VOCAB, close, ids, tiny_lm

from transmamba_mm.models.layers import CrossMamba, MambaMixer
from transmamba_mm.models.layers.cross_mamba import reversed_runs

L = 14
KINDS = {
    'image': {},
    'image, both ways': dict(bidirectional_kv=True),
    'question': dict(kv='text'),
    'normed': dict(norm_bc_dt=1e-6, expand=2),
}


@pytest.fixture(params=list(KINDS))
def model(request):
    return tiny_lm(cross_layers=(1,), cross_cfg=KINDS[request.param])


def batch(length=L, images=((3, 6), (9, 11))):
    """Two samples: one has two images, the other the first alone."""
    tokens = ids(2, length)
    writes = torch.zeros(2, length, dtype=torch.bool)
    for i, (start, end) in enumerate(images):
        writes[: 2 - i, start:end] = True
    return dict(input_ids=tokens, image_mask=writes, question_mask=writes)


def test_no_token_sees_a_later_text_token(model):
    """So an answer cannot leak into what precedes it."""
    given = batch()
    other = given['input_ids'].clone()
    other[:, 11:] = (other[:, 11:] + 1) % VOCAB
    a, b = model(**given), model(**{**given, 'input_ids': other})
    close(a[:, :11], b[:, :11])
    assert (a[:, 11:] - b[:, 11:]).abs().max() > 1e-3


def test_no_token_sees_a_later_image(model):
    given = batch()
    other = given['input_ids'].clone()
    other[:, 9:11] = (other[:, 9:11] + 1) % VOCAB
    a, b = model(**given), model(**{**given, 'input_ids': other})
    close(a[:, :9], b[:, :9])
    assert (a[:, 11:] - b[:, 11:]).abs().max() > 1e-3


def test_padding_changes_nothing(model):
    given = batch()
    alone = model(**given)
    padded = {key: F.pad(x, (3, 2)) for key, x in given.items()}
    mask = F.pad(torch.ones(2, L), (3, 2))
    close(model(**padded, attention_mask=mask)[:, 3:-2], alone)


def test_steps_equal_the_whole_and_leave_the_memory(model):
    given = batch()
    whole = model(**given)
    for prompt in (11, 12):
        states = model.new_states(2)
        model(**{k: x[:, :prompt] for k, x in given.items()}, states=states)
        memory = states[1].ssm.clone()
        for t in range(prompt, L):
            out = model.step(given['input_ids'][:, t], states)
            close(out, whole[:, t])
            assert torch.equal(states[1].ssm, memory)


def cross(seed=0, **settings):
    torch.manual_seed(seed)
    return CrossMamba(8, d_state=4, **settings).double()


def masks(writes, valid=None):
    from transmamba_mm.contract.sequences import TokenMasks

    return TokenMasks(valid, image=writes, question=writes)


def test_it_is_mamba_where_all_write():
    mixer, plain = cross(), MambaMixer(8, d_state=4).double()
    plain.load_state_dict(mixer.state_dict())  # the same parameters
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    everywhere = torch.ones(2, 7, dtype=torch.bool)
    close(mixer(x, (7,), masks(everywhere)), plain(x, (7,)))


def test_text_reads_the_image_and_not_other_text():
    mixer = cross()
    x = torch.randn(1, 16, 8, dtype=torch.float64, requires_grad=True)
    writes = torch.zeros(1, 16, dtype=torch.bool)
    writes[:, 1:4] = True
    mixer(x, (16,), masks(writes))[:, 15].sum().backward()
    reach = x.grad[0].abs().sum(-1) > 0
    # What it reads, what wrote it (convolved), and its own convolution.
    assert reach.tolist() == [True] * 4 + [False] * 8 + [True] * 4


def test_without_an_image_it_forgets_all_before_the_convolution():
    for settings in ({}, dict(bidirectional_kv=True)):
        mixer = cross(**settings)
        x = torch.randn(1, 9, 8, dtype=torch.float64, requires_grad=True)
        mixer(x, (9,))[:, 8].sum().backward()
        reach = x.grad[0].abs().sum(-1) > 0
        assert reach.tolist() == [False] * 5 + [True] * 4


def test_both_ways_is_the_mean_of_two_scans():
    mixer = cross(bidirectional_kv=True)
    x = torch.randn(1, 8, 8, dtype=torch.float64)
    writes = torch.zeros(1, 8, dtype=torch.bool)
    writes[:, 1:3] = writes[:, 4:7] = True
    u, z = mixer.in_proj(x).chunk(2, -1)
    u = F.silu(mixer.conv1d(u.mT)[..., :8].mT)
    reads = []
    for suffix, order in (('', [1, 2, 4, 5, 6]), ('_b', [2, 1, 6, 5, 4])):
        x_proj = getattr(mixer, 'x_proj' + suffix)
        dt_proj = getattr(mixer, 'dt_proj' + suffix)
        A = -(mixer.A_b_log if suffix else mixer.A_log).exp()
        dt, B, C = x_proj(u).split([mixer.dt_rank, 4, 4], -1)
        dt, h = F.softplus(dt_proj(dt)), 0
        for t in order:
            h = (dt[:, t, :, None] * A).exp() * h
            h = h + (dt * u)[:, t, :, None] * B[:, t, None]
        reads.append((h * C[:, 7, None]).sum(-1))
    y = sum(reads) / 2 + mixer.D * u[:, 7]
    want = mixer.out_proj(y * F.silu(z[:, 7]))
    close(mixer(x, (8,), masks(writes))[:, 7], want)


def test_two_sequences_of_any_length():
    mixer = cross()
    q = torch.randn(2, 3, 8, dtype=torch.float64)
    kv = torch.randn(2, 6, 8, dtype=torch.float64)
    out = mixer.read(q, kv)
    merged = torch.cat([kv, q], 1)
    writes = torch.arange(9).expand(2, -1) < 6
    close(out, mixer(merged, (9,), masks(writes))[:, 6:])
    # Padding of either changes nothing. That of the memory is on the left,
    # as the convolution runs on into the queries.
    out_padded = mixer.read(
        F.pad(q, (0, 0, 0, 2), value=3.0),
        F.pad(kv, (0, 0, 2, 0), value=3.0),
        F.pad(torch.ones(2, 3), (0, 2)),
        F.pad(torch.ones(2, 6), (2, 0)),
    )
    close(out_padded[:, :3], out)
    assert cross(kv='text').read(q, kv).shape == (2, 3, 8)


def test_runs_are_reversed_each():
    mask = torch.tensor([[0, 1, 1, 1, 0, 1, 1], [1, 0, 0, 1, 0, 1, 0]]).bool()
    want = [[0, 3, 2, 1, 4, 6, 5], [0, 1, 2, 3, 4, 5, 6]]
    assert reversed_runs(mask).tolist() == want


def test_steps_start_smaller_than_those_of_mamba():
    for mixer, low, high in (
        (cross(expand=16), 1e-4, 1e-2),
        (MambaMixer(8, expand=16), 1e-3, 1e-1),
    ):
        steps = F.softplus(mixer.dt_proj.bias)
        assert low * 0.99 < steps.min() and steps.max() < high * 1.01
        assert steps.max() / steps.min() > 10


def test_what_it_cannot_do_is_said():
    with pytest.raises(ValueError, match="'image' or 'text'"):
        cross(kv='audio')
    model = tiny_lm(cross_layers=(0,), cross_cfg=dict(kv='text'))
    with pytest.raises(ValueError, match='give question_mask'):
        model(ids(1, 3))
