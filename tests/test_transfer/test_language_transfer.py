# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""From LLaMA and a pretrained Mamba to a language model."""

import pytest
import torch
from language_models import DIMS, tiny_llama, tiny_mamba, tiny_student
from mmengine.config import Config

from transmamba_mm.apis import plan_transfer
from transmamba_mm.checkpoints import LazyTensors, read_state_dict
from transmamba_mm.contract import read_teacher
from transmamba_mm.transfer import Subcloner, TransferError
from transmamba_mm.transfer.ssm import build_ssm_source


def subclone(student, teacher, ssm=None, **options):
    """The plan, applied."""
    options.setdefault('importance', 'magnitude')
    source = ssm and build_ssm_source('mamba', ssm)
    if not isinstance(teacher, dict):
        teacher = teacher.state_dict()
    plan = Subcloner(
        student, read_teacher(teacher), ssm=source, **options
    ).plan()
    plan.apply(student)
    return plan


def kept_hidden(mlp, size):
    """The hidden channels of the largest mean weights."""
    score = 0
    for weight, dim in (
        (mlp.gate_proj.weight, 1),
        (mlp.up_proj.weight, 1),
        (mlp.down_proj.weight, 0),
    ):
        mean = weight.abs().mean(dim)
        score = score + mean / mean.mean()
    return score.topk(size).indices.sort().values


@pytest.mark.parametrize('name', ['Llama', 'Mistral', 'Qwen2'])
def test_all_but_queries_keys_and_values(name):
    teacher, student = tiny_llama(name), tiny_student()
    plan = subclone(student, teacher)
    assert plan.settings['teacher_family'] == 'LLaMA'
    assert plan.settings['layer_map'] == [0, 2]
    source = teacher.model
    assert student.embed_tokens.weight.equal(source.embed_tokens.weight)
    assert student.norm_f.weight.equal(source.norm.weight)
    for layer, block in zip((0, 2), student.layers):
        theirs = source.layers[layer]
        assert block.norm.weight.equal(theirs.input_layernorm.weight)
        assert block.norm2.weight.equal(theirs.post_attention_layernorm.weight)
        assert block.mixer.out_proj.weight.equal(
            theirs.self_attn.o_proj.weight
        )
        kept = kept_hidden(theirs.mlp, 24)
        gate = theirs.mlp.gate_proj.weight
        up, down = theirs.mlp.up_proj.weight, theirs.mlp.down_proj.weight
        assert block.ffn.gate.weight.equal(gate[kept])
        assert block.ffn.up.weight.equal(up[kept])
        assert block.ffn.down.weight.equal(down[:, kept])
    fresh = {e.name for e in plan.entries if e.rule == 'fresh'}
    assert fresh == {
        n for n, _ in student.named_parameters() if '.mixer.' in n
    } - {f'layers.{i}.mixer.out_proj.weight' for i in range(2)}
    total = sum(p.numel() for p in student.parameters())
    lost = sum(p.numel() for n, p in student.named_parameters() if n in fresh)
    assert plan.coverage == pytest.approx(100 * (total - lost) / total)


def test_a_gated_ffn_of_equal_width_is_the_same_function():
    teacher = tiny_llama()
    student = tiny_student(arch=dict(ffn_dims=40)).double()
    teacher = teacher.double()
    subclone(student, teacher)
    x = torch.randn(3, DIMS, dtype=torch.float64)
    torch.testing.assert_close(
        student.layers[1].ffn(x), teacher.model.layers[2].mlp(x)
    )
    torch.testing.assert_close(
        student.layers[1].norm(x), teacher.model.layers[2].input_layernorm(x)
    )
    torch.testing.assert_close(
        student.head(student.normalise(x)),
        teacher.lm_head(teacher.model.norm(x)),
    )


