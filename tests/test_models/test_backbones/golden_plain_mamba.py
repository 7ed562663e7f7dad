# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Golden files of PlainMamba."""

from golden_files import check_model
from mmpretrain.registry import MODELS

from transmamba_mm.contract.scan_orders import scan_order
from transmamba_mm.models import PlainMamba
from transmamba_mm.models.layers.plain_mamba_mixer import move_rows
from transmamba_mm.ops import invert_order

# Arguments of the original without a part in these outputs: start values,
# and training options.
UNUSED = ('dt_init', 'dt_scale', 'dt_init_floor', 'default_hw_shape')
UNUSED_IN_MODEL = (
    'convert_syncbn',
    'freeze_patch_embed',
    'init_cfg',
    'interpolate_mode',
    'norm_cfg',
    'test_cfg',
)


def read_mixer(build):
    """Arguments of our mixer for those of the official one."""
    mixer = {k: v for k, v in build.items() if k not in UNUSED}
    mixer.setdefault('bias', False)
    if mixer.get('dt_rank') == 'auto':
        del mixer['dt_rank']
    scale = mixer.pop('init_layer_scale', None)
    if scale is not None:
        mixer['layer_scale'] = scale
    return mixer


def read_build(build):
    """Arguments of :class:`PlainMamba` for an official model's arguments.

    Returns:
        tuple: Arguments of the backbone, the number of classes, and the
        layers whose maps the official model returns.
    """
    build = dict(build)
    if build.get('interpolate_mode', 'bicubic') != 'bicubic':
        raise NotImplementedError('position embeddings are bicubic')
    norm_cfg = build.get('norm_cfg', dict(type='LN', eps=1e-6))
    if norm_cfg != dict(type='LN', eps=1e-6):
        raise NotImplementedError(f'norm_cfg {norm_cfg} is not supported')
    for name in UNUSED_IN_MODEL:
        build.pop(name, None)
    classes = build.pop('num_classes')
    asked = build.pop('out_indices', -1)
    asked = [asked] if isinstance(asked, int) else asked
    preset = build.pop('arch', None)
    layer = dict(build.pop('layer_cfgs', {}))
    if preset is not None:
        build['arch'] = preset
        depth = PlainMamba.ARCHS[preset]['num_layers']
    else:
        depth = build.pop('num_layers')
        build['arch'] = dict(
            embed_dims=build.pop('embed_dims'),
            num_layers=depth,
            num_convs_patch_embed=build.pop('num_convs_patch_embed', 1),
            layers_with_dwconv=build.pop('layers_with_dwconv', ()),
        )
        build['mixer_cfg'] = read_mixer(layer.pop('mamba_cfg'))
        if layer.pop('use_rms_norm'):
            build['norm_cfg'] = dict(type='transmamba.RMSNorm')
        assert not layer, f'unknown settings {sorted(layer)}'
    maps = sorted(i % depth for i in asked)
    # The head sees the last layer, whether or not its map is returned.
    build['out_indices'] = sorted({*maps, depth - 1})
    return build, classes, maps


def run_plain_mamba(golden):
    backbone, classes, maps = read_build(golden.config['build'])
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
        'dbg.layer0.norm': first.norm,
        'dbg.layer0.in_proj': first.mamba.in_proj,
        'dbg.layer0.conv2d': first.mamba.conv2d,
        'dbg.layer0.x_proj': first.mamba.x_proj,
        'dbg.layer0.dt_proj_with_bias': first.mamba.dt_proj,
        'dbg.layer0.mixer': first.mamba,
    }
    for i, layer in enumerate(net.layers):
        modules[f'block{i:02d}'] = layer
    last = len(net.layers) - 1
    modules['tokens'] = net.layers[last] if net.ln1 is None else net.ln1
    for i in maps:
        if i != last:
            modules[f'norm_layer{i}'] = getattr(net, f'norm_layer{i}')
    gated = {}
    first.mamba.out_proj.register_forward_pre_hook(
        lambda m, args: gated.update(value=args[0])
    )

    def more_outputs(model, seen):
        grid = seen['patch_embed'][1]
        outputs = {
            'dbg.layer0.gated_sum': gated['value'],
            'pooled': seen['tokens'].mean(1),
        }
        for i, layer in enumerate(maps):
            name = 'tokens' if layer == last else f'norm_layer{layer}'
            outputs[f'featmap{i}'] = seen[name].mT.unflatten(2, grid)
        return outputs

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
