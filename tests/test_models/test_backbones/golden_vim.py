# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Golden files of Vim, and what VideoMamba's share with them."""

from golden_files import check_model
from mmpretrain.models import LinearClsHead
from mmpretrain.registry import MODELS
from torch import nn

from transmamba_mm.checkpoints.formats import VIM

# What has no part in the numbers: several ways to compute the same, random
# choices while training, and start values.
IGNORED = {
    'checkpoint_num',
    'drop_path_rate',
    'drop_rate',
    'fused_add_norm',
    'initializer_cfg',
    'use_checkpoint',
}
START_VALUES = ('dt_min', 'dt_max', 'dt_init', 'dt_scale', 'dt_init_floor')
# What only one value is supported of.
ONLY = {
    'if_bidirectional': False,
    'if_rope': False,
    'device': None,
    'dtype': None,
    'mm': True,
}


class MaxOfTokens(LinearClsHead):
    """``final_pool_type='max'``: the largest logits of all tokens.

    With a class token, whose logits have no tokens, it is the largest of all
    classes, as in the original.
    """

    def forward(self, feats):
        return super().forward(feats).amax(dim=1)


class NoHead(nn.Module):
    """``num_classes=0``: the features, instead of logits."""

    def forward(self, feats):
        return feats[-1]


def take(build, **expected):
    """Takes keys out of ``build``, with these defaults where missing."""
    return {name: build.pop(name, value) for name, value in expected.items()}


def assert_all_read(build):
    for name, value in ONLY.items():
        assert build.pop(name, value) == value, f'{name} is not supported'
    assert set(build) <= IGNORED, f'unknown: {sorted(set(build) - IGNORED)}'


def norm_of(rms_norm, eps):
    return dict(type='transmamba.RMSNorm' if rms_norm else 'LN', eps=eps)


def mixer_of(build, kind, **options):
    """Arguments of a mixer of ``bimamba_type=kind``."""
    if build.pop('init_layer_scale', None) is not None:
        options['layer_scale'] = 1.0  # Any: the files have the true scale.
    ssm = dict(build.pop('ssm_cfg', None) or {})
    assert ssm.pop('use_fast_path', True) or kind == 'none', (
        'use_fast_path=False, which scans forward alone, is not supported'
    )
    ssm = {k: v for k, v in ssm.items() if k not in START_VALUES}
    if ssm.get('dt_rank') == 'auto':
        ssm['dt_rank'] = None
    d_state = build.pop('d_state', 16)
    return {'bimamba_type': kind, 'd_state': d_state, **options, **ssm}


def head_of(classes, pooling=None):
    """Config of the head, without ``in_channels``."""
    if not classes:
        assert pooling != 'max', 'no logits to take the largest of'
        return dict(type=NoHead)
    kind = MaxOfTokens if pooling == 'max' else 'LinearClsHead'
    return dict(type=kind, num_classes=classes)


def rename_grads(golden, convert):
    """Names stored gradients as our parameters."""
    stats = golden.meta.get('stats') or {}
    renamed = {}
    for name, value in golden.arrays.items():
        if name.startswith('grad/') and not name.startswith('grad/input'):
            ((new, _),) = convert({name[len('grad/') :]: value}).items()
            old, name = name.partition('@')[0], f'grad/{new}'
            if old in stats:
                stats[name.partition('@')[0]] = stats[old]
        renamed[name] = value
    golden.arrays = renamed


def block_outputs(net):
    """Modules to watch, and the residual stream before each block."""
    modules = {'dbg.layer0.mixer_in': net.layers[0].norm}
    residuals = {}
    for i, layer in enumerate(net.layers):
        modules[f'block{i:02d}.hidden'] = layer.mixer
        # The original's second stream is what enters a block.
        layer.register_forward_pre_hook(
            lambda m, args, i=i: residuals.update(
                {f'block{i:02d}.residual': args[0]}
            )
        )
    return modules, residuals


def check_classifier(golden, backbone, head, convert, patch_embed):
    """Builds an ``ImageClassifier`` and compares it with a file.

    Args:
        golden (Golden): The file.
        backbone (dict): Config of the backbone.
        head (dict): See :func:`head_of`.
        convert (Callable): Official state dict to ours.
        patch_embed (str): Submodule of the backbone with that output.
    """
    if head['type'] is not NoHead:
        head['in_channels'] = backbone['arch']['embed_dims']
    model = MODELS.build(
        dict(type='ImageClassifier', backbone=backbone, head=head)
    )
    state = convert(golden.weights())
    model.load_state_dict(state, strict=True)
    net = model.backbone
    modules, residuals = block_outputs(net)
    modules.update(patch_embed=net.get_submodule(patch_embed), features=net)
    rename_grads(golden, convert)
    check_model(golden, model, modules, lambda model, seen: residuals)


def vim_tokens(build):
    """``class_token`` and ``out_type`` of a file."""
    use = take(
        build,
        if_cls_token=True,
        use_middle_cls_token=True,
        use_double_cls_token=False,
        final_pool_type='none',
    )
    pooling = use['final_pool_type']
    if not use['if_cls_token']:
        out_types = dict(
            none='last_token', mean='avg_featmap', max='raw', all='raw'
        )
        return 'none', out_types[pooling], pooling
    kinds = [
        kind for kind in ('double', 'middle') if use[f'use_{kind}_cls_token']
    ]
    return (kinds or ['head'])[0], 'cls_token', pooling


def run_vim(golden):
    build = dict(golden.config['build'])
    class_token, out_type, pooling = vim_tokens(build)
    kind = build.pop('bimamba_type', 'v2')
    if build.pop('if_bimamba', False):
        kind = 'v1'
    flips = build.pop('flip_img_sequences_ratio', -1)
    assert flips <= 0, 'random flips, in evaluation, too, are not supported'
    backbone = dict(
        type='transmamba.VisionMamba',
        arch=dict(
            embed_dims=build.pop('embed_dim', 192),
            num_layers=build.pop('depth', 24),
        ),
        img_size=build.pop('img_size', 224),
        patch_size=build.pop('patch_size', 16),
        stride=build.pop('stride', 16),
        in_channels=build.pop('channels', 3),
        class_token=class_token,
        abs_pos_embed=build.pop('if_abs_pos_embed', True),
        mixer_cfg=mixer_of(
            build, kind, divide_out=build.pop('if_divide_out', True)
        ),
        norm_cfg=norm_of(
            build.pop('rms_norm', True), build.pop('norm_epsilon', 1e-5)
        ),
        residual_in_fp32=build.pop('residual_in_fp32', True),
        out_type=out_type,
    )
    head = head_of(build.pop('num_classes', 1000), pooling)
    build.pop('if_devide_out', None)  # Misspelt, and ignored by Vim, too.
    take(build, if_rope_residual=False, pt_hw_seq_len=14, ft_seq_len=None)
    assert_all_read(build)
    check_classifier(golden, backbone, head, VIM.to_classifier, 'patch_embed')


RUNNERS = {'vim': run_vim}
