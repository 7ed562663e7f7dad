# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Teachers of many kinds: each is subcloned rightly, or refused by name.

What a live teacher adds to its stream is the oracle: the student's parts with
the copied weights must add the same.
"""

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import build, pmamba_cfg, randomise, vit_cfg
from retrieval_models import vision_cfg

from transmamba_mm.checkpoints import read_state_dict
from transmamba_mm.contract import Teacher, TeacherError, read_teacher
from transmamba_mm.transfer import (
    SubcloneInitializer,
    Subcloner,
    TransferError,
)

CLOSE = dict(rtol=1e-4, atol=1e-5)


def timm_vit(name='vit_tiny_patch16_224', **kwargs):
    sizes = dict(img_size=16, patch_size=4, embed_dim=16, depth=2)
    kwargs = {
        **sizes,
        'num_heads': 2,
        'mlp_ratio': 2,
        'num_classes': 3,
        **kwargs,
    }
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, **kwargs).eval()
    randomise(model)
    return model


def mm_vit(kind='VisionTransformer', head=None, **kwargs):
    config = vit_cfg(**kwargs)
    config['backbone']['type'] = kind
    if head is not None:
        config['head'] = dict(head, num_classes=3, in_channels=16)
    return build(config, 1)


def student(**kwargs):
    norm = dict(type='LN', eps=1e-6)
    return build(pmamba_cfg(norm_cfg=norm, **kwargs), 2)


def subclone(ours, teacher, **kwargs):
    weights = read_teacher(teacher)
    plan = Subcloner(ours, weights, importance='first', **kwargs).plan()
    plan.apply(ours)
    return {entry.name: entry for entry in plan.entries}


BEIT = dict(layer_scale_init_value=0.1, out_type='cls_token', final_norm=True)
SHARED = dict(use_rel_pos_bias=False, use_shared_rel_pos_bias=True)
KINDS = {
    'timm, positions of patches alone': lambda: timm_vit(no_embed_class=True),
    'timm, registers': lambda: timm_vit(reg_tokens=4),
    'timm, 7 tokens, positions of patches alone': lambda: timm_vit(
        no_embed_class=True, reg_tokens=6
    ),
    'timm, registers and no class': lambda: timm_vit(
        class_token=False, reg_tokens=4, global_pool='avg', fc_norm=False
    ),
    'timm, norms of queries and keys': lambda: timm_vit(qk_norm=True),
    'timm, LayerScale, no biases': lambda: timm_vit(
        init_values=0.1, qkv_bias=False, proj_bias=False
    ),
    'timm, attention pooling': lambda: timm_vit('vit_base_patch16_siglip_224'),
    'timm, norm after pooling': lambda: timm_vit(global_pool='avg'),
    'timm, no square': lambda: timm_vit(img_size=(8, 32)),
    'timm, any size': lambda: timm_vit(dynamic_img_size=True),
    'timm DeiT, distilled': lambda: timm_vit(
        'deit_tiny_distilled_patch16_224'
    ),
    'timm DeiT III': lambda: timm_vit('deit3_small_patch16_224'),
    'timm DINOv2': lambda: timm_vit('vit_small_patch14_reg4_dinov2'),
    'timm BEiT': lambda: timm_vit('beit_base_patch16_224'),
    'timm BEiT, positions': lambda: timm_vit(
        'beit_base_patch16_224', use_abs_pos_emb=True, init_values=0.1
    ),
    'timm EVA': lambda: timm_vit('eva_giant_patch14_224'),
    'timm DINOv3': lambda: timm_vit('vit_small_patch16_dinov3'),
    'mmpretrain, no class token': lambda: mm_vit(
        with_cls_token=False, out_type='avg_featmap'
    ),
    'mmpretrain, LayerScale': lambda: mm_vit(layer_scale_init_value=0.1),
    'mmpretrain, no square': lambda: mm_vit(img_size=(8, 32)),
    'mmpretrain, overlap': lambda: mm_vit(
        img_size=17, patch_cfg=dict(stride=3)
    ),
    'mmpretrain BEiT': lambda: mm_vit('BEiTViT', **BEIT),
    'mmpretrain BEiT, positions': lambda: mm_vit(
        'BEiTViT', use_abs_pos_emb=True, **SHARED, **BEIT
    ),
    'mmpretrain BEiT without scale': lambda: mm_vit(
        'BEiTViT', **{**BEIT, 'layer_scale_init_value': 0}
    ),
    'mmpretrain MAE': lambda: build(mae(), 1),
}


def mae():
    backbone = vit_cfg()['backbone']
    return dict(
        type='mmpretrain.MAE',
        backbone=dict(backbone, type='MAEViT', mask_ratio=0.0),
        neck=dict(
            type='MAEPretrainDecoder',
            num_patches=16,
            patch_size=4,
            embed_dim=16,
            decoder_embed_dim=8,
            decoder_depth=1,
            decoder_num_heads=2,
        ),
        head=dict(
            type='MAEPretrainHead',
            patch_size=4,
            loss=dict(type='PixelReconstructionLoss', criterion='L2'),
        ),
    )


@torch.no_grad()
def watched(model, images, teacher):
    """What goes into and out of the teacher's parts."""
    seen, handles = {}, []

    def watch(name, module):
        def hook(_, inputs, output):
            seen[name] = (inputs[0], output)

        handles.append(module.register_forward_hook(hook))

    for i, layer in enumerate(teacher.layers):
        watch(f'{i}.layer', model.get_submodule(layer))
        for part in ('ffn_norm', 'mixer_out'):
            watch(f'{i}.{part}', teacher.module(f'layers.{i}.{part}.weight'))
    kind = type(model).__name__
    model(images) if kind != 'MAE' else model.backbone(images, mask=None)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_the_students_parts_add_what_the_teachers_do(kind):
    model = KINDS[kind]()
    teacher = Teacher(model)
    size = tuple(side * 4 for side in teacher.grid)
    ours = student(img_size=size)
    entries = subclone(ours, model)
    assert not [x for x in entries.values() if x.differs]
    if 'overlap' in kind:
        size = (17, 17)
    images = torch.randn(2, 3, *size)
    seen = watched(model, images, teacher)
    for i, layer in enumerate(ours.backbone.layers):
        mixed, _ = seen[f'{i}.mixer_out']
        before, after = seen[f'{i}.layer']
        middle, _ = seen[f'{i}.ffn_norm']
        out = layer.mamba.out_proj
        torch.testing.assert_close(out(mixed), middle - before, **CLOSE)
        layer.norm2.eps = teacher.module(f'layers.{i}.ffn_norm.weight').eps
        ffn = layer.ffn(layer.norm2(middle), identity=torch.zeros(()))
        torch.testing.assert_close(ffn, after - middle, **CLOSE)
    if 'overlap' in kind:
        return  # another stride is another embedding
    embedded, _ = ours.backbone.patch_embed(images)
    if entries['backbone.pos_embed'].value is not None:
        embedded = embedded + ours.backbone.pos_embed
        assert entries['backbone.pos_embed'].rule == 'copy'
    else:
        assert 'BEiT' in kind or kind == 'timm DINOv3'
    first = seen['0.layer'][0][:, teacher.num_extra_tokens :]
    torch.testing.assert_close(embedded, first, **CLOSE)


