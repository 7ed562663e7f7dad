# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Stage one of a retrieval student: from CLIP's vision tower to videos."""

import pytest
import torch
from retrieval_models import build_random, clip4clip_cfg, mamba_cfg

from transmamba_mm.distill import TransMambaDistill
from transmamba_mm.registry import HOOKS
from transmamba_mm.transfer import TransferError

METHOD = dict(
    type='transmamba.MethodDistiller',
    methods=[dict(type='transmamba.LogitsKD')],
)
COPIES = {
    'text_encoder': 'text_encoder',
    'head.logit_scale': 'head.logit_scale',
}


def planned(student, teacher=None, **options):
    """The plan of the hook, and its entries by name."""
    model = student
    if teacher is not None:
        model = TransMambaDistill(student, teacher, METHOD)
    options = dict(dict(importance='magnitude'), **options)
    hook = HOOKS.build(dict(type='transmamba.SubcloneInitializer', **options))
    plan = hook.make_plan(model)
    return plan, {entry.name: entry for entry in plan.entries}


def as_file(path, model, names='clip.'):
    """Writes a retriever as a CLIP whose names start with something."""
    state = {}
    for key, value in model.state_dict().items():
        key = key.replace('backbone.model.', 'visual.')
        key = key.replace('text_encoder.', '').replace('head.logit', 'logit')
        state[names + key] = value
    torch.save(state, path)
    return str(path)


@pytest.fixture
def teacher():
    return build_random(clip4clip_cfg(patch_size=4))


@pytest.fixture(params=['live', 'CLIP4Clip file', 'CLIP file'])
def source(request, teacher, tmp_path):
    """Options of the hook, or the live teacher."""
    if request.param == 'live':
        return dict(teacher=teacher)
    names = 'clip.' if request.param == 'CLIP4Clip file' else ''
    return dict(teacher_ckpt=as_file(tmp_path / 'clip.pt', teacher, names))


def test_images_become_videos(teacher, source):
    """Of equal width and one layer per layer all counterparts are copied."""
    student = build_random(mamba_cfg(tubelet_size=2, num_frames=4), seed=1)
    live = source.pop('teacher', None)
    plan, entries = planned(student, live, layer_map=[0, 2], **source)
    assert plan.settings['teacher_family'] == 'CLIP vision tower'
    embed = entries['backbone.patch_embed.proj.weight']
    assert embed.note == 'inflated to 2 frames'
    assert entries['backbone.temporal_pos_embedding'].rule == 'fresh'
    assert entries['head.video_proj.weight'].note == (
        'of an embedding head, which is no classifier'
    )
    assert entries['text_encoder.ln_final.weight'].rule == 'fresh'
    plan.apply(student)
    tower, ours = teacher.backbone.model, student.backbone
    weight = ours.patch_embed.proj.weight
    assert weight[:, :, 1].equal(tower.conv1.weight)
    assert not weight[:, :, 0].any()
    assert ours.pos_embed[0].equal(tower.positional_embedding)
    assert ours.norm_f.weight.equal(tower.ln_post.weight)
    for i, j in ((0, 0), (1, 2)):
        theirs = tower.transformer.resblocks[j]
        assert ours.layers[i].norm.weight.equal(theirs.ln_1.weight)


def test_a_narrower_student_takes_some_channels(teacher):
    student = build_random(mamba_cfg(12), seed=1)
    plan, entries = planned(student, teacher)
    assert entries['backbone.cls_token'].rule == 'select'
    plan.apply(student)
    kept = plan.kept[12]
    tower = teacher.backbone.model
    assert student.backbone.norm_f.weight.equal(tower.ln_post.weight[kept])
    patch = student.backbone.patch_embed.proj.weight[:, :, 0]
    assert patch.equal(tower.conv1.weight[kept])


def test_channels_that_tuning_left_alone_are_kept(teacher, tmp_path):
    """By the CLIP that the teacher was tuned from, in half precision."""
    path = as_file(tmp_path / 'clip.pt', teacher.half(), names='')
    moved, tower = [0, 5, 6, 11], teacher.float().backbone.model
    with torch.no_grad():
        for key, value in tower.named_parameters():
            if value.shape[0] == 16 and key != 'proj':
                value[moved] += 1
    student = build_random(mamba_cfg(12), seed=1)
    options = dict(importance='least_changed', reference_ckpt=path)
    plan, _ = planned(student, teacher, **options)
    assert plan.kept[12].tolist() == [i for i in range(16) if i not in moved]


