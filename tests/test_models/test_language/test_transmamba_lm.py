# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The language model: sizes, causality, padding, decoding."""

import pytest
import torch
import torch.nn.functional as F
from lm_cases import VOCAB, close, ids, tiny_lm
from mmpretrain.registry import MODELS
from torch import nn

from transmamba_mm.models import TransMambaLM

MODELS_TO_TEST = {
    'plain': {},
    'untied, normed': dict(
        arch=dict(tie_embeddings=False, expand=2),
        mixer_cfg=dict(norm_bc_dt=1e-6),
    ),
    'LayerNorm, biases, no FFN': dict(
        arch=dict(ffn_dims=0),
        norm_cfg=dict(type='LN'),
        mixer_cfg=dict(bias=True, d_conv=3),
    ),
}


@pytest.fixture(params=list(MODELS_TO_TEST))
def model(request):
    return tiny_lm(**MODELS_TO_TEST[request.param])


@pytest.mark.parametrize(
    ('arch', 'total', 'outside_embedding'),
    [
        ('600m', 600_082_432, 337_414_144),
        ('600m-no-ffn', 685_737_984, 423_069_696),
        ('600m-narrow', 640_680_960, 509_346_816),
    ],
)
def test_presets_have_their_sizes(arch, total, outside_embedding):
    with torch.device('meta'):
        model = TransMambaLM(arch)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert sum(sizes.values()) == total
    assert total - sizes['embed_tokens.weight'] == outside_embedding


def test_it_is_made_from_a_config_and_refuses_others():
    arch = dict(embed_dims=16, num_layers=1, vocab_size=5)
    model = MODELS.build(dict(type='transmamba.TransMambaLM', arch=arch))
    assert model(torch.tensor([[1, 2]])).shape == (1, 2, 5)
    for wrong, message in (
        ('2b', 'choose from 600m'),
        (dict(arch, depth=2), 'may have'),
        (dict(arch, num_layers=0), 'num_layers must be at least 1'),
    ):
        with pytest.raises(ValueError, match=message):
            TransMambaLM(wrong)
    with pytest.raises(ValueError, match=r'cross_layers must be .* 0\.\.0'):
        TransMambaLM(arch, cross_layers=(1,))


def test_it_is_the_formula_of_mamba(model):
    """An independent, sequential computation of the first block."""
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    block = model.layers[0]
    mixer = block.mixer
    N, R = mixer.d_state, mixer.dt_rank
    u, z = mixer.in_proj(block.norm(x)).chunk(2, dim=-1)
    u = F.silu(mixer.conv1d(u.mT)[..., :6].mT)
    dt, B, C = mixer.x_proj(u).split([R, N, N], dim=-1)
    if mixer.norm_bc_dt:
        dt, B, C = (
            t / (t.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            for t in (dt, B, C)
        )
    dt = F.softplus(mixer.dt_proj(dt))
    h, ys = 0, []
    for t in range(6):
        decay = (dt[:, t, :, None] * -mixer.A_log.exp()).exp()
        h = decay * h + (dt * u)[:, t, :, None] * B[:, t, None]
        ys.append((h * C[:, t, None]).sum(-1) + mixer.D * u[:, t])
    want = x + mixer.out_proj(torch.stack(ys, 1) * F.silu(z))
    if block.ffn is not None:
        normed = block.norm2(want)
        gated = F.silu(block.ffn.gate(normed)) * block.ffn.up(normed)
        want = want + block.ffn.down(gated)
    close(block(x, (6,)), want)


def test_no_token_sees_a_later_one(model):
    tokens = ids(2, 9)
    other = tokens.clone()
    other[:, 5:] = (other[:, 5:] + 1) % VOCAB
    a, b = model(tokens), model(other)
    close(a[:, :5], b[:, :5])
    assert (a[:, 5:] - b[:, 5:]).abs().max() > 1e-3


def test_padding_changes_nothing(model):
    tokens = ids(2, 5)
    alone = model(tokens)
    mask = torch.ones(2, 5)
    for left, right in ((3, 0), (0, 4), (2, 2)):
        padded = F.pad(tokens, (left, right), value=7)
        padded_mask = F.pad(mask, (left, right))
        out = model(padded, attention_mask=padded_mask)
        close(out[:, left : left + 5], alone)
    # Of several lengths in one batch.
    mixed = F.pad(tokens, (3, 0), value=7)
    mixed[1] = ids(1, 8, seed=2)
    mask = torch.ones(2, 8)
    mask[0, :3] = 0
    close(model(mixed, attention_mask=mask)[0, 3:], alone[0])


def test_padding_has_no_gradient(model):
    x = torch.randn(1, 6, 16, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[0, 0, 1, 1, 1, 0]])
    out = model(inputs_embeds=x, attention_mask=mask)
    out[:, 2:5].square().sum().backward()
    assert x.grad[0, [0, 1, 5]].abs().max() == 0
    assert (x.grad[0, 2:5].abs().sum(-1) > 0).all()


