# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What other tools do with a model, on every backbone.

``torch.func``, ``torch.compile`` of any size, building on ``meta``,
quantisation, adapters and hooks.
"""

import copy

import pytest
import torch
from every_backbone_cases import CASES, build, every_backbone, inputs
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

from transmamba_mm.contract.start_values import draw_start_values
from transmamba_mm.models.necks import ClipDecoders
from transmamba_mm.registry import MODELS

one_of_each = pytest.mark.parametrize(
    ('name', 'kwargs'),
    {case.values[0]: case for case in reversed(CASES)}.values(),
)


def relative_error(got, want):
    # Of one token, no gradient reaches the decay.
    scale = want.abs().max().clamp_min(1e-6)
    return ((got - want).abs().max() / scale).item()


# ------------------------------------------------------------- torch.func


@one_of_each
def test_gradients_of_torch_func(name, kwargs):
    net, x = build(name, kwargs), inputs(kwargs)
    params = {k: p.detach() for k, p in net.named_parameters()}

    def loss(params, x):
        return functional_call(net, params, (x,))[-1].square().sum()

    def backward(x):
        net.zero_grad()
        loss(dict(net.named_parameters()), x).backward()
        return {k: p.grad.clone() for k, p in net.named_parameters()}

    whole = backward(x)
    together = grad(loss)(params, x)
    each = vmap(grad(lambda p, x: loss(p, x[None])), (None, 0))(params, x)
    alone = [backward(x[i : i + 1]) for i in range(len(x))]
    for key, want in whole.items():
        assert relative_error(together[key], want) < 1e-4, key
        loop = torch.stack([grads[key] for grads in alone])
        assert relative_error(each[key], loop) < 1e-4, key
    tangents = {k: torch.randn_like(p) for k, p in params.items()}
    _, got = jvp(lambda p: loss(p, x), (params,), (tangents,))
    want = sum((whole[k] * tangents[k]).sum() for k in whole)
    assert got.item() == pytest.approx(want.item(), rel=1e-3)
    # Nothing that only lived inside of the transforms was kept.
    assert relative_error(net(x)[-1], build(name, kwargs)(x)[-1]) < 1e-6


@pytest.mark.parametrize(
    ('name', 'arch'),
    [
        ('PlainMamba', dict(embed_dims=8, num_layers=1)),
        ('VMamba', dict(embed_dims=8, depths=(1,))),
    ],
)
@pytest.mark.filterwarnings('ignore')
def test_any_size_compiles_whole(name, arch):
    """Those whose orders depend on the size."""
    import torch._dynamo

    torch._dynamo.reset()
    net = build(name, dict(arch=arch, img_size=16, patch_size=4))
    compiled = torch.compile(
        net, backend='eager', fullgraph=True, dynamic=True
    )
    for size in ((16, 16), (32, 16)):
        x = torch.randn(2, 3, *size)
        assert relative_error(compiled(x)[-1], net(x)[-1]) < 1e-5
    torch._dynamo.reset()


# ------------------------------------------------------------ start values


def fill(module, value):
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.fill_(value)


def assert_equal_states(a, b):
    b = b.state_dict()
    for key, value in a.state_dict().items():
        assert torch.equal(value, b[key]), key


@every_backbone
def test_built_on_meta_it_starts_as_built_with_memory(name, kwargs):
    """The same random state gives the same values, of buffers as well."""
    kwargs = dict(kwargs, init_cfg=[])
    torch.manual_seed(3)
    want = MODELS.get(name)(**copy.deepcopy(kwargs))
    with torch.device('meta'):
        net = MODELS.get(name)(**copy.deepcopy(kwargs))
    net.to_empty(device='cpu')
    fill(net, 77)
    torch.manual_seed(3)
    net.init_weights()
    assert_equal_states(net, want)
    torch.manual_seed(3)
    draw_start_values(net)
    assert_equal_states(net, want)


@one_of_each
def test_init_weights_leaves_the_distribution_as_it_is(name, kwargs):
    """With ``init_cfg``, on memory full of garbage or not."""

    def moments(net):
        net.init_weights()
        return {
            k: (p.mean().item(), p.std(correction=0).item(), p.numel())
            for k, p in net.named_parameters()
        }

    torch.manual_seed(0)
    want = moments(MODELS.get(name)(**copy.deepcopy(kwargs)))
    with torch.device('meta'):
        net = MODELS.get(name)(**copy.deepcopy(kwargs))
    net.to_empty(device='cpu')
    fill(net, 77)
    for key, (mean, std, count) in moments(net).items():
        right = want[key]
        slack = 6 * right[1] / count**0.5 + 1e-7
        assert abs(mean - right[0]) <= slack, key
        assert abs(std - right[1]) <= slack, key


@one_of_each
def test_what_was_loaded_is_not_drawn_anew(name, kwargs):
    kwargs = dict(kwargs, init_cfg=[])
    loaded = build(name, kwargs, seed=1)
    net = MODELS.get(name)(**copy.deepcopy(kwargs))
    net.load_state_dict(loaded.state_dict())
    net.init_weights()
    assert_equal_states(net, loaded)


def test_decoders_start_alike_on_meta():
    torch.manual_seed(3)
    want = ClipDecoders(8, 6, num_decoders=2)
    with torch.device('meta'):
        neck = ClipDecoders(8, 6, num_decoders=2)
    neck.to_empty(device='cpu')
    fill(neck, 77)
    torch.manual_seed(3)
    neck.init_weights()
    assert_equal_states(neck, want)


# ----------------------------------------- replaced and watched submodules


def linears(net):
    return [k for k, m in net.named_modules() if type(m) is nn.Linear]


class Adapter(nn.Module):
    """What stands in the place of a Linear, and has no weight of its own."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.delta = nn.Parameter(torch.zeros_like(base.weight))

    def forward(self, x):
        return self.base(x) + nn.functional.linear(x, self.delta)


