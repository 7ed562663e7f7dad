# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Golden files of Vim, and of VideoMamba on images."""

from golden_files import check_model
from mmpretrain.registry import MODELS

from transmamba_mm.models import convert_vim_state_dict


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


RUNNERS = {
    'videomamba_image': run_videomamba_image,
    'vim': run_vim,
}
