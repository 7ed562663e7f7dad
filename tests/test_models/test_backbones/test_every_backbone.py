# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What every registered backbone must do, in one sweep.

A new backbone adds its tiny configurations to ``TINY`` of
``every_backbone_cases.py``; that it does so is tested, too.
"""

import contextlib
import copy
import io
import math

import pytest
import torch
from backbone_cases import CLOSE, HALF_RELATIVE
from every_backbone_cases import TINY, build, every_backbone, inputs

from transmamba_mm.apis import get_flops
from transmamba_mm.contract.roles import split_role
from transmamba_mm.models import MambaBackbone
from transmamba_mm.ops import use_scan_backend
from transmamba_mm.registry import MODELS

# float32 in another order, over a whole model.
BACKEND_RELATIVE = 1e-5


def test_every_registered_backbone_is_here():
    registered = {
        name
        for name, cls in MODELS.module_dict.items()
        if isinstance(cls, type) and issubclass(cls, MambaBackbone)
    }
    assert registered == set(TINY)


# ---------------------------------------------------------- computation


@every_backbone
def test_odd_sizes_and_a_gradient_for_every_parameter(name, kwargs):
    net = build(name, kwargs, out_type='raw').train()
    for size in ((16, 16), (21, 35), (32, 12)):
        (out,) = net(inputs(kwargs, *size))
        assert out.isfinite().all()
        # Not the squares: a norm keeps their sum nearly constant.
        out.pow(3).sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key


@every_backbone
def test_outputs_repeat_and_do_not_mix_the_batch(name, kwargs):
    net = build(name, kwargs, out_type='raw')
    x = inputs(kwargs, 20, 28, batch=3)
    (once,), (again,) = net(x), net(x)
    assert torch.equal(once, again)
    (single,) = net(x[1:2])
    torch.testing.assert_close(single, once[1:2], **CLOSE)


@pytest.mark.parametrize('backend', ['torch', 'reference'])
@every_backbone
def test_scan_backends_agree(name, kwargs, backend):
    net = build(name, kwargs, out_type='raw').train()
    x = inputs(kwargs, 20, 28)
    results = []
    for context in (contextlib.nullcontext(), use_scan_backend(backend)):
        net.zero_grad()
        with context:
            (out,) = net(x)
            out.pow(3).mean().backward()
        grads = [p.grad.flatten() for p in net.parameters()]
        results.append((out, torch.cat(grads)))
    for got, wanted in zip(*results):
        difference = (got - wanted).norm() / wanted.norm()
        assert difference < BACKEND_RELATIVE


@every_backbone
def test_every_out_type_shows_the_same_tokens(name, kwargs):
    x = inputs(kwargs, 24, 16)
    cls = MODELS.get(name)
    shown = {}
    for out_type in cls.OUT_TYPES:
        try:
            net = build(name, kwargs, out_type=out_type)
        except ValueError as error:
            assert 'class token' in str(error)
            continue
        (shown[out_type],) = net(x)
    assert {'raw', 'featmap', 'avg_featmap'} <= set(shown)
    batch, channels, *grid = shown['featmap'].shape
    assert batch == 2
    assert channels == net.layer_dims[-1]
    slots = net.class_token_slots(*grid)
    patches = [i for i in range(shown['raw'].shape[1]) if i not in slots]
    assert len(patches) == math.prod(grid)
    flat = shown['featmap'].flatten(2)
    assert torch.equal(shown['raw'][:, patches].mT, flat)
    torch.testing.assert_close(shown['avg_featmap'], flat.mean(2), **CLOSE)


@every_backbone
def test_outputs_of_earlier_layers_are_maps(name, kwargs):
    net = build(name, kwargs, out_type='featmap', out_indices=(0, 1, 2))
    assert net.out_indices == (0, 1, 2)
    outs = net(inputs(kwargs, 16, 32))
    assert len(outs) == 3
    for out in outs:
        assert out.dim() == (5 if 'num_frames' in kwargs else 4)
        assert out.is_contiguous() or out.stride(1) == 1
    last = build(name, kwargs, out_type='featmap', out_indices=-1)
    last.load_state_dict(net.state_dict(), strict=False)
    x = inputs(kwargs)
    assert torch.equal(net(x)[-1], last(x)[0])
    with pytest.raises(ValueError, match='out_indices'):
        build(name, kwargs, out_indices=99)
    for unsorted in ((2, 0), (0, 2, -1)):
        with pytest.raises(ValueError, match='out_indices must ascend'):
            build(name, kwargs, out_indices=unsorted)
    for nothing in ((), None, 'all', (0.5,)):
        with pytest.raises(ValueError, match='out_indices must be'):
            build(name, kwargs, out_indices=nothing)
    with pytest.raises(ValueError, match='out_type'):
        build(name, kwargs, out_type='pixels')
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match='drop_path_rate'):
            build(name, kwargs, drop_path_rate=rate)
    for arch in (5, None, 'huge'):
        with pytest.raises(ValueError, match=r'unknown .* arch'):
            build(name, {**kwargs, 'arch': arch})


@every_backbone
def test_start_values_from_a_wrong_config(name, kwargs):
    with pytest.raises(TypeError, match='checkpoint'):
        build(name, kwargs, init_cfg=dict(type='Pretrained'))


@pytest.mark.parametrize(
    'wrong', [dict(d_state=0), dict(dt_rank=0), dict(dt_rank='auto')]
)
@every_backbone
def test_sizes_of_the_mixer_are_checked(name, kwargs, wrong):
    kwargs = copy.deepcopy(kwargs)
    if name == 'VMamba':
        if 'dt_rank' in wrong:
            pytest.skip('its rank follows from its width')
        kwargs['arch'].update(wrong)
    else:
        kwargs.setdefault('mixer_cfg', {}).update(wrong)
    with pytest.raises(ValueError, match=f'{next(iter(wrong))} must be'):
        build(name, kwargs)


@pytest.mark.parametrize('change', [lambda x: x[0], lambda x: x.unsqueeze(2)])
@every_backbone
def test_inputs_of_other_dimensions_are_refused(name, kwargs, change):
    x = change(inputs(kwargs))
    with pytest.raises(ValueError, match=r'\(B, C.* got'):
        build(name, kwargs)(x)
    with pytest.raises(ValueError, match=r'img_size must be \(H, W\)'):
        build(name, kwargs, img_size=(4, 16, 16))


@pytest.mark.parametrize('dtype', list(HALF_RELATIVE))
@every_backbone
def test_half_precision_under_autocast(name, kwargs, dtype):
    net = build(name, kwargs, out_type='raw').train()
    x = inputs(kwargs)
    (full,) = net(x)
    with torch.autocast('cpu', dtype):
        (half,) = net(x)
        loss = half.float().pow(3).mean()
    difference = (half.float() - full).norm() / full.norm()
    assert difference < HALF_RELATIVE[dtype]
    loss.backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad.dtype == torch.float32, key
        assert parameter.grad.isfinite().all(), key


@every_backbone
def test_compiles_without_a_graph_break(name, kwargs):
    if 'ffn_ratio' in str(kwargs) and torch.__version__ < '2.6':
        pytest.skip("PyTorch breaks the graph at mmcv's FFN")
    if 'num_layers' in kwargs['arch']:  # all kinds of layers are in two
        kwargs = dict(kwargs, arch=dict(kwargs['arch'], num_layers=2))
    net = build(name, kwargs, out_type='raw')
    # To the compiler, sizes are symbols from the second on; old ones have to
    # be told that they are not.
    compiled = torch.compile(
        net,
        backend='aot_eager',
        fullgraph=True,
        dynamic=False if torch.__version__ < '2.6' else None,
    )
    for size in ((16, 16), (20, 28)):
        x = inputs(kwargs, *size)
        grads = []
        for model in (net, compiled):
            net.zero_grad()
            out = model(x)[0]
            out.pow(3).mean().backward()
            grads.append({key: p.grad for key, p in net.named_parameters()})
        torch.testing.assert_close(out, net(x)[0], **CLOSE)
        torch.testing.assert_close(*grads, **CLOSE)
    torch._dynamo.reset()


@every_backbone
def test_compiles_with_checkpointed_blocks(name, kwargs):
    if torch.__version__ < '2.6':
        pytest.skip('PyTorch breaks the graph at a checkpoint')
    net = build(name, kwargs, out_type='raw', with_cp=True).train()
    compiled = torch.compile(net, backend='aot_eager')
    x = inputs(kwargs)
    grads = []
    for model in (net, compiled):
        net.zero_grad()
        model(x)[0].pow(3).mean().backward()
        grads.append({key: p.grad for key, p in net.named_parameters()})
    torch.testing.assert_close(*grads, **CLOSE)
    torch._dynamo.reset()


# Sizes, which are constants of a trace.
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@every_backbone
def test_traced_model_takes_other_batches(name, kwargs):
    net = build(name, kwargs, out_type='raw')
    traced = torch.jit.trace(net, inputs(kwargs), check_trace=False)
    x = inputs(kwargs, batch=5)
    torch.testing.assert_close(traced(x)[0], net(x)[0], **CLOSE)


@every_backbone
def test_exported_model_takes_other_batches(name, kwargs):
    if torch.__version__ < '2.6':
        pytest.skip('torch.export is too young')
    net = build(name, kwargs, out_type='raw')
    batch = torch.export.Dim('batch', max=4096)
    # A grid of no other test: what is computed once, is computed here.
    size = (12, 44)
    exported = torch.export.export(
        net,
        (inputs(kwargs, *size),),
        dynamic_shapes=({0: batch},),
        strict=False,
    )
    x = inputs(kwargs, *size, batch=5)
    out = net(x)[0]
    assert type(out) is torch.Tensor
    torch.testing.assert_close(exported.module()(x)[0], out, **CLOSE)


@every_backbone
def test_state_dict_round_trip(name, kwargs):
    net, other = build(name, kwargs), build(name, kwargs, seed=1)
    x = inputs(kwargs)
    assert not torch.equal(net(x)[0], other(x)[0])
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(net(x)[0], other(x)[0])


@pytest.mark.parametrize(
    ('made_for', 'loaded_for'),
    [(16, (24, 32)), (16, (8, 32)), ((8, 32), 16), ((8, 32), 24)],
)
@every_backbone
def test_other_image_size_of_a_checkpoint(name, kwargs, made_for, loaded_for):
    """What is resized when it is loaded need not be at run time."""
    net = build(name, kwargs, img_size=made_for)
    other = build(name, kwargs, seed=1, img_size=loaded_for)
    other.load_state_dict(net.state_dict())
    size = (loaded_for,) * 2 if isinstance(loaded_for, int) else loaded_for
    x = inputs(kwargs, *size)
    torch.testing.assert_close(other(x)[0], net(x)[0], **CLOSE)


# --------------------------------------------- mmpretrain's conventions


@every_backbone
def test_layer_depths_grow_with_the_layers(name, kwargs):
    net = build(name, kwargs)
    depths = {}
    for key, _ in net.named_parameters():
        depth, total = net.get_layer_depth(f'backbone.{key}', 'backbone.')
        assert 0 <= depth < total, key
        depths[key] = depth
    assert all(
        depth == 0
        for key, depth in depths.items()
        if key.startswith(('patch_embed', 'pos_embed', 'cls_token'))
    )
    roles = net.param_roles()
    found = [
        depths[key]
        for key, role in roles.items()
        if split_role(role)[1] == 'mixer_norm.weight'
    ]
    assert found == sorted(found)
    assert found[0] > 0
    assert total > max(found) + 1
    assert net.get_layer_depth('head.fc.weight', 'backbone.')[0] == total - 1


@every_backbone
def test_frozen_stages_do_not_learn(name, kwargs):
    net = build(name, kwargs, frozen_stages=1, out_type='raw').train()
    net(inputs(kwargs))[0].pow(3).sum().backward()
    frozen = {k for k, p in net.named_parameters() if not p.requires_grad}
    assert any(key.startswith('patch_embed') for key in frozen)
    assert any(key.startswith('layers.0.') for key in frozen)
    assert not any(key.startswith('layers.1.') for key in frozen)
    assert not net.layers[0].training
    assert net.layers[1].training
    for key, parameter in net.named_parameters():
        assert (parameter.grad is None) == (key in frozen), key
    build(name, kwargs, frozen_stages=3)
    with pytest.raises(ValueError, match='frozen_stages is 4'):
        build(name, kwargs, frozen_stages=4)


@every_backbone
def test_checkpointed_blocks_have_the_same_gradients(name, kwargs):
    x = inputs(kwargs)
    grads = []
    for with_cp in (False, True):
        net = build(name, kwargs, with_cp=with_cp, out_type='raw').train()
        net(x)[0].pow(3).sum().backward()
        grads.append({k: p.grad for k, p in net.named_parameters()})
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad, **CLOSE)


@every_backbone
def test_flops_grow_linearly_with_the_tokens(name, kwargs):
    net = build(name, kwargs)
    small, large = (
        get_flops(net, inputs(kwargs, *size, batch=1).shape[1:])
        for size in ((32, 32), (64, 64))
    )
    assert 3.5 * small < large < 4.5 * small