def test_the_text_tower_is_copied_whole(teacher):
    student = build_random(mamba_cfg(), seed=1)
    plan, entries = planned(student, teacher, copies=COPIES)
    entry = entries['text_encoder.ln_final.weight']
    assert (entry.rule, entry.source) == ('copy', entry.name)
    assert entry.note == 'as text_encoder is copied whole'
    plan.apply(student)
    theirs = teacher.text_encoder.state_dict()
    for key, value in student.text_encoder.state_dict().items():
        assert value.equal(theirs[key]), key
    assert student.head.logit_scale.equal(teacher.head.logit_scale)
    tokens = torch.randint(1, 19, (2, 5))
    torch.testing.assert_close(
        student.encode_texts(tokens), teacher.encode_texts(tokens)
    )


def test_it_is_copied_from_a_file_by_the_teachers_config(teacher, tmp_path):
    path = as_file(tmp_path / 'clip.pt', teacher)
    student = build_random(mamba_cfg(), seed=1)
    config = clip4clip_cfg(patch_size=4)
    plan, _ = planned(
        student, teacher_ckpt=path, teacher=config, copies=COPIES
    )
    plan.apply(student)
    ours = student.text_encoder.text_projection
    assert ours.equal(teacher.text_encoder.text_projection)
    with pytest.raises(TransferError, match='needs the teacher model'):
        planned(student, teacher_ckpt=path, copies=COPIES)


@pytest.mark.parametrize(
    ('copies', 'message'),
    [
        ({'text': 'text_encoder'}, "the student has no parameter at 'text'"),
        ({'text_encoder': 'txt'}, "the teacher has no parameter at 'txt'"),
        ({'text_encoder': 'head'}, 'only the'),
        ({'head': 'head'}, 'only the student has head.video_proj.weight'),
        (
            {'head.video_proj.weight': 'backbone.model.proj'},
            r'of shape \(8, 16\), backbone.model.proj of the teacher of',
        ),
    ],
)
def test_copies_of_other_things_are_refused(teacher, copies, message):
    with pytest.raises(TransferError, match=message):
        planned(build_random(mamba_cfg()), teacher, copies=copies)


def test_a_pretrained_text_tower_is_not_overwritten(teacher, tmp_path):
    path = as_file(tmp_path / 'clip.pt', teacher)
    config = mamba_cfg()
    init = dict(type='Pretrained', checkpoint=path)
    config['text_encoder']['init_cfg'] = init
    student = build_random(config)
    planned(student, teacher)
    with pytest.raises(TransferError, match='keep one of the two'):
        planned(student, teacher, copies=COPIES)


def test_state_space_parameters_come_from_a_videomamba(teacher, tmp_path):
    donor = build_random(mamba_cfg(), seed=5).backbone
    path = tmp_path / 'videomamba.pth'
    torch.save(donor.state_dict(), path)
    student = build_random(mamba_cfg(), seed=1)
    plan, entries = planned(student, teacher, ssm_from=str(path))
    assert entries['backbone.layers.0.mixer.A_log'].rule == 'ssm'
    plan.apply(student)
    for key in ('A_log', 'x_proj.weight', 'dt_proj_b.bias', 'in_proj.weight'):
        ours = student.backbone.layers[1].mixer.get_parameter(key)
        assert ours.equal(donor.layers[1].mixer.get_parameter(key)), key
    norm = student.backbone.layers[0].norm.weight
    first = teacher.backbone.model.transformer.resblocks[0]
    assert norm.equal(first.ln_1.weight)


def test_attention_gives_values(teacher):
    student = build_random(mamba_cfg(arch=dict(
        embed_dims=16, num_layers=2, expand=1)))  # fmt: skip
    plan, entries = planned(student, teacher, ssm_from='attention')
    assert entries['backbone.layers.0.mixer.in_proj.weight'].rule == (
        'attention'
    )
    assert plan.coverage > planned(student, teacher)[0].coverage