# ------------------------------------------------------ other functions


def differences(ours, teacher):
    plan = Subcloner(ours, read_teacher(teacher), importance='first').plan()
    assert plan.to_dict()['differences'] == plan.differences
    assert all(each in plan.table() for each in plan.differences)
    noted = [x.name for x in plan.entries if x.differs and x.differs in x.note]
    return plan.differences, noted


NORMS = ['norm.weight', 'norm.bias', 'norm2.weight', 'norm2.bias']
ALL_NORMS = [f'backbone.layers.{i}.{x}' for i in range(2) for x in NORMS]
FINAL = ['backbone.ln1.weight', 'backbone.ln1.bias']


@pytest.mark.parametrize('by_file', [False, True])
def test_the_plan_names_norms_of_another_kind(by_file):
    rms, ln = timm_vit('test_vit4'), timm_vit()
    other = build(pmamba_cfg(norm_cfg=dict(type='transmamba.RMSNorm')), 2)
    sources = [x.state_dict() if by_file else x for x in (rms, ln)]
    (found,), noted = differences(student(), sources[0])
    assert 'in the teacher, LayerNorm, eps 1e-06 in the student' in found
    assert sorted(noted) == sorted(ALL_NORMS + FINAL)
    # The final norm of this student is a LayerNorm at all events.
    assert differences(other, sources[0])[1] == FINAL
    assert differences(student(), sources[1]) == ([], [])
    weights = [name for name in ALL_NORMS if name.endswith('weight')]
    assert differences(other, sources[1])[1] == weights