def test_a_narrower_student_keeps_the_same_channels_everywhere():
    teacher = tiny_llama(tie_word_embeddings=False)
    student = tiny_student(arch=dict(embed_dims=12, tie_embeddings=False))
    plan = subclone(student, teacher)
    kept = plan.kept[12]
    source = teacher.model
    assert student.embed_tokens.weight.equal(
        source.embed_tokens.weight[:, kept]
    )
    assert student.head.weight.equal(teacher.lm_head.weight[:, kept])
    assert student.norm_f.weight.equal(source.norm.weight[kept])
    for layer, block in zip((0, 2), student.layers):
        mlp = source.layers[layer].mlp
        hidden = kept_hidden(mlp, 24)
        assert block.ffn.gate.weight.equal(
            mlp.gate_proj.weight[hidden][:, kept]
        )
        assert block.ffn.down.weight.equal(
            mlp.down_proj.weight[kept][:, hidden]
        )
        assert f'layers.{layer}.inner' in plan.selections


@pytest.mark.parametrize('tied', [True, False])
def test_heads_tied_or_not(tied):
    teacher = tiny_llama(tie_word_embeddings=tied)
    state = teacher.state_dict()
    if tied:
        del state['lm_head.weight']  # as in the released files
    for given in (state, teacher):
        student = tiny_student(arch=dict(tie_embeddings=False))
        source = read_teacher(given)
        Subcloner(student, source, importance='first').plan().apply(student)
        assert student.head.weight.equal(teacher.lm_head.weight)
        assert student.embed_tokens.weight.equal(
            teacher.model.embed_tokens.weight
        )


def test_another_vocabulary_is_not_copied():
    student = tiny_student(arch=dict(vocab_size=29))
    plan = subclone(student, tiny_llama())
    entry = plan.entries[0]
    assert entry.name == 'embed_tokens.weight' and entry.rule == 'fresh'
    assert 'shape differs on the keep axis' in entry.note


@pytest.mark.parametrize('name', ['Mamba', 'FalconMamba'])
def test_the_mixers_of_transformers_compute_the_same(name):
    donor = tiny_mamba(name)
    eps = 1e-6 if name == 'FalconMamba' else None
    mixer_cfg = dict(d_state=4, dt_rank=3, norm_bc_dt=eps)
    student = tiny_student(arch=dict(expand=2), mixer_cfg=mixer_cfg)
    plan = subclone(student, tiny_llama(), donor.state_dict())
    mixers = [e for e in plan.entries if '.mixer.' in e.name]
    assert {entry.rule for entry in mixers} == {'ssm'}
    assert not any('/' in entry.note for entry in mixers)
    x = torch.randn(2, 7, DIMS)
    mask = torch.ones(2, 7)
    mask[0, :2] = 0
    for layer, block in zip((0, 3), student.layers):
        theirs = donor.backbone.layers[layer].mixer
        with torch.no_grad():
            want = theirs(x, attention_mask=mask)
            ours = block.mixer(x, (7,), masks(mask))
        torch.testing.assert_close(
            ours[mask.bool()], want[mask.bool()], rtol=1e-5, atol=1e-5
        )


def masks(valid):
    from transmamba_mm.contract.sequences import TokenMasks

    return TokenMasks(valid.bool())


def test_a_larger_mamba_is_cut():
    """One that uses nothing but what is kept computes the same."""
    donor = tiny_mamba(
        hidden_size=24,
        state_size=6,
        time_step_rank=5,
        intermediate_size=40,
        use_bias=True,
    )
    inner = torch.arange(40) % 5 < 3  # 24 of 40
    with torch.no_grad():
        for layer in donor.backbone.layers:
            mixer = layer.mixer
            mixer.in_proj.weight[:, DIMS:] = 0
            mixer.x_proj.weight[:, ~inner] = 0
            mixer.x_proj.weight[3:5] = 0  # of the step sizes
            for start in (5, 11):  # of B, of C
                mixer.x_proj.weight[start + 4 : start + 6] = 0
            mixer.out_proj.weight[:, ~inner] = 0
    mixer_cfg = dict(d_state=4, dt_rank=3, expand=1.5, bias=True)
    student = tiny_student(mixer_cfg=mixer_cfg)
    plan = subclone(student, tiny_llama(), donor.state_dict())
    notes = {e.name.split('mixer.')[-1]: e.note for e in plan.entries}
    assert notes['in_proj.weight'] == 'inner 24/40, residual 16/24'
    assert notes['x_proj.weight'] == 'rank 3/5, state 4/6, inner 24/40'
    x = torch.randn(2, 7, DIMS)
    padded = torch.nn.functional.pad(x, (0, 8), value=3.0)
    for layer, block in zip((0, 3), student.layers):
        with torch.no_grad():
            want = donor.backbone.layers[layer].mixer(padded)[..., :DIMS]
            torch.testing.assert_close(
                block.mixer(x, (7,)), want, rtol=1e-5, atol=1e-5
            )


