# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Golden files of PlainMamba."""

from golden_files import check_model
from mmpretrain.registry import MODELS

from transmamba_mm.models.layers.plain_mamba_mixer import move_rows
from transmamba_mm.models.scan_orders import scan_order
from transmamba_mm.ops import invert_order


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


RUNNERS = {
    'plainmamba': run_plain_mamba,
    'plainmamba_scan_orders': run_plain_mamba_scan_orders,
}
