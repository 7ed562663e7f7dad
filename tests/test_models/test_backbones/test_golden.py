# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Parity with the official implementations, file by file.

Run on other files with
``pytest tests/test_models/test_backbones/test_golden.py --golden-dir DIR``.
Each file names its kind; a kind is served by one entry of ``RUNNERS``.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_recipe import recipe_tensor
from mmpretrain.registry import MODELS

from transmamba_mm.models import convert_vim_state_dict
from transmamba_mm.models.layers.plain_mamba_mixer import move_rows
from transmamba_mm.models.scan_orders import scan_order
from transmamba_mm.ops import invert_order, selective_scan

# Relative to each array's largest absolute value (design of the files).
OUT_TOLERANCE = 2e-5
GRAD_TOLERANCE = 5e-5
SCAN_OUT_TOLERANCE = 1e-6
SCAN_GRAD_TOLERANCE = 5e-6


def pytest_generate_tests(metafunc):
    if 'golden_file' in metafunc.fixturenames:
        folder = Path(metafunc.config.getoption('--golden-dir'))
        files = sorted(folder.glob('*.npz'))
        assert files, f'no golden files in {folder}'
        metafunc.parametrize('golden_file', files, ids=lambda f: f.stem)


def assert_close(actual, expected, tolerance, name):
    actual = actual.detach().double().cpu().numpy()
    expected = np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape, name
    error = np.abs(actual - expected).max(initial=0)
    limit = tolerance * max(np.abs(expected).max(initial=0), 1e-12)
    assert error <= limit, f'{name}: error {error:.3g} > {limit:.3g}'


class Golden:
    """One golden file."""

    def __init__(self, path):
        self.arrays = dict(np.load(path, allow_pickle=False))
        self.config = json.loads(str(self.arrays['config']))
        self.meta = json.loads(str(self.arrays.get('meta', '{}')))

    def group(self, prefix):
        prefix += '/'
        return {
            key[len(prefix) :]: value
            for key, value in self.arrays.items()
            if key.startswith(prefix)
        }

    def weights(self):
        """State dict, stored or regenerated."""
        if self.config['weights'] == 'stored':
            return {k: torch.tensor(v) for k, v in self.group('sd').items()}
        state = {}
        for key, shape, is_norm in self.meta['state_spec']:
            value = recipe_tensor(self.config['seed'], key, shape, is_norm)
            total, squares = self.meta['checksum'][key]
            # The checksums were taken in float32.
            slack = 1e-6 * np.abs(value).sum()
            assert np.isclose(value.sum(), total, atol=slack)
            assert np.isclose(np.square(value).sum(), squares)
            integer = value.dtype == np.int64
            state[key] = torch.tensor(
                value, dtype=None if integer else torch.float32
            )
        return state


class Watch:
    """Records named module outputs of one forward pass."""

    def __init__(self, modules):
        self.seen = {}
        for name, module in modules.items():
            module.register_forward_hook(
                lambda m, i, out, name=name: self.seen.update({name: out})
            )


def check_model(golden, model, modules, more_outputs):
    """Compares outputs, gradients and, in training mode, buffers.

    Args:
        golden (Golden): The file.
        model (nn.Module): Classifier with the official state dict loaded.
        modules (dict[str, nn.Module]): Output name to module.
        more_outputs (Callable): ``(model, seen) -> dict`` of derived outputs.
    """
    model.train(golden.config['train'])
    watch = Watch(modules)
    x = torch.tensor(golden.arrays['in/x'], requires_grad=True)
    logits = model(x)
    logits.mul(torch.tensor(golden.arrays['in/gvec'])).sum().backward()
    outputs = {**watch.seen, 'logits': logits}
    outputs.update(more_outputs(model, outputs))
    expected = golden.group('out')
    assert set(expected) <= set(outputs)
    for name, value in expected.items():
        output = outputs[name]
        output = output[0] if isinstance(output, tuple) else output
        assert_close(output, value, OUT_TOLERANCE, name)
    parameters = dict(model.named_parameters())
    for name, value in golden.group('grad').items():
        grad = x.grad if name == 'input' else parameters[name].grad
        assert_close(grad, value, GRAD_TOLERANCE, f'grad {name}')
    state = model.state_dict()
    for name, value in golden.group('after').items():
        assert_close(state[name], value, OUT_TOLERANCE, f'after {name}')


def run_plain_mamba(golden):
    build = dict(golden.config['build'])
    classes = build.pop('num_classes')
    if 'arch' in build:
        backbone = dict(arch=build['arch'])
    else:
        layer = build['layer_cfgs']
        keep = ('d_state', 'expand', 'conv_size', 'conv_bias', 'bias')
        backbone = dict(
            arch=dict(
                embed_dims=build['embed_dims'],
                num_layers=build['num_layers'],
                num_convs_patch_embed=build['num_convs_patch_embed'],
                layers_with_dwconv=build['layers_with_dwconv'],
            ),
            img_size=build['img_size'],
            patch_size=build['patch_size'],
            mixer_cfg={k: layer['mamba_cfg'][k] for k in keep},
        )
        if layer['use_rms_norm']:
            backbone['norm_cfg'] = dict(type='transmamba.RMSNorm')
        if layer['mamba_cfg'].get('init_layer_scale'):
            scale = layer['mamba_cfg']['init_layer_scale']
            backbone['mixer_cfg']['layer_scale'] = scale
    state = golden.weights()
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='transmamba.PlainMamba', **backbone),
            head=dict(
                type='LinearClsHead',
                num_classes=classes,
                in_channels=state['head.fc.weight'].shape[1],
            ),
        )
    )
    model.load_state_dict(state, strict=True)
    net = model.backbone
    first = net.layers[0]
    modules = {
        'patch_embed': net.patch_embed,
        'tokens': net.ln1,
        'dbg.layer0.norm': first.norm,
        'dbg.layer0.in_proj': first.mamba.in_proj,
        'dbg.layer0.conv2d': first.mamba.conv2d,
        'dbg.layer0.x_proj': first.mamba.x_proj,
        'dbg.layer0.dt_proj_with_bias': first.mamba.dt_proj,
        'dbg.layer0.mixer': first.mamba,
    }
    for i, layer in enumerate(net.layers):
        modules[f'block{i:02d}'] = layer
    gated = {}
    first.mamba.out_proj.register_forward_pre_hook(
        lambda m, args: gated.update(value=args[0])
    )

    def more_outputs(model, seen):
        tokens = seen['tokens']
        grid = seen['patch_embed'][1]
        return {
            'dbg.layer0.gated_sum': gated['value'],
            'pooled': tokens.mean(1),
            'featmap0': tokens.mT.unflatten(2, grid),
        }

    check_model(golden, model, modules, more_outputs)


