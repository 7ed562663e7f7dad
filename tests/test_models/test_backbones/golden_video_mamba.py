# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Golden files of VideoMamba: images, videos and the retrieval variant."""

import torch
from golden_files import check_model
from golden_vim import (
    assert_all_read,
    block_outputs,
    check_classifier,
    head_of,
    mixer_of,
    norm_of,
    rename_grads,
)
from torch import nn

from transmamba_mm.checkpoints.formats import VIDEO_MAMBA
from transmamba_mm.models import (
    ClipDecoders,
    VideoMamba,
)


def backbone_of(build, videos):
    """Takes the backbone's arguments out of ``build``."""
    kind = 'v2' if build.pop('bimamba', True) else 'none'
    assert build.pop('bimamba_type', 'v2') == 'v2'
    build.pop('fc_drop_rate', 0)
    cfg = dict(
        arch=dict(
            embed_dims=build.pop('embed_dim', 192),
            num_layers=build.pop('depth', 24),
        ),
        img_size=build.pop('img_size', 224),
        patch_size=build.pop('patch_size', 16),
        stride=build.pop('stride', None if videos else 16),
        in_channels=build.pop('channels', 3),
        mixer_cfg=mixer_of(build, kind),
        norm_cfg=norm_of(
            build.pop('rms_norm', True), build.pop('norm_epsilon', 1e-5)
        ),
        residual_in_fp32=build.pop('residual_in_fp32', True),
    )
    if videos:
        cfg.update(
            num_frames=build.pop('num_frames', 8),
            tubelet_size=build.pop('kernel_size', 1),
        )
    return cfg


def run_classifier(golden, videos):
    build = dict(golden.config['build'])
    backbone = dict(type='transmamba.VideoMamba', **backbone_of(build, videos))
    head = head_of(build.pop('num_classes', 1000))
    assert_all_read(build)
    check_classifier(
        golden,
        backbone,
        head,
        VIDEO_MAMBA.to_classifier,
        'patch_embed.proj' if videos else 'patch_embed',
    )


class Retrieval(nn.Module):
    """The backbone and the decoders, with a loss on all they return."""

    def __init__(self, backbone, neck, last, **call):
        super().__init__()
        self.backbone, self.neck = backbone, neck
        self.last, self.call = last, call
        self.seen = {}

    def forward(self, x):
        mask, layers = self.call['mask'], ()
        if mask is not None:
            layers = self.neck.student_layers(self.backbone.num_layers)
        found = self.backbone.encode(
            x, **self.call, layers=layers, last=self.last
        )
        pooled = self.backbone.pool_norm is not None
        tokens = found.tokens[:, 1:] if pooled else found.tokens
        self.seen = dict(tokens=tokens)
        parts = [tokens.mean(1)]
        if pooled:
            self.seen['pooled'] = found.pooled
            parts = [found.pooled.mean(1)]
        if mask is not None:
            clip = self.neck(found.layers, found.grid, mask)
            self.seen['clip'] = clip
            parts.append(clip.mean((0, 2)))
        return torch.cat(parts, 1)


def run_retrieval(golden):
    build = dict(golden.config['build'])
    call = dict(build.pop('_call', {}))
    backbone = VideoMamba(
        **backbone_of(build, videos=True),
        pool_type=build.pop('pool_type', 'cls+avg'),
        keep_temporal=call.pop('keep_temporal', False),
        pool_norm=build.pop('add_pool_norm', True),
        out_type='pooled',
    )
    neck = ClipDecoders(
        build.pop('clip_decoder_embed_dim', 768),
        build.pop('clip_output_dim', 512),
        build.pop('clip_return_layer', 1),
        build.pop('clip_student_return_interval', 1),
    )
    mask = call.pop('mask', None)
    model = Retrieval(
        backbone,
        neck,
        'input' if build.get('fused_add_norm', True) else 'output',
        mask=None if mask is None else torch.tensor(mask).bool(),
        use_image=call.pop('use_image', False),
    )
    assert not call, f'unknown: {sorted(call)}'
    assert_all_read(build)
    state = VIDEO_MAMBA.to_classifier(golden.weights())
    model.load_state_dict(state, strict=True)
    modules, residuals = block_outputs(backbone)
    modules['patch_embed'] = backbone.patch_embed.proj
    rename_grads(golden, VIDEO_MAMBA.to_classifier)
    check_model(
        golden, model, modules, lambda model, seen: {**residuals, **model.seen}
    )


RUNNERS = {
    'videomamba_image': lambda golden: run_classifier(golden, videos=False),
    'videomamba_mm': run_retrieval,
    'videomamba_video': lambda golden: run_classifier(golden, videos=True),
}
