# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""VMamba as a student: contract, roles, subcloning, distillation."""

from backbone_cases import images
from helpers import assert_distillation_learns, build, plan_from, vit_cfg
from vmamba_cases import VARIANTS, backbone, tiny_student

from transmamba_mm.distill import DirectionTapsRecorder
from transmamba_mm.models import VMamba
from transmamba_mm.transfer.ssm import build_ssm_source


def test_layer_dims_directions_and_blocks():
    net = backbone(variant=dict(), directions=VMamba.DIRECTIONS['v052d'])
    assert net.hierarchical
    assert net.layer_dims == (8, 16, 16, 32)
    assert (net.num_layers, net.num_outputs) == (4, 3)
    assert net.directions == VMamba.DIRECTIONS['v052d']
    assert [tuple(t.out) for t in net.taps()] == [net.directions] * 4
    recorder = DirectionTapsRecorder('residual')
    recorder.initialize(net)
    streams = []
    for block in net.blocks():
        block.register_forward_pre_hook(
            lambda m, args: streams.append((args[0].shape, args[1]))
        )
    with recorder:
        net(images(36, 28))
    grids = [(9, 7), (5, 4), (5, 4), (3, 2)]
    for (shape, given), grid, dims in zip(streams, grids, net.layer_dims):
        assert (shape, given) == ((2, grid[0] * grid[1], dims), grid)
    records = recorder.get_record_data()
    assert [r.grid for r in records[::4]] == grids
    assert [r.layer for r in records[::4]] == [0, 1, 2, 3]


def test_roles_count_blocks_over_all_stages():
    net = backbone(variant=dict(VARIANTS['vanilla'], mlp_ratio=2.0))
    roles = net.param_roles()
    without = {n for n, _ in net.named_parameters() if n not in roles}
    assert without == {
        f'layers.{s}.downsample.{leaf}'
        for s in (0, 1)
        for leaf in ('reduction.weight', 'norm.weight', 'norm.bias')
    }
    assert roles['patch_embed.2.bias'] == 'patch_norm.bias'
    assert roles['patch_embed.0.weight'] == 'patch_embed.weight'
    assert roles['patch_embed.2.weight'] == 'patch_norm.weight'
    assert roles['norm.bias'] == 'final_norm.bias'
    second = {
        name.removeprefix('layers.1.blocks.1.'): role
        for name, role in roles.items()
        if name.startswith('layers.1.blocks.1.')
    }
    assert second == {
        'norm.weight': 'layers.2.mixer_norm.weight',
        'norm.bias': 'layers.2.mixer_norm.bias',
        'norm2.weight': 'layers.2.ffn_norm.weight',
        'norm2.bias': 'layers.2.ffn_norm.bias',
        'mlp.fc1.weight': 'layers.2.ffn_in.weight',
        'mlp.fc1.bias': 'layers.2.ffn_in.bias',
        'mlp.fc2.weight': 'layers.2.ffn_out.weight',
        'mlp.fc2.bias': 'layers.2.ffn_out.bias',
        'op.out_proj.weight': 'layers.2.mixer_out.weight',
        'op.in_proj.weight': 'layers.2.ssm.in_proj.weight',
        'op.conv2d.weight': 'layers.2.ssm.conv.weight',
        'op.conv2d.bias': 'layers.2.ssm.conv.bias',
        'op.x_proj_weight': 'layers.2.ssm.x_proj.weight',
        'op.dt_projs_weight': 'layers.2.ssm.dt_proj.weight',
        'op.dt_projs_bias': 'layers.2.ssm.dt_proj.bias',
        'op.A_logs': 'layers.2.ssm.A',
        'op.Ds': 'layers.2.ssm.D',
        'op.out_norm.weight': 'layers.2.ssm.out_norm.weight',
        'op.out_norm.bias': 'layers.2.ssm.out_norm.bias',
    }
    # Two overlapping convolutions are no patch embedding of a ViT.
    assert not any('patch_embed' in r for r in backbone().param_roles())


def test_subclones_a_vit():
    """As many channels in the last stage, a part of them before."""
    teacher = build(vit_cfg(dims=16, depth=3), seed=1)
    student = build(tiny_student(dims=8, patch_embed='v1'))
    plan, entries = plan_from(teacher, student)
    plan.apply(student)
    ours, theirs = student.backbone, teacher.backbone
    last = ours.layers[1].blocks[1]
    for name, own, other in (
        ('norm.weight', ours.norm.weight, theirs.ln1.weight),
        (
            'layers.1.blocks.1.op.out_proj.weight',
            last.op.out_proj.weight,
            theirs.layers[2].attn.proj.weight,
        ),
    ):
        assert entries[name].rule == 'copy'
        assert own.equal(other)
    for name in ('patch_embed.0.weight', 'layers.0.blocks.0.norm.weight'):
        assert entries[name].rule == 'select'
    assert entries['head.fc.weight'].rule == 'copy'
    assert entries['layers.0.downsample.1.weight'].rule == 'fresh'


def test_state_space_from_attention_and_from_a_pretrained_vmamba():
    teacher = build(vit_cfg(dims=16, depth=3), seed=1)
    student = build(tiny_student(dims=8))
    _, entries = plan_from(teacher, student, ssm=build_ssm_source('attention'))
    for name in ('x_proj_weight', 'in_proj.weight'):
        assert entries[f'layers.1.blocks.0.op.{name}'].rule == 'attention'
    pretrained = build(tiny_student(dims=8), seed=5).backbone.state_dict()
    source = build_ssm_source('vmamba.pth', pretrained, conv_init='normal')
    plan, entries = plan_from(teacher, student, ssm=source)
    for name in ('A_logs', 'Ds', 'dt_projs_bias', 'out_norm.weight'):
        assert entries[f'layers.1.blocks.1.op.{name}'].rule == 'ssm'
    assert entries['layers.0.blocks.0.op.conv2d.weight'].rule == 'init'
    plan.apply(student)
    assert (
        student.backbone.layers[1]
        .blocks[1]
        .op.A_logs.equal(pretrained['layers.1.blocks.1.op.A_logs'])
    )


def test_one_step_of_distillation(tmp_path):
    """Of students whose grids are not the teacher's."""
    assert_distillation_learns(tiny_student(gated=True), tmp_path)