def run_vim(golden):
    build = golden.config['build']
    assert not build['if_rope'], 'rotary positions are not supported'
    class_token = 'none'
    if build['if_cls_token']:
        class_token = 'middle' if build['use_middle_cls_token'] else 'head'
        if build.get('use_double_cls_token'):
            class_token = 'double'
    norm = 'transmamba.RMSNorm' if build['rms_norm'] else 'LN'
    state = convert_vim_state_dict(golden.weights())
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(
                type='transmamba.VisionMamba',
                arch=dict(
                    embed_dims=build['embed_dim'], num_layers=build['depth']
                ),
                img_size=build['img_size'],
                patch_size=build['patch_size'],
                stride=build['stride'],
                class_token=class_token,
                mixer_cfg=dict(
                    bimamba_type=build['bimamba_type'],
                    divide_out=build['if_divide_out'],
                ),
                norm_cfg=dict(type=norm, eps=1e-5),
                residual_in_fp32=build['residual_in_fp32'],
                out_type='avg_featmap'
                if class_token == 'none'
                else 'cls_token',
            ),
            head=dict(
                type='LinearClsHead',
                num_classes=build['num_classes'],
                in_channels=build['embed_dim'],
            ),
        )
    )
    model.load_state_dict(state, strict=True)
    net = model.backbone
    modules = {
        'patch_embed': net.patch_embed,
        'dbg.layer0.mixer_in': net.layers[0].norm,
        'features': net,
    }
    residuals = {}
    for i, layer in enumerate(net.layers):
        modules[f'block{i:02d}.hidden'] = layer.mixer
        # The original's second stream is what enters a block.
        layer.register_forward_pre_hook(
            lambda m, args, i=i: residuals.update(
                {f'block{i:02d}.residual': args[0]}
            )
        )
    names = {
        'grad/' + key.removeprefix('backbone.').replace('head.fc.', 'head.'): (
            'grad/' + key
        )
        for key in state
    }
    golden.arrays = {names.get(k, k): v for k, v in golden.arrays.items()}
    check_model(golden, model, modules, lambda model, seen: residuals)


def run_videomamba_image(golden):
    """VideoMamba on images is a Vim: class token first, sum of directions."""
    golden.config['build'] = {
        'stride': golden.config['build']['patch_size'],
        **golden.config['build'],
        'if_rope': False,
        'if_cls_token': True,
        'use_middle_cls_token': False,
        'bimamba_type': 'v2',
        'if_divide_out': False,
    }
    run_vim(golden)


def run_plain_mamba_scan_orders(golden):
    names = (
        'snake_horizontal',
        'snake_horizontal_reverse',
        'snake_vertical',
        'snake_vertical_reverse',
    )
    for h, w in golden.config['shapes']:
        for k, name in enumerate(names):
            order = scan_order(name, h, w)
            stored = golden.group(f'{h}x{w}')
            assert order.tolist() == stored['order'][k].tolist()
            inverse = invert_order(order)
            assert inverse.tolist() == stored['inverse'][k].tolist()
            rows = move_rows(order, (h, w))
            assert rows.tolist() == stored['direction'][k].tolist()


def run_selective_scan(golden):
    inputs = {
        name: torch.tensor(value) for name, value in golden.group('in').items()
    }
    dout = inputs.pop('dout')
    for value in inputs.values():
        value.requires_grad_()
    softplus = golden.config.get('softplus', True)
    out, last = selective_scan(
        **inputs, delta_softplus=softplus, return_last_state=True
    )
    out.backward(dout)
    expected = golden.group('f64')
    assert_close(out, expected['out'], SCAN_OUT_TOLERANCE, 'out')
    assert_close(
        last, expected['last_state'], SCAN_OUT_TOLERANCE, 'last_state'
    )
    for name, value in inputs.items():
        assert_close(
            value.grad, expected[f'grad_{name}'], SCAN_GRAD_TOLERANCE, name
        )


RUNNERS = {
    'plainmamba': run_plain_mamba,
    'plainmamba_scan_orders': run_plain_mamba_scan_orders,
    'selective_scan': run_selective_scan,
    'videomamba_image': run_videomamba_image,
    'vim': run_vim,
}


def test_golden(golden_file):
    golden = Golden(golden_file)
    kind = golden.config['kind']
    if kind not in RUNNERS:
        pytest.skip(f'no implementation of kind {kind!r} yet')
    RUNNERS[kind](golden)