def test_a_smaller_mamba_is_refused():
    donor = tiny_mamba(state_size=2)
    with pytest.raises(TransferError, match='fits no SSM parameter'):
        subclone(
            tiny_student(arch=dict(expand=4)),
            tiny_llama(),
            {
                key: value
                for key, value in donor.state_dict().items()
                if 'bias' not in key
            },
        )


def test_a_folder_of_shards_gives_the_same_plan(tmp_path):
    teacher, donor = tiny_llama(), tiny_mamba()
    teacher.save_pretrained(tmp_path / 'llama', max_shard_size='8KB')
    donor.save_pretrained(tmp_path / 'mamba')
    assert len(list((tmp_path / 'llama').glob('*.safetensors'))) > 2
    state = read_state_dict(str(tmp_path / 'llama'))
    assert isinstance(state, LazyTensors)
    mixer_cfg = dict(d_state=4, dt_rank=3)
    cfg = Config(
        dict(
            model=dict(
                type='transmamba.TransMambaLM',
                arch=dict(
                    embed_dims=12, num_layers=2, vocab_size=23, ffn_dims=24
                ),
                mixer_cfg=mixer_cfg,
            ),
            custom_hooks=[
                dict(
                    type='transmamba.SubcloneInitializer',
                    teacher_ckpt=str(tmp_path / 'llama'),
                    ssm_from=str(tmp_path / 'mamba'),
                    importance='magnitude',
                    conv_init='normal',
                )
            ],
        )
    )
    plan = plan_transfer(cfg)
    student = tiny_student(arch=dict(embed_dims=12), mixer_cfg=mixer_cfg)
    source = build_ssm_source('mamba', donor.state_dict(), conv_init='normal')
    want = Subcloner(
        tiny_student(arch=dict(embed_dims=12), mixer_cfg=mixer_cfg),
        read_teacher(teacher.state_dict()),
        importance='magnitude',
        ssm=source,
    ).plan()
    assert plan.table() == want.table()
    assert plan.copied == sum(
        (e.value() if callable(e.value) else e.value).numel()
        for e in plan.entries
        if e.copied
    )
    plan.apply(student)
    other = tiny_student(arch=dict(embed_dims=12), mixer_cfg=mixer_cfg)
    want.apply(other)
    for name, value in student.state_dict().items():
        assert value.equal(other.state_dict()[name]), name


@pytest.mark.parametrize('name', ['Mamba', 'FalconMamba'])
def test_norms_of_the_mixers_must_agree(name, tmp_path):
    tiny_mamba(name).save_pretrained(tmp_path)
    state = read_state_dict(str(tmp_path))
    norms = [None, 1e-6] if name == 'FalconMamba' else [1e-6, None]
    for norm, message in zip(norms, ('set mixer_cfg', None)):
        mixer_cfg = dict(d_state=4, dt_rank=3, norm_bc_dt=norm)
        student = tiny_student(arch=dict(expand=2), mixer_cfg=mixer_cfg)
        if message is None:
            assert subclone(student, tiny_llama(), state).copied
            continue
        with pytest.raises(TransferError, match=message):
            subclone(student, tiny_llama(), state)


def test_a_teacher_without_values_gives_the_plan():
    with torch.device('meta'):
        teacher, student = tiny_llama(), tiny_student(arch=dict(embed_dims=12))
    plan = Subcloner(student, read_teacher(teacher), importance='first').plan()
    assert plan.coverage > 50