def test_an_eps_is_another_function_if_it_matters():
    for eps, count in ((1e-5, 0), (1e-12, 0), (1e-2, 8)):
        ours = build(pmamba_cfg(norm_cfg=dict(type='LN', eps=eps)), 2)
        found, noted = differences(ours, timm_vit())
        assert (len(found), len(noted)) == (count > 0, count)


def test_the_plan_names_another_activation():
    """CLIP's QuickGELU; the approximation by tanh is as good as GELU."""
    names = [f'backbone.layers.{i}.ffn.layers.0.0' for i in range(2)]
    expected = [f'{x}.{leaf}' for x in names for leaf in ('weight', 'bias')]
    relu = timm_vit(act_layer=torch.nn.ReLU)
    for model, value in ((build(vision_cfg()), '-0.154'), (relu, '0.000')):
        (found,), noted = differences(student(), model)
        assert f'its activation is f(-1) = {value}' in found
        assert sorted(noted) == sorted(expected)
    for act in ('gelu', 'gelu_tanh'):
        assert differences(student(), timm_vit(act_layer=act)) == ([], [])


@pytest.mark.parametrize('norm', ['rmsnorm', 'layernorm'])
def test_the_hook_warns_of_what_the_model_of_a_file_computes(norm, tmp_path):
    """The model knows what the file does not: LayerNorms without a bias."""
    config = dict(
        type='mmpretrain.TimmClassifier',
        model_name='vit_tiny_patch16_224',
        norm_layer=norm,
        img_size=16,
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_heads=2,
    )
    path = str(tmp_path / 'teacher.pth')
    torch.save(dict(build(config, 1).state_dict()), path)
    hook = SubcloneInitializer(path, importance='first', teacher=config)
    plan = hook.make_plan(student())
    assert len(plan.differences) == (norm == 'rmsnorm')


# --------------------------------------------------------------- refused


def timm_swin(name='swin_tiny_patch4_window7_224', depths=(2, 1)):
    sizes = dict(img_size=32, patch_size=4, embed_dim=16, window_size=2)
    heads = (2,) * len(depths)
    return timm.create_model(name, **sizes, depths=depths, num_heads=heads)


def res_post():
    block = timm.models.vision_transformer.ResPostBlock
    return timm_vit(block_fn=block)


def classifier(kind, **backbone):
    backbone['type'] = kind
    return build(dict(type='mmpretrain.ImageClassifier', backbone=backbone))


def swin_v2():
    arch = dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2])
    arch['extra_norm_every_n_blocks'] = 0
    sizes = dict(img_size=64, patch_size=4, window_size=[2] * 4)
    return classifier('SwinTransformerV2', arch=arch, **sizes)


def hivit():
    arch = dict(embed_dims=16, depths=[1, 1, 2], num_heads=2)
    return classifier('HiViT', arch=arch, img_size=64)


