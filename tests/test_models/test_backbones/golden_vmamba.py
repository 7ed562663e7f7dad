# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Golden files of VMamba."""

import torch
from golden_files import assert_close, check_model
from mmpretrain.registry import MODELS
from torch import nn

from transmamba_mm.checkpoints.formats import VMAMBA
from transmamba_mm.contract.scan_orders import scan_order
from transmamba_mm.models import VMamba
from transmamba_mm.ops import invert_order

# Variants of one mathematics: they differ in the operators they call.
SAME = ('v01', 'v02', 'v03', 'v04', 'v05', 'v2', 'v3')
# Permutations are exact, their sums of four are float32.
SCAN_TOLERANCE = 1e-6


# What only one value is supported of.
ONLY = dict(
    ssm_dt_rank='auto',
    ssm_conv=3,
    ssm_act_layer='silu',
    ssm_init='v0',
    gmlp=False,
    mlp_act_layer='gelu',
    patch_norm=True,
    posembed=False,
)


def parse_forward_type(text):
    """What a ``forward_type`` stands for: gated or not, and directions."""
    base = text.removesuffix('_no32').removesuffix('_noz')
    directions = VMamba.DIRECTIONS['cross']
    if base in ('v051d', 'v052d'):
        directions = VMamba.DIRECTIONS[base]
    elif base not in (*SAME, 'v0', 'v0seq'):
        raise NotImplementedError(
            f'forward_type {text!r}: {base!r} is not supported by VMamba'
        )
    return '_noz' not in text, directions


def read_build(build):
    """Arguments of :class:`VMamba` for an official model's arguments."""
    build = dict(build)
    forward_type = build.pop('forward_type')
    gated, directions = parse_forward_type(forward_type)
    if forward_type in ('v0', 'v0seq'):
        # The first version knows nothing of this setting.
        build['ssm_conv_bias'] = True
    for name, value in ONLY.items():
        if build.pop(name) != value:
            raise NotImplementedError(f'{name} is not supported')
    norm = build.pop('norm_layer').lower()
    if norm not in ('ln', 'ln2d'):
        raise NotImplementedError(f'norm_layer {norm!r} is not supported')
    # No file has outputs with dropout, which would be random.
    drop_rate = max(build.pop('ssm_drop_rate'), build.pop('mlp_drop_rate'))
    arch = dict(
        embed_dims=build.pop('dims'),
        depths=build.pop('depths'),
        d_state=build.pop('ssm_d_state'),
        ssm_ratio=build.pop('ssm_ratio'),
        conv_bias=build.pop('ssm_conv_bias'),
        gated=gated,
        mlp_ratio=build.pop('mlp_ratio'),
        patch_embed=build.pop('patchembed_version'),
        downsample=build.pop('downsample_version'),
    )
    backbone = dict(
        type='transmamba.VMamba',
        arch=arch,
        img_size=build.pop('imgsize'),
        patch_size=build.pop('patch_size'),
        in_channels=build.pop('in_chans'),
        directions=directions,
        drop_rate=drop_rate,
        drop_path_rate=build.pop('drop_path_rate'),
        with_cp=build.pop('use_checkpoint'),
    )
    classes = build.pop('num_classes')
    only = build.pop('backbone_only', False)
    if only:
        stages = sorted(build.pop('out_indices', range(4)))
        backbone['out_indices'] = stages
        backbone['out_type'] = 'avg_featmap'
        # Written for the outputs alone, so without other stages' norms.
        backbone['final_norm'] = len(arch['depths']) - 1 in stages
    assert not build, f'unknown settings {sorted(build)}'
    return backbone, None if only else classes, norm == 'ln2d'


