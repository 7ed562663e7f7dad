# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The memory plan against what PyTorch's allocator has really given."""

import gc
import json

import pytest
import torch
from helpers import CONFIGS, run_tool_here
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample
from retrieval_models import clip4clip_cfg, mamba_cfg
from torch.profiler import ProfilerActivity, profile

from transmamba_mm.apis.memory_plan import MemoryPlanError, plan_memory
from transmamba_mm.distill import TransMambaDistill
from transmamba_mm.registry import MODELS

QUICKSTART = CONFIGS / 'quickstart'
MAMBA = dict(
    type='transmamba.TransMambaLM',
    arch=dict(embed_dims=32, num_layers=3, vocab_size=300, ffn_dims=48),
)
LLAMA = dict(
    type='transmamba.TransformersCausalLM',
    name_or_path=dict(
        model_type='llama',
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    ),
    # What it says of files is not asked for.
    load_pretrained=True,
)


def config(name='pmamba_scratch_digits.py', **options):
    cfg = Config.fromfile(str(QUICKSTART / name))
    cfg.merge_from_dict(options)
    return cfg


def with_model(model, pipeline, **optim_wrapper):
    optimizer = dict(type='AdamW', lr=1e-3)
    return Config(
        dict(
            model=model,
            train_dataloader=dict(
                batch_size=4, dataset=dict(pipeline=pipeline)
            ),
            optim_wrapper=dict(optimizer=optimizer, **optim_wrapper),
        )
    )


def llava(language):
    return dict(
        type='transmamba.TransLlava',
        vision_encoder=dict(
            type='transmamba.CLIPVisionTower',
            arch=dict(
                embed_dims=16,
                num_layers=2,
                num_heads=2,
                patch_size=8,
                out_channels=8,
            ),
            img_size=16,
            out_layer=-1,
        ),
        projector=dict(type='transmamba.MLPProjector', in_channels=16),
        lang_encoder=language,
        tokenizer=dict(type='transmamba.CausalTokenizer', path='nowhere'),
    )


def small():
    """What takes little time to plan."""
    arch = dict(embed_dims=16, num_layers=1, vocab_size=300)
    model = dict(llava(dict(MAMBA, arch=arch)), max_length=30)
    return with_model(model, [dict(type='Resize', scale=(16, 16))])


def built(cfg):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        settings = dict(cfg.model)
        if cfg.get('data_preprocessor') is not None:
            settings.setdefault('data_preprocessor', cfg.data_preprocessor)
        return MODELS.build(settings).train()