SWIGLU = dict(layer_cfgs=dict(ffn_type='swiglu_fused'))
# What is refused, what the message names, and whether a file tells as much.
REFUSED = {
    'timm Swin': (timm_swin, 'no layers.0.patch_embed', True),
    'timm Swin of one stage': (
        lambda: timm_swin(depths=(2,)),
        'no layers.0.patch_embed',
        True,
    ),
    'timm Swin v2': (
        lambda: timm_swin('swinv2_tiny_window8_256'),
        'no layers.0.patch_embed',
        True,
    ),
    'timm, norm in attention': (
        lambda: timm_vit(scale_attn_norm=True),
        'blocks.0.attn.norm.weight',
        True,
    ),
    'timm, norm in FFN': (
        lambda: timm_vit(scale_mlp_norm=True),
        'blocks.0.mlp.norm.weight',
        True,
    ),
    'timm, gated FFN': (
        lambda: timm_vit('vit_giant_patch14_reg4_dinov2'),
        '32 hidden channels, blocks.0.mlp.fc2.weight for 16',
        True,
    ),
    'timm, norm after attention': (res_post, 'ResPostBlock', False),
    'timm, relative positions': (
        lambda: timm_vit('vit_relpos_medium_patch16_224'),
        'relative positions',
        False,
    ),
    'timm, stem of convolutions': (
        lambda: timm_vit('vit_tiny_r_s16_p8_224', img_size=32, patch_size=8),
        'patch_embed.backbone',
        True,
    ),
    'timm SAM': (
        lambda: timm_vit('samvit_base_patch16'),
        'blocks.0.attn.rel_pos_h',
        True,
    ),
    'timm EVA-02, gated FFN': (
        lambda: timm_vit('eva02_small_patch14_224'),
        'blocks.0.',
        True,
    ),
    'timm EVA, norm after attention': (
        lambda: timm_vit('eva_giant_patch14_224', use_post_norm=True),
        'EvaBlockPostNorm',
        False,
    ),
    'timm CaiT': (
        lambda: timm_vit('cait_xxs24_224'),
        'blocks.0.attn.proj_l',
        True,
    ),
    'timm ConViT': (
        lambda: timm_vit('convit_tiny', local_up_to_layer=1),
        'not numbered through',
        True,
    ),
    'timm Hiera': (
        lambda: timm.create_model(
            'hiera_tiny_224', img_size=64, embed_dim=16, stages=(1, 1, 1, 1)
        ),
        'blocks.1.proj.weight',
        True,
    ),
    'mmpretrain, gated FFN': (
        lambda: mm_vit(**SWIGLU),
        'no backbone.layers.0.ffn.layers.0.0',
        True,
    ),
    'mmpretrain, two streams': (
        lambda: mm_vit('RevVisionTransformer', final_norm=True),
        'for 32',
        True,
    ),
    'mmpretrain DeiT III': (
        lambda: mm_vit('DeiT3'),
        'FFNs on ln1 in place of ln2',
        False,
    ),
    'mmpretrain EVA-02': (
        lambda: mm_vit('ViTEVA02'),
        'no backbone.layers.0.ln1',
        True,
    ),
    'mmpretrain Swin v2': (swin_v2, 'attn.w_msa.logit_scale', True),
    'mmpretrain HiViT': (hivit, 'not numbered through', True),
}


# Only the sites of these are known.
WATCHED = (
    'timm, norm in attention',
    'timm, norm in FFN',
    'timm, gated FFN',
    'timm, relative positions',
    'timm, stem of convolutions',
    'timm EVA-02, gated FFN',
    'mmpretrain, gated FFN',
    'mmpretrain DeiT III',
)


@pytest.mark.parametrize('kind', REFUSED)
def test_what_computes_something_else_is_refused_by_name(kind):
    make, named, also_by_file = REFUSED[kind]
    model = make()
    for source in [model, *[model.state_dict()] * also_by_file]:
        with pytest.raises(TeacherError, match='no known Transf') as error:
            read_teacher(source)
        assert named in str(error.value)
    if kind in WATCHED:
        assert Teacher(model).layers
        return
    with pytest.raises(TeacherError, match='no known Transformer'):
        Teacher(model)


def test_files_without_a_scale_are_not_told_from_relatives():
    model = timm_vit('eva_giant_patch14_224')
    with pytest.raises(TeacherError, match=r'attn\.q_bias'):
        read_teacher(model.state_dict())
    assert read_teacher(model).family == 'timm BEiT, EVA or DINOv3'