def adapted(net):
    net = copy.deepcopy(net)
    for key in linears(net):
        parent, _, child = key.rpartition('.')
        parent = net.get_submodule(parent)
        setattr(parent, child, Adapter(getattr(parent, child)))
    return net


@every_backbone
def test_adapters_take_part(name, kwargs):
    net, x = build(name, kwargs), inputs(kwargs)
    # VMamba's mixers have tensors where others have such layers.
    assert len(linears(net)) >= 2 * len(net.blocks())
    changed = adapted(net)
    out = changed(x)[-1]
    assert relative_error(out, net(x)[-1]) < 1e-5
    out.square().sum().backward()
    for key in linears(net):
        assert changed.get_submodule(key).delta.grad.any(), key
    # Direction by direction as well.
    tokens = torch.randn(2, 16, changed.layer_dims[0])
    grid = (1,) * ('num_frames' in kwargs) + (4, 4)
    parts = (
        each.mixers()[0].by_direction(tokens, grid) for each in (changed, net)
    )
    assert relative_error(*parts) < 1e-4


@one_of_each
@pytest.mark.filterwarnings('ignore')
def test_every_linear_is_quantised(name, kwargs):
    net, x = build(name, kwargs), inputs(kwargs)
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
    for key in linears(net):
        assert 'quantized' in type(quantised.get_submodule(key)).__module__
    assert relative_error(quantised(x)[-1], net(x)[-1]) < 0.2


@one_of_each
def test_modules_are_called_where_hooks_are_attached(name, kwargs):
    net, x = build(name, kwargs), inputs(kwargs)
    want, called = net(x)[-1], set()
    for key, module in net.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_hook(
                lambda *args, key=key: called.add(key)
            )
    assert relative_error(net(x)[-1], want) < 1e-5
    owners = {k.rpartition('.')[0] for k, _ in net.named_parameters()}
    assert owners - called <= {''}
