# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What every registered backbone must do, in one sweep.

A new backbone adds its tiny configurations to ``TINY``; that it does so is
tested, too.
"""

import contextlib
import copy
import io
import math

import pytest
import torch
from helpers import TINY_CLASSES, randomise, tiny_distiller, vit_cfg
from mmengine.optim import build_optim_wrapper
from mmpretrain.structures import DataSample

from transmamba_mm.apis import get_flops
from transmamba_mm.distill import DirectionTapsRecorder
from transmamba_mm.models import MambaBackbone
from transmamba_mm.ops import invert_order, reorder, use_scan_backend
from transmamba_mm.registry import MODELS
from transmamba_mm.transfer import Subcloner, read_teacher
from transmamba_mm.transfer.roles import AXES, split_role
from transmamba_mm.transfer.ssm import build_ssm_source

FRAMES = 4
DIMS = 16
_SMALL = dict(img_size=16, patch_size=4)
_VIM = dict(arch=dict(embed_dims=DIMS, num_layers=3), **_SMALL)
_STAGES = dict(embed_dims=8, depths=(1, 1, 2), mlp_ratio=2)

#: Arguments of small models, by registered name; several where the options
#: lead to other code.
TINY = {
    'PlainMamba': dict(
        released=dict(
            arch=dict(embed_dims=DIMS, num_layers=3, layers_with_dwconv=(1,)),
            **_SMALL,
        ),
        ffn=dict(
            arch=dict(embed_dims=DIMS, num_layers=3),
            stem='patch',
            ffn_ratio=2,
            mixer_cfg=dict(expand=1, layer_scale=0.5),
            **_SMALL,
        ),
    ),
    'VisionMamba': dict(
        middle=_VIM,
        double=dict(class_token='double', stride=2, **_VIM),
        ffn=dict(
            arch=dict(
                embed_dims=DIMS,
                num_layers=3,
                expand=1,
                ffn_ratio=2,
                norm_cfg=dict(type='LN', eps=1e-5),
            ),
            **_SMALL,
        ),
        v1=dict(
            class_token='none',
            out_type='avg_featmap',
            mixer_cfg=dict(bimamba_type='v1', layer_scale=0.5),
            **_VIM,
        ),
    ),
    'VideoMamba': dict(
        image=_VIM,
        video=dict(num_frames=FRAMES, **_VIM),
    ),
    'VMamba': dict(
        v2=dict(arch=_STAGES),
        gated=dict(arch=dict(_STAGES, ssm_ratio=2, d_state=4, gated=True)),
    ),
}
CASES = [
    pytest.param(name, kwargs, id=f'{name}-{variant}')
    for name, variants in TINY.items()
    for variant, kwargs in variants.items()
]
every_backbone = pytest.mark.parametrize(('name', 'kwargs'), CASES)

CLOSE = dict(rtol=1e-4, atol=1e-5)
# Sums of a few float32 products in another order.
SUM = dict(rtol=1e-4, atol=1e-5)
# float32 in another order, over a whole model.
BACKEND_RELATIVE = 1e-5
# bfloat16 has eight bits of mantissa, float16 eleven.
HALF_RELATIVE = {torch.bfloat16: 0.1, torch.float16: 0.02}


def build(name, kwargs, seed=0, **more):
    torch.manual_seed(seed)
    net = MODELS.get(name)(**{**copy.deepcopy(kwargs), **more})
    net.init_weights()
    randomise(net, seed)
    return net.eval()


def inputs(kwargs, height=16, width=16, batch=2, frames=None):
    size = (height, width)
    if 'num_frames' in kwargs:
        size = (frames or kwargs['num_frames'], *size)
    return torch.randn(batch, 3, *size)


def record(net, x, tap='out'):
    recorder = DirectionTapsRecorder(tap)
    recorder.initialize(net)
    with recorder:
        outs = net(x)
    return recorder.get_record_data(), outs


def test_every_registered_backbone_is_here():
    registered = {
        name
        for name, cls in MODELS.module_dict.items()
        if isinstance(cls, type) and issubclass(cls, MambaBackbone)
    }
    assert registered == set(TINY)


# ------------------------------------------------------------ computation


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
        kwargs['arch'].update(wrong)
    else:
        kwargs.setdefault('mixer_cfg', {}).update(wrong)
    with pytest.raises(ValueError, match=f'{next(iter(wrong))} must be'):
        build(name, kwargs)


@pytest.mark.parametrize('change', [lambda x: x[0], lambda x: x.unsqueeze(2)])
@every_backbone
def test_inputs_of_other_dimensions_are_refused(name, kwargs, change):
    if name == 'PlainMamba':
        pytest.skip('its stems leave that to PyTorch')
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
    net = build(name, kwargs, out_type='raw')
    x = inputs(kwargs)
    compiled = torch.compile(net, backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(compiled(x)[0], net(x)[0], **CLOSE)
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


# ----------------------------------------------------------- the contract


@pytest.mark.parametrize('tap', ['out', 'inner', 'residual'])
@every_backbone
def test_taps_sum_to_the_mixers_output(name, kwargs, tap):
    """Put back into raster order, less the output bias, for every layer."""
    net = build(name, kwargs, out_type='raw')
    x = inputs(kwargs, 20, 28)
    mixed, streams = [], []
    handles = []
    mixers = [
        next(m for m in block.modules() if hasattr(m, 'taps'))
        for block in net.blocks()
    ]
    for block, mixer in zip(net.blocks(), mixers):
        handles += [
            block.register_forward_pre_hook(
                lambda m, args: streams.append(args[0])
            ),
            mixer.register_forward_hook(
                lambda m, args, out: mixed.append(out)
            ),
        ]
    with torch.no_grad():
        plain = net(x)
        mixed.clear()
        streams.clear()
        records, tapped = record(net, x, tap)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(tapped[0], plain[0], **CLOSE)
    assert len(records) == net.num_layers * len(net.directions)
    for layer, mixer in enumerate(mixers):
        found = [r for r in records if r.layer == layer]
        assert {r.direction for r in found} == set(net.directions)
        total = sum(reorder(r.tokens, invert_order(r.order())) for r in found)
        grid = found[0].grid
        slots = net.class_token_slots(*grid)
        keep = [i for i in range(mixed[layer].shape[1]) if i not in slots]
        if tap == 'inner':
            assert total.shape[2] == mixer.d_inner
            total = total @ mixer.out_proj.weight.T
            total = total if mixer.gamma is None else total * mixer.gamma
        if tap == 'residual':
            total = total - len(found) * streams[layer][:, keep]
        expected = mixed[layer][:, keep]
        if mixer.out_proj.bias is not None:
            gamma = 1 if mixer.gamma is None else mixer.gamma
            expected = expected - mixer.out_proj.bias * gamma
        torch.testing.assert_close(total, expected, **SUM)


@every_backbone
def test_scan_orders_are_permutations(name, kwargs):
    net = build(name, kwargs)
    assert len(set(net.directions)) == len(net.directions)
    for size in ((16, 16), (20, 36)):
        records, _ = record(net, inputs(kwargs, *size))
        for r in records:
            order = net.scan_order(r.direction, *r.grid)
            assert sorted(order.tolist()) == list(range(math.prod(r.grid)))
            assert torch.equal(order, r.order())
            assert r.tokens.shape[1:] == (
                order.numel(),
                net.layer_dims[r.layer],
            )


@every_backbone
def test_a_direction_depends_on_what_it_has_scanned(name, kwargs):
    """The published order is the one that the mixer follows.

    Without convolutions over neighbours, a change of one token reaches in
    each direction that token and those scanned after it, no others.
    """
    net = build(name, kwargs).double()
    for module in net.modules():
        if isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d)) and (
            module.groups > 1
        ):
            # Keeps the token itself: the middle tap, or the last one.
            weight = torch.zeros_like(module.weight)
            if weight.dim() == 3:
                weight[..., -1] = 1.0
            else:
                weight[..., weight.shape[-2] // 2, weight.shape[-1] // 2] = 1
            module.weight.data.copy_(weight)
    block = net.blocks()[0]
    mixer = next(m for m in block.modules() if hasattr(m, 'taps'))
    if hasattr(mixer, 'out_norm'):
        # The norm of the sum hands a change on to all directions.
        mixer.out_norm = torch.nn.Identity()
    grid = (2, 3, 4) if 'num_frames' in kwargs else (4, 6)
    length = math.prod(grid)
    slots = net.class_token_slots(*grid)
    patches = [i for i in range(length + len(slots)) if i not in slots]
    tokens = torch.randn(1, length + len(slots), net.layer_dims[0]).double()
    place = length // 3
    changed = tokens.clone()
    changed[:, patches[place]] += 1.0

    def directions_of(x):
        seen = {}
        handles = [
            mixer.taps.inner[d].register_forward_hook(
                lambda m, a, out, d=d: seen.update({d: out})
            )
            for d in net.directions
        ]
        with torch.no_grad():
            mixer(x, grid)
        for handle in handles:
            handle.remove()
        return seen

    before, after = directions_of(tokens), directions_of(changed)
    for direction in net.directions:
        moved = (before[direction] - after[direction]).abs().sum(-1)[0] > 1e-12
        skip = set(net.class_token_positions(direction, *grid))
        moved = [bool(m) for i, m in enumerate(moved) if i not in skip]
        order = net.scan_order(direction, *grid).tolist()
        step = order.index(place)
        if name == 'PlainMamba':
            # delta, B and C stay in raster order, so the token also acts at
            # the step of its own number.
            step = min(step, place)
        assert not any(moved[:step]), direction
        assert all(moved[step:][:1]) or name == 'PlainMamba', direction
        assert moved[-1], direction


@every_backbone
def test_roles_name_what_can_be_transferred(name, kwargs):
    net = build(name, kwargs)
    roles = net.param_roles()
    assert set(roles) <= {key for key, _ in net.named_parameters()}
    for key, role in roles.items():
        layer, kind = split_role(role)
        assert kind.startswith('ssm.') or kind in AXES, key
        assert layer is None or 0 <= layer < net.num_layers, key
    for layer in range(net.num_layers):
        for kind in ('mixer_norm.weight', 'mixer_out.weight'):
            assert f'layers.{layer}.{kind}' in roles.values()
        for kind in ('in_proj', 'x_proj', 'conv'):
            assert f'layers.{layer}.ssm.{kind}.weight' in roles.values()


@pytest.mark.parametrize('with_cp', [False, True])
@every_backbone
def test_both_stages_of_the_transfer(name, kwargs, with_cp):
    """Subcloning and distillation from a ViT, with one config for all."""
    dims = build(name, kwargs).layer_dims[-1]
    classifier = dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(
            type=f'transmamba.{name}',
            **copy.deepcopy(kwargs),
            with_cp=with_cp,
        ),
        head=dict(
            type='LinearClsHead', num_classes=TINY_CLASSES, in_channels=dims
        ),
    )
    if 'num_frames' in kwargs:
        pytest.skip('an image teacher has no tokens over time')
    if kwargs.get('stride') == 2:
        classifier['backbone']['stride'] = 4
    model = MODELS.build(
        dict(
            type='transmamba.TransMambaDistill',
            architecture=classifier,
            teacher=vit_cfg(dims=32, depth=3, ffn=64, heads=4),
            distiller=tiny_distiller(),
        )
    )
    randomise(model.teacher)
    plan = Subcloner(
        model.student,
        read_teacher(model.teacher.state_dict()),
        importance='magnitude',
        ssm=build_ssm_source('attention'),
    ).plan()
    plan.apply(model.student)
    assert plan.coverage > 0
    by_rule = {entry.rule for entry in plan.entries}
    assert 'attention' in by_rule
    head = next(e for e in plan.entries if e.name == 'head.fc.weight')
    assert head.rule == ('select' if dims < 32 else 'copy')

    model.train()
    wrapper = build_optim_wrapper(
        model, dict(optimizer=dict(type='SGD', lr=1))
    )
    # More than one token in every stage: A has no say over the first.
    images = torch.randn(2, 3, 32, 32)
    samples = [DataSample().set_gt_label(i) for i in range(2)]
    losses = model.loss(images, samples)
    total, logged = model.parse_losses(losses)
    assert {'student.loss', 'distill.loss_tm'} <= set(logged)
    before = copy.deepcopy(dict(model.student.named_parameters()))
    wrapper.update_params(total)
    for key, parameter in model.student.named_parameters():
        assert parameter.isfinite().all(), key
        assert not parameter.equal(before[key]), key


# --------------------------------------------------- mmpretrain's conventions


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