@pytest.mark.parametrize(
    'name',
    ['layers.1.scale', 'layers.0.ffn.gain', 'layers.0.attn.gamma', 'mix'],
)
def test_a_tensor_of_another_name_is_refused(name):
    state = mm_vit().state_dict()
    state[f'backbone.{name}'] = torch.ones(16)
    with pytest.raises(TeacherError, match=f'it has backbone.{name}'):
        read_teacher(state)


def test_widths_must_agree_in_a_file():
    state = mm_vit().state_dict()
    state['backbone.layers.1.ln2.weight'] = torch.ones(12)
    with pytest.raises(TeacherError, match='for 12'):
        read_teacher(state)


# ------------------------------------------------------------- positions


def resized(positions, source, grid):
    maps = positions.mT.unflatten(2, source)
    maps = F.interpolate(maps, grid, mode='bicubic', align_corners=False)
    return maps.flatten(2).mT


def timm_classifier(**kwargs):
    sizes = dict(patch_size=4, embed_dim=16, depth=2, num_heads=2)
    kind = dict(type='mmpretrain.TimmClassifier', num_classes=3)
    return build(
        dict(model_name='vit_tiny_patch16_224', **kind, **sizes, **kwargs), 1
    )


@pytest.mark.parametrize('make', [mm_vit, timm_vit, timm_classifier])
@pytest.mark.parametrize('size', [(16, 16), (32, 8), (12, 20)])
@pytest.mark.parametrize('by_file', [False, True])
def test_positions_lie_on_the_grid_of_the_model(make, size, by_file, tmp_path):
    model = make(img_size=(8, 32))
    ours, source = student(img_size=size), model
    if by_file:  # 2x8 positions: their number is a square
        torch.save(model.state_dict(), tmp_path / 'teacher.pth')
        source = read_state_dict(str(tmp_path / 'teacher.pth'))
    entry = subclone(ours, source)['backbone.pos_embed']
    positions = Teacher(model).parameter('pos_embed')[:, 1:]
    grid = ours.backbone.patch_embed.init_out_size
    assert entry.note == '2x8 to {}x{}'.format(*grid)
    expected = resized(positions, (2, 8), grid)
    torch.testing.assert_close(ours.backbone.pos_embed, expected, **CLOSE)


def test_the_plan_says_where_a_grid_is_taken_for_square():
    state = mm_vit().state_dict()
    for source, note in (state, ''), (dict(state), '4x4 (taken for square)'):
        entry = subclone(student(), source)['backbone.pos_embed']
        assert (entry.rule, entry.note) == ('copy', note)
    entry = subclone(student(img_size=20), dict(state))['backbone.pos_embed']
    assert entry.note == '4x4 (taken for square) to 5x5'


def test_positions_of_patches_alone_are_resized():
    model = timm_vit(no_embed_class=True, img_size=32)
    for source in (model, model.state_dict()):
        ours = student()
        subclone(ours, source)
        expected = resized(model.pos_embed, (8, 8), (4, 4))
        torch.testing.assert_close(ours.backbone.pos_embed, expected, **CLOSE)


@pytest.mark.parametrize(
    ('teacher', 'size', 'message'),
    [
        # 2x8 here, 4x4 there: a file tells neither.
        (dict(img_size=(8, 32)), (8, 32), 'may be 4x4, or 2x8'),
        (dict(img_size=(8, 24)), (8, 24), '12 patch positions'),
        # 16 positions are a square, and 9 and 7 of other tokens as well.
        (
            dict(reg_tokens=6, no_embed_class=True),
            16,
            r'9 patch positions \(of 16\)',
        ),
    ],
)
def test_a_file_that_does_not_tell_its_grid_is_refused(teacher, size, message):
    model = timm_vit(**teacher)
    with pytest.raises((TransferError, TeacherError), match=message) as error:
        subclone(student(img_size=size), dict(model.state_dict()))
    assert 'teacher=dict(...) of SubcloneInitializer' in str(error.value)
    entries = subclone(student(img_size=size), model)
    assert entries['backbone.pos_embed'].rule == 'copy'