def test_embedded_tokens_may_be_given(model):
    tokens = ids(2, 4)
    embedded = model.embed_tokens(tokens)
    close(model(inputs_embeds=embedded), model(tokens))
    for given in ({}, dict(input_ids=tokens, inputs_embeds=embedded)):
        with pytest.raises(ValueError, match='exactly one'):
            model(**given)
    with pytest.raises(ValueError, match=r'attention_mask must be .* \(2, 4'):
        model(tokens, attention_mask=torch.ones(2, 5))


def test_steps_equal_the_whole(model):
    tokens = ids(2, 12)
    mask = torch.ones(2, 12)
    mask[0, :2] = 0
    whole = model(tokens, attention_mask=mask)
    for prompt in (3, 9):  # shorter and longer than the convolution
        states = model.new_states(2)
        start = model(
            tokens[:, :prompt],
            attention_mask=mask[:, :prompt],
            states=states,
            last_only=True,
        )
        close(start[:, 0], whole[:, prompt - 1])
        for t in range(prompt, 12):
            close(model.step(tokens[:, t], states), whole[:, t])


def test_the_state_does_not_grow(model):
    def size(length):
        states = model.new_states(1)
        model(ids(1, length), states=states)
        for state in states:
            assert state.conv.is_contiguous() and state.ssm.is_contiguous()
        return sum(
            state.conv.untyped_storage().nbytes()
            + state.ssm.untyped_storage().nbytes()
            for state in states
        )

    assert size(2) == size(40)


def test_recomputation_changes_no_gradient():
    grads = []
    for with_cp in (False, True):
        model = tiny_lm(with_cp=with_cp)
        mask = torch.tensor([[0, 1, 1, 1]])
        model(ids(1, 4), attention_mask=mask).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads):
        close(a, b)


def test_start_values_can_be_drawn_again():
    arch = dict(embed_dims=16, num_layers=2, vocab_size=9, ffn_dims=8)
    with torch.device('meta'):
        model = TransMambaLM(arch, mixer_cfg=dict(conv_std=1.0))
    model.to_empty(device='cpu').init_weights()
    assert model(ids(1, 4) % 9).isfinite().all()
    assert abs(model.layers[0].mixer.conv1d.weight.std() - 1) < 0.3
    assert 0.01 < model.embed_tokens.weight.std() < 0.03
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()


def test_a_linear_map_may_be_replaced_or_watched():
    model, tokens = tiny_lm(), ids(1, 6)
    want, seen = model(tokens), []
    conv = model.layers[0].mixer.conv1d
    conv.register_forward_hook(lambda *args: seen.append(None))
    close(model(tokens), want)
    states = model.new_states(1)
    model(tokens[:, :3], states=states)
    close(model.step(tokens[:, 3], states), want[:, 3])
    assert len(seen) == 3
    assert isinstance(conv, nn.Conv1d)


class Int8Linear(nn.Module):
    """A linear map whose weight is stored as quantised ones are."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.abs().max() / 127
        self.register_buffer('scale', scale)
        whole = (linear.weight / scale).round().to(torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)

    def forward(self, x):
        return x @ (self.weight * self.scale).T


def test_quantised_maps_decode_as_the_whole():
    model, tokens = tiny_lm(), ids(2, 6)
    for layer in model.layers:
        layer.mixer.in_proj = Int8Linear(layer.mixer.in_proj)
    want, states = model(tokens), model.new_states(2)
    model(tokens[:, :3], states=states)
    for i in range(3, 6):
        close(model.step(tokens[:, i], states), want[:, i])


def test_with_cp_holds_for_single_mixers():
    """A mixer that runs alone keeps its input and no more."""
    kept, grads = {}, {}
    for with_cp in (False, True):
        model = tiny_lm(with_cp=with_cp).train()
        stream = torch.ones(2, 5, model.layer_dims[0]).double()
        sizes = kept[with_cp] = []

        def keep(x, sizes=sizes):
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            mixed = model.mix(0, stream, (5,))
        mixed.square().sum().backward()
        grads[with_cp] = model.layers[0].mixer.in_proj.weight.grad
    assert sum(kept[True]) < 0.2 * sum(kept[False])
    assert grads[True].equal(grads[False])