def allocated(step) -> int:
    """The most bytes that the CPU's allocator gave at a time."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
        step()
    events = [
        event
        for event in p.profiler.kineto_results.events()
        if event.name() == '[memory]'
    ]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def measured(model, inputs, samples) -> int:
    """Activations of a step that has been made once."""

    def step():
        losses = model(inputs, samples, mode='loss')
        model.parse_losses(losses)[0].backward()

    if isinstance(model, TransMambaDistill):
        model.schedule.progress = model.schedule.moments()[0]
    step()  # compiles kernels, makes gradients
    return allocated(step)


def images(batch, *size):
    samples = [DataSample().set_gt_label(0) for _ in range(batch)]
    return torch.rand(batch, 3, *size), samples


@pytest.mark.parametrize('with_cp', [False, True])
def test_activations_of_a_student(with_cp):
    cfg = config(**{'model.backbone.with_cp': with_cp})
    plan = plan_memory(cfg, batch=64)
    found = measured(built(cfg), *images(64, 16, 16))
    assert plan.activations == pytest.approx(found, rel=0.1)
    assert plan.sample == '16x16'
    if with_cp:
        assert plan.activations == plan.activations_with_cp
    else:
        assert plan.activations > 2 * plan.activations_with_cp


def test_activations_of_a_distillation():
    cfg = config('transmamba_deit_pmamba_digits.py')
    # It is compared with the student's, though nothing else has values.
    own = dict(type='ClsDataPreprocessor', mean=[1.0] * 3, std=[2.0] * 3)
    cfg.model.teacher.data_preprocessor = own
    plan = plan_memory(cfg, batch=64)
    model = built(cfg)
    found = measured(model, *images(64, 16, 16))
    assert plan.activations == pytest.approx(found, rel=0.1)
    taught, learnt = (
        sum(x.nbytes for x in [*part.parameters(), *part.buffers()])
        for part in (model.teacher, model)
    )
    assert (plan.teacher, plan.weights) == (taught, learnt - taught)


@pytest.mark.parametrize('language', [MAMBA, LLAMA], ids=['mamba', 'llama'])
def test_activations_of_a_language_model(language):
    if language is LLAMA:
        pytest.importorskip('transformers')
    cfg = with_model(llava(language), [dict(type='Resize', scale=(16, 16))])
    plan = plan_memory(cfg, length=200)
    cfg.model.tokenizer = dict(type='transmamba.ByteTokenizer')
    cfg.model.max_length = 200
    if language is LLAMA:
        cfg.model.lang_encoder.load_pretrained = False
    model = built(cfg)
    samples = [DataSample(question='', gt_answer='a' * 200) for _ in range(4)]
    found = measured(model, list(torch.rand(4, 1, 3, 16, 16)), samples)
    assert plan.activations == pytest.approx(found, rel=0.1)
    # A tied embedding counts once, what is frozen has no gradient.
    trained = [p for p in model.parameters() if p.requires_grad]
    assert plan.gradients == sum(p.grad.nbytes for p in trained)
    assert plan.optimizer - 2 * plan.gradients == 4 * len(trained)


def test_activations_of_a_retriever():
    pipeline = [
        dict(type='transmamba.LoadVideo', max_frames=4),
        dict(type='CenterCrop', crop_size=16),
        dict(type='transmamba.TokenizeText', max_words=6),
    ]
    for model in (mamba_cfg(), clip4clip_cfg()):
        cfg = with_model(model, pipeline)
        plan = plan_memory(cfg, batch=16)
        samples = [
            DataSample(tokens=torch.ones(1, 6, dtype=torch.long))
            for _ in range(16)
        ]
        found = measured(built(cfg), torch.rand(16, 3, 4, 16, 16), samples)
        assert plan.activations == pytest.approx(found, rel=0.1)
        assert plan.sample == '4x16x16 and 6 tokens'


@pytest.mark.parametrize(
    'optimizer',
    [
        dict(type='SGD', lr=0.1),
        dict(type='SGD', lr=0.1, momentum=0.9),
        dict(type='AdamW', lr=0.1, amsgrad=True),
        dict(type='Lamb', lr=0.1),
    ],
    ids=['SGD', 'momentum', 'amsgrad', 'Lamb'],
)
def test_state_of_optimizers(optimizer):
    cfg = small()
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=optimizer)
    cfg.model.tokenizer = dict(type='transmamba.ByteTokenizer')
    model = built(cfg)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        real = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    real.step()
    found = sum(
        value.nbytes
        for state in real.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    assert plan_memory(cfg, batch=2).optimizer == found


def test_mixed_precision_and_an_average():
    plain = plan_memory(small())
    cfg = small()
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.custom_hooks = [dict(type='EMAHook')]
    amp = plan_memory(cfg)
    assert 0.5 < amp.activations / plain.activations < 0.9
    assert (plain.average, amp.average) == (0, plain.weights)
    assert amp.weights == plain.weights


def test_shares():
    """DDP has buckets; the others share; DeepSpeed keeps masters."""
    cfg = small()
    one = plan_memory(cfg)
    ddp, fsdp = (plan_memory(cfg, 4, name) for name in ('ddp', 'fsdp'))
    assert one.exchange == 0
    assert ddp.exchange == ddp.gradients == one.gradients
    for part in ('weights', 'gradients', 'optimizer'):
        assert getattr(ddp, part) == getattr(one, part)
        assert getattr(fsdp, part) == -(-getattr(one, part) // 4)
    cfg.strategy = dict(
        type='DeepSpeedStrategy',
        bf16=dict(enabled=True),
        zero_optimization=dict(stage=2),
    )
    two = plan_memory(cfg, 4)
    cfg.strategy.zero_optimization.stage = 3
    three = plan_memory(cfg, 4)
    half = pytest.approx(one.weights / 2, rel=1e-3)
    assert (two.strategy, three.strategy) == ('zero2', 'zero3')
    assert two.weights == half
    assert three.weights == -(-two.weights // 4)
    assert two.optimizer == -(-(one.optimizer + one.gradients) // 4)
    # Scores of answers, many in so small a model, are float32 in any case.
    assert 0.5 < two.activations / one.activations < 0.95


def test_tool(monkeypatch, tmp_path, capsys):
    path = tmp_path / 'plan.json'
    run_tool_here(
        monkeypatch,
        'analysis_tools/plan_memory',
        str(QUICKSTART / 'pmamba_scratch_digits.py'),
        *('--gpus', '2', '--batch', '3', '--json', str(path)),
    )
    content = json.loads(path.read_text())
    parts = ('weights', 'teacher', 'gradients', 'optimizer', 'average')
    assert content['total'] == sum(
        content[part] for part in (*parts, 'exchange', 'activations')
    )
    lines = capsys.readouterr().out
    assert 'each of 2 GPUs, ddp, 3 samples of 16x16' in lines
    assert f'{content["total"]:,}' in lines


def test_what_is_missing_is_named():
    cfg = config()
    with pytest.raises(ValueError, match='gpus'):
        plan_memory(cfg, 0)
    with pytest.raises(MemoryPlanError, match=r'ddp, fsdp.*zero1'):
        plan_memory(cfg, strategy='zero1')
    cfg.train_dataloader = dict(batch_size=2)
    with pytest.raises(MemoryPlanError, match='size of images'):
        plan_memory(cfg)
    cfg.pop('optim_wrapper')
    with pytest.raises(MemoryPlanError, match='no optim_wrapper'):
        plan_memory(cfg)