def test_the_hook_reads_the_grid_of_the_teacher_it_is_given(tmp_path):
    config = vit_cfg(img_size=(8, 32))
    model, path = build(config, 1), str(tmp_path / 'teacher.pth')
    torch.save(dict(model.state_dict()), path)
    hook = SubcloneInitializer(path, importance='first', teacher=config)
    ours = student()
    hook.make_plan(ours).apply(ours)
    expected = resized(model.backbone.pos_embed[:, 1:], (2, 8), (4, 4))
    torch.testing.assert_close(ours.backbone.pos_embed, expected, **CLOSE)


# ----------------------------------------------------------------- heads


def stacked(*middle):
    return dict(type='StackedLinearClsHead', mid_channels=list(middle))


def with_head(head):
    config = pmamba_cfg()
    config['head'] = dict(head, num_classes=3, in_channels=16)
    return build(config, 2)


LINEAR = dict(type='LinearClsHead')
HIDDEN = dict(type='VisionTransformerClsHead', hidden_dim=16)


@pytest.mark.parametrize(
    'head', [stacked(64), stacked(3), stacked(48), HIDDEN]
)
def test_a_head_of_several_layers_is_no_linear_one(head):
    ours, linear = with_head(head), with_head(LINEAR)
    before = {k: v.clone() for k, v in ours.head.state_dict().items()}
    subclone(ours, mm_vit(head=LINEAR))
    after = ours.head.state_dict()
    assert all(after[name].equal(value) for name, value in before.items())
    before = linear.head.fc.weight.clone()
    entries = subclone(linear, mm_vit(head=head))
    assert linear.head.fc.weight.equal(before)
    note = entries['head.fc.weight'].note
    assert note.startswith(
        "the teacher's head is no linear layer: head.layers"
    )


@pytest.mark.parametrize('by_file', [False, True])
def test_a_head_that_scores_cosines_is_no_linear_one(by_file):
    cosines = dict(type='ArcFaceClsHead')
    ours, teacher = with_head(LINEAR), mm_vit(head=cosines)
    entries = subclone(ours, teacher.state_dict() if by_file else teacher)
    assert 'no linear layer' in entries['head.fc.weight'].note
    entries = subclone(with_head(cosines), mm_vit(head=LINEAR))
    assert entries['head.norm_product.weight'].value is None


@pytest.mark.parametrize(
    'head',
    [
        LINEAR,
        dict(type='VisionTransformerClsHead'),
        dict(type='MultiLabelLinearClsHead'),
        dict(type='DeiTClsHead'),
    ],
)
def test_a_linear_head_is_paired_under_any_name(head):
    kind = 'DistilledVisionTransformer'
    kind = kind if head['type'] == 'DeiTClsHead' else 'VisionTransformer'
    teacher, ours = mm_vit(kind, head=head), with_head(LINEAR)
    entries = subclone(ours, teacher)
    source = teacher.state_dict()[entries['head.fc.weight'].source]
    assert ours.head.fc.weight.equal(source)
    assert 'dist' not in entries['head.fc.weight'].source


def test_a_head_behind_something_else_is_not_paired():
    for teacher, name in (
        (timm_vit('vit_base_patch16_siglip_224'), 'attn_pool'),
        (mm_vit(out_type='avg_featmap'), 'backbone.ln2'),
    ):
        entries = subclone(with_head(LINEAR), teacher)
        assert entries['head.fc.weight'].value is None
        assert f'head reads {name}' in entries['head.fc.weight'].note


def test_a_norm_after_pooling_stands_in_for_the_final_norm():
    teacher, ours = timm_vit(global_pool='avg'), student()
    entries = subclone(ours, teacher)
    assert entries['backbone.ln1.weight'].source == 'fc_norm.weight'
    assert ours.backbone.ln1.weight.equal(teacher.fc_norm.weight)
    assert ours.head.fc.weight.equal(teacher.head.weight)