class BackboneOnly(nn.Module):
    """The outputs of a backbone, pooled, in one row."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = MODELS.build(backbone)

    def forward(self, x):
        return torch.cat(self.backbone(x), dim=1)


def build_model(backbone, classes):
    if classes is None:
        return BackboneOnly(backbone)
    dims, depths = (backbone['arch'][k] for k in ('embed_dims', 'depths'))
    dims *= 2 ** (len(depths) - 1)
    return MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=backbone,
            head=dict(
                type='LinearClsHead', num_classes=classes, in_channels=dims
            ),
        )
    )


def watch(net):
    """Modules by the names of their outputs, and inputs that are shown."""
    first, inputs = net.layers[0].blocks[0], {}
    modules = {
        'patch_embed': net.patch_embed,
        'dbg.block0.norm': first.norm,
        'dbg.block0.in_proj': first.op.in_proj,
        'dbg.block0.ss2d': first.op,
        'dbg.block0.conv2d': first.op.conv2d,
    }
    for s, stage in enumerate(net.layers):
        modules[f'stage{s}.downsample'] = stage.downsample
        for j, block in enumerate(stage.blocks):
            modules[f'stage{s}.block{j:02d}'] = block
    for i, s in enumerate(sorted(net.out_indices)):
        last = s == len(net.layers) - 1
        norm = net.norm if last else getattr(net, f'outnorm{s}')
        modules[f'featmap{i}'] = norm
        if last:
            modules['final_norm'] = norm
    for name, module in (
        ('merged_before_norm', first.op.out_norm),
        ('before_out_proj', first.op.out_proj),
    ):
        module.register_forward_pre_hook(
            lambda m, args, name=f'dbg.block0.{name}': inputs.update(
                {name: args[0]}
            )
        )
    return modules, inputs


def run_vmamba(golden):
    backbone, classes, channel_first = read_build(golden.config['build'])
    weights = golden.weights()
    state = VMAMBA.to_classifier(weights)
    model = build_model(backbone, classes)
    model.load_state_dict(state, strict=True)
    net = model.backbone
    for official, key in zip(weights, state):
        for name in [n for n in golden.arrays if n.startswith('grad/')]:
            base, at, sample = name[len('grad/') :].partition('@')
            if base == official and base != key:
                value = golden.arrays.pop(name)
                golden.arrays[f'grad/{key}{at}{sample}'] = value
                stats = golden.meta.get('stats', {})
                if f'grad/{base}' in stats:
                    stats[f'grad/{key}'] = stats[f'grad/{base}']

    modules, inputs = watch(net)
    shapes = {}
    for name, value in golden.group('out').items():
        base = name.partition('@')[0]
        stats = golden.meta.get('stats', {}).get(f'out/{base}', {})
        shapes[base] = stats.get('shape', list(value.shape))

    def as_stored(name, value):
        """Tokens (B, L, C), or a map, in the layout of the file."""
        value = value[0] if isinstance(value, tuple) else value
        shape = shapes.get(name, ())
        if value.dim() == 3 and len(shape) == 4:
            is_map = channel_first or name.startswith('featmap')
            grid = shape[2:] if is_map else shape[1:3]
            value = value.unflatten(1, grid)
            value = value.permute(0, 3, 1, 2) if is_map else value
        elif value.dim() == 3 and len(shape) == 3:
            value = value if list(value.shape) == shape else value.mT
        return value

    def more_outputs(model, seen):
        shown = {**seen, **inputs}
        outputs = {k: as_stored(k, v) for k, v in shown.items()}
        if 'final_norm' in seen:
            outputs['pooled'] = seen['final_norm'].mean(1)
        return outputs

    check_model(golden, model, modules, more_outputs)


# The directions of each case of the original's cross scan.
CROSS_SCANS = {
    'cross2d': VMamba.DIRECTIONS['cross'],
    'unidi': VMamba.DIRECTIONS['v051d'],
    'bidi': VMamba.DIRECTIONS['v052d'],
}


def run_cross_scan_merge(golden):
    """Scan orders are the cross scan, and their inverses the merge."""
    for case in golden.config['cases']:
        grid, kind = case.split('/')
        orders = [
            scan_order(name, *map(int, grid.split('x')))
            for name in CROSS_SCANS[kind]
        ]
        values = {k: torch.tensor(v) for k, v in golden.group(case).items()}
        x = values['x'].flatten(2).requires_grad_()
        scanned = torch.stack([x[..., order] for order in orders], dim=1)
        sequences = values['merge_in'].flatten(3)
        (grad,) = torch.autograd.grad(scanned, x, sequences)
        sequences.requires_grad_()
        merged = sum(
            part[..., invert_order(order)]
            for part, order in zip(sequences.unbind(1), orders)
        )
        (merge_grad,) = torch.autograd.grad(
            merged, sequences, values['grad_merge_out']
        )
        for name, actual in (
            ('scan', scanned),
            ('merge', merged),
            ('grad_scan_x', grad.view_as(values['x'])),
            ('grad_merge_in', merge_grad),
        ):
            assert_close(
                actual, values[name], SCAN_TOLERANCE, f'{case}/{name}'
            )


RUNNERS = {
    'vmamba': run_vmamba,
    'vmamba_cross_scan_merge': run_cross_scan_merge,
}
