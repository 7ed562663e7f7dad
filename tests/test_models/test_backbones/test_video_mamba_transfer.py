# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""VideoMamba as a student: subcloning and distillation."""

import torch
from backbone_cases import CLOSE
from helpers import assert_distillation_learns, build, plan_from, vit_cfg
from video_mamba_cases import classifier, tiny_student, videos


def test_subclones_a_vit():
    teacher = build(vit_cfg(), seed=1)
    student = build(
        classifier(
            dict(embed_dims=16, num_layers=2, expand=1),
            3,
            16,
            img_size=16,
            patch_size=4,
        )
    )
    plan, _ = plan_from(teacher, student)
    plan.apply(student)
    ours, theirs = student.backbone, teacher.backbone
    assert ours.pos_embed.equal(theirs.pos_embed)
    assert ours.cls_token.equal(theirs.cls_token)
    x = torch.randn(2, 3, 16, 16)
    read = []
    for net in (ours, theirs):
        net.layers[0].register_forward_pre_hook(
            lambda m, args: read.append(args[0])
        )
    student(x), teacher(x)
    torch.testing.assert_close(read[0], read[1], **CLOSE)


def test_subcloning_a_video_model_leaves_what_images_lack():
    teacher = build(vit_cfg(), seed=1)
    student = build(
        classifier(
            dict(embed_dims=16, num_layers=2, expand=1),
            3,
            16,
            img_size=16,
            patch_size=4,
            num_frames=2,
        )
    )
    plan, entries = plan_from(teacher, student)
    rules = {name: entry.rule for name, entry in entries.items()}
    assert rules['pos_embed'] == rules['cls_token'] == 'copy'
    assert rules['temporal_pos_embedding'] == 'fresh'
    assert (
        student.backbone.param_roles()['temporal_pos_embedding']
        == 'temporal_pos_embed'
    )
    plan.apply(student)
    assert student(videos(2)).shape == (2, 3)


def test_one_step_of_distillation(tmp_path):
    assert_distillation_learns(tiny_student(), tmp_path)
