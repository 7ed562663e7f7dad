# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Losses that count for a time, and phases in which only some things train."""

import copy
import json
import re
from types import SimpleNamespace

import pytest
import torch
from distill_cases import METHODS, SAME, method, of_methods
from helpers import (
    TinyPictures,
    snapshot,
    tiny_batch,
    tiny_runner,
    tiny_student,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import distributed
from torch.utils.data import DataLoader

from transmamba_mm.distill import (
    DistillMonitor,
    DistillScheduleHook,
    MethodDistiller,
    Phase,
    Schedule,
    Span,
)
from transmamba_mm.distill.schedule import within_phases
from transmamba_mm.registry import MODELS

MIXER = re.compile(r'backbone\.layers\.\d\.(norm|mamba)\..+')
DECAYS = ('none', 'linear', 'cosine')


# ----------------------------------------------------------------- spans


shares = st.floats(0, 1, allow_subnormal=False)


@st.composite
def spans(draw, decays=DECAYS):
    begin, end = sorted(draw(st.tuples(shares, shares)))
    if end - begin < 1e-3:
        begin, end = 0.0, 1.0
    warmup = draw(shares) * (end - begin)
    warmup = warmup if warmup > 1e-4 else 0
    return Span(begin, end, warmup, draw(st.sampled_from(decays)))


inside = st.tuples(spans(), shares).map(
    lambda x: (x[0], x[0].begin + x[1] * (x[0].end - x[0].begin))
)
many = settings(max_examples=200, deadline=None)


@many
@given(spans(), shares)
def test_a_factor_is_a_share_and_0_outside_of_its_span(span, progress):
    factor = span.factor(progress)
    assert 0 <= factor <= 1
    if not span.begin <= progress < span.end:
        assert factor == 0


@many
@given(inside)
def test_it_grows_while_it_warms_up_and_falls_thereafter(case):
    span, progress = case
    before, after = (span.factor(progress - d) for d in (1e-4, 0))
    if not span.begin <= progress - 1e-4 < progress < span.end:
        return
    if progress < span.begin + span.warmup:
        assert after > before
    elif progress - 1e-4 > span.begin + span.warmup:
        assert after < before or span.decay == 'none' or before < 1e-6


@many
@given(inside, st.floats(0, 1e-3))
def test_it_does_not_jump_between_begin_and_end(case, step):
    span, progress = case
    if not progress + step < span.end:
        return
    rest = span.end - span.begin - span.warmup
    slopes = [1 / x for x in (span.warmup, rest) if x > 0]
    bound = 1.6 * step * max(slopes) + 1e-6
    jump = abs(span.factor(progress + step) - span.factor(progress))
    assert jump <= bound


@many
@given(spans())
def test_its_highest_value_is_1(span):
    top = span.begin + span.warmup
    rest = span.end - top
    if rest > 1e-6:
        assert span.factor(top + 1e-9) == pytest.approx(1, abs=1e-2)
        middle, last = (
            span.factor(top + rest / 2),
            span.factor(span.end - 1e-9),
        )
        wanted = (1, 1) if span.decay == 'none' else (0.5, 0)
        assert (middle, last) == pytest.approx(wanted, abs=1e-2)
    if span.warmup > 1e-6:
        assert span.factor(span.begin) == 0
        halfway = span.factor(span.begin + span.warmup / 2)
        assert halfway == pytest.approx(0.5, abs=1e-3)


def test_a_warmup_may_take_the_whole_span():
    """In decimals, which are no exact numbers."""
    for begin in range(100):
        for end in range(begin + 1, 101):
            warmup = (end - begin) / 100
            span = Span(begin / 100, end / 100, warmup, 'linear')
            assert 0 < span.factor((end - 1e-9) / 100) <= 1


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(begin=0.5, end=0.5), 'got 0.5 and 0.5'),
        (dict(begin=-0.1), 'got -0.1 and 1'),
        (dict(end=60), 'shares of the training.*got 0.0 and 60'),
        (dict(warmup=-0.1), 'warmup must lie between 0 and .* = 1, got -0.1'),
        (dict(begin=0.5, warmup=0.6), 'end - begin = 0.5, got 0.6'),
        (dict(decay='step'), "none, linear, cosine, got 'step'"),
    ],
)
def test_mistakes_of_a_span(options, message):
    with pytest.raises(ValueError, match=message):
        Span(**options)


# ---------------------------------------------------------------- phases


def test_phases_follow_each_other_and_then_everything_trains():
    first, second = Phase(0.2, 'mixers', False), Phase(0.5, ('head',))
    schedule = Schedule(phases=[first, second])
    assert not schedule.constant
    found = {}
    for schedule.progress in (0.0, 0.19, 0.2, 0.49, 0.5, 0.99):
        found[schedule.progress] = schedule.now()[0]
    assert (
        list(found.values()) == [first, first, second, second] + [Phase()] * 2
    )
    assert Phase() == Phase(1.0, 'all', True)


def test_factors_are_those_of_the_losses_that_count():
    schedule = Schedule(dict(a=Span(0.5), b=Span(0, 0.5, decay='linear')))
    losses = ['a', 'b', 'somebody']
    schedule.progress = 0.25
    assert schedule.factors(losses) == dict(b=0.5, somebody=1)
    schedule.progress = 0.5
    assert schedule.factors(losses) == dict(a=1, somebody=1)


def test_without_a_schedule_nobody_need_keep_the_time():
    schedule = Schedule(dict(a=Span()))
    assert schedule.constant
    assert schedule.now() == (Phase(), 0)
    assert schedule.factors(['a']) == dict(a=1)


@pytest.mark.parametrize('ends', [(0.5, 0.2), (0.5, 0.5), (0,), (1.1,)])
def test_phases_end_one_after_the_other(ends):
    with pytest.raises(ValueError, match='above 0 and at most at 1'):
        Schedule(phases=[Phase(end) for end in ends])


# ------------------------------------------------------------- the model


KL = method('LogitsKD')
HIDDEN = method('HiddenStates')
MIXERS = method('MixerMatching')
WARM = dict(end=0.5, trains='mixers', task_loss=False)
RECIPE = [
    dict(MIXERS, end=0.5),
    dict(HIDDEN, begin=0.5),
    dict(KL, begin=0.5),
]


@pytest.fixture
def scheduled(make):
    """Builds a distillation to a student as wide as the teacher."""

    def build(*methods, phases=(), student=None, **kwargs):
        distiller = of_methods(*methods, phases=phases, **kwargs)
        student = student or tiny_student(
            arch=dict(embed_dims=16, num_layers=2)
        )
        return make(architecture=student, distiller=distiller)

    return build


def test_a_schedule_wants_somebody_to_keep_the_time(scheduled, tmp_path):
    model = scheduled(dict(KL, end=0.5))
    with pytest.raises(RuntimeError, match='DistillScheduleHook') as caught:
        tiny_runner(tmp_path, model).train()
    assert 'default_hooks' in str(caught.value)
    images, samples = tiny_batch()
    model.eval()
    assert model(images, mode='tensor').shape == (4, 3)
    assert len(model(images, samples, mode='predict')) == 4


@pytest.mark.parametrize(
    ('phase', 'message'),
    [
        (dict(trains='mixer'), r"trains 'mixer', .*'mixer_norm'.*'ssm'"),
        (dict(trains='ssm_and_more'), "trains 'ssm_and_more'"),
        (dict(trains=['ssm', 'mixer_ouut']), "trains 'mixer_ouut'"),
        (dict(WARM, end=0.6), 'from 0.5 to 0.6 of the training no loss'),
    ],
)
def test_mistakes_of_a_phase(scheduled, phase, message):
    with pytest.raises(ValueError, match=message):
        scheduled(dict(MIXERS, end=0.5), phases=[phase])


def test_a_gap_where_the_task_has_no_loss(make):
    settings = dict(
        architecture=tiny_student(arch=dict(embed_dims=16, num_layers=2)),
        distiller=of_methods(dict(KL, end=0.5)),
    )
    make(**settings)
    with pytest.raises(ValueError, match='to 1 of the training no loss'):
        make(**settings, calculate_student_loss=False)


def test_a_misspelt_option_of_a_phase(scheduled):
    with pytest.raises(TypeError, match='train'):
        scheduled(MIXERS, phases=[dict(train='mixers')])


def held(model):
    moved = {id(p) for p in model.held_parameters()}
    named = model.student.named_parameters()
    return {name for name, p in named if id(p) in moved}


def test_what_phases_hold(scheduled):
    phases = [
        dict(end=0.2, trains='mixers'),
        dict(end=0.4, trains='ssm'),
        dict(end=0.6, trains=['ffn_in', 'ffn_out', 'head']),
    ]
    model = scheduled(KL, phases=phases)
    names = {name for name, _ in model.student.named_parameters()}
    mixers = {name for name in names if MIXER.fullmatch(name)}
    scans = {x for x in mixers if 'mamba' in x and 'out_proj' not in x}
    ffns = {x for x in names if 'ffn' in x or 'head' in x}
    assert len(ffns) == 10
    for progress, trains in ((0, mixers), (0.2, scans), (0.4, ffns)):
        model.schedule.progress = progress
        assert held(model) == names - trains
    model.schedule.progress = 0.6
    assert held(model) == set()


def test_of_several_students_all_mixers_train(scheduled, teacher_ckpt):
    tower = tiny_student(arch=dict(embed_dims=16, num_layers=2))
    model = scheduled(
        dict(MIXERS, student_backbone='backbone', teacher_backbone='backbone'),
        student=two_towers(tower),
        phases=[dict(end=0.5, trains='mixers')],
    )
    model.schedule.progress = 0
    trains = {n for n, _ in model.student.named_parameters()} - held(model)
    assert {name.split('.')[0] for name in trains} == {'backbone', 'other'}


def two_towers(config):
    model = MODELS.build(config)
    model.other = copy.deepcopy(model.backbone)
    return model


# ---------------------------------------------------------------- the runs


class Watch(Hook):
    """Keeps what every step does: who runs, what moves, what is logged."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.calls = dict(student=[], teacher=[])
        self.moved, self.norms, self.losses = [], [], []

    def before_train(self, runner):
        model = runner.model
        for name in self.calls:
            getattr(model, name).register_forward_pre_hook(
                lambda *_, name=name: self._count(name)
            )
        self.last = self._state(model)

    def _count(self, name):
        if self.calls[name]:  # after the check before the first step
            self.calls[name][-1] += 1

    def _state(self, model):
        return {k: p.detach().clone() for k, p in model.named_parameters()}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        for calls in self.calls.values():
            calls.append(0)

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        state = self._state(runner.model)
        self.moved.append(
            {k for k, value in state.items() if not value.equal(self.last[k])}
        )
        self.last = state
        self.losses.append({k: v for k, v in outputs.items() if 'loss' in k})
        if 'train/grad_norm' in runner.message_hub.log_scalars:
            norm = runner.message_hub.get_scalar('train/grad_norm')
            self.norms.append(norm.current())


SGD = dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=0.1)
# What has no gradient stands still.
ADAM = dict(type='Adam', lr=1e-3)
ADAMW = dict(type='AdamW', lr=1e-3, weight_decay=0.1)


def run(tmp_path, model, steps=4, optimizer=SGD, hooks=(), size=4, **wrapper):
    """Trains for some steps; returns what happened."""
    wrapper.setdefault('clip_grad', dict(max_norm=0.01))
    watch = Watch()
    loader = DataLoader(
        TinyPictures(size * steps), size, collate_fn=pseudo_collate
    )
    tiny_runner(
        tmp_path,
        model,
        train_dataloader=loader,
        optim_wrapper=dict(optimizer=optimizer, **wrapper),
        custom_hooks=[DistillScheduleHook(), *hooks, watch],
        log_processor=dict(window_size=1),
        visualizer=dict(
            type='UniversalVisualizer',
            vis_backends=[dict(type='LocalVisBackend')],
        ),
    ).train()
    return watch


def student_names(model, pattern=r'.+'):
    names = (f'architecture.{n}' for n, _ in model.student.named_parameters())
    return {x for x in names if re.fullmatch(rf'architecture\.{pattern}', x)}


def test_a_phase_has_a_learning_rate_of_its_own(scheduled, tmp_path):
    """Twice the rate moves twice as far; the scheduler goes on unmoved."""
    sgd = dict(type='SGD', lr=0.1)
    moved = []
    for i, lr_mult in enumerate((1.0, 2.0)):
        torch.manual_seed(0)
        model = scheduled(*RECIPE, phases=[dict(WARM, lr_mult=lr_mult)])
        start = snapshot(model)
        rates = Rates()
        run(tmp_path / str(i), model, 1, sgd, [rates], clip_grad=None)
        moved.append({k: x - start[k] for k, x in snapshot(model).items()})
        assert rates.seen == [0.1]
    plain, doubled = moved
    assert any(x.any() for x in plain.values())
    for name, way in plain.items():
        torch.testing.assert_close(
            doubled[name], 2 * way, rtol=1e-3, atol=1e-6
        )


class Rates(Hook):
    """What others see of the learning rate after a step."""

    def __init__(self):
        self.seen = []

    def after_train_iter(self, runner, *args, **kwargs):
        groups = runner.optim_wrapper.param_groups
        self.seen += {group['lr'] for group in groups}


@pytest.mark.parametrize('optimizer', [SGD, ADAMW], ids=['SGD', 'AdamW'])
def test_mixers_first_then_everything(scheduled, tmp_path, optimizer):
    model = scheduled(*RECIPE, phases=[WARM])
    watch = run(tmp_path, model, optimizer=optimizer)
    mixers = student_names(model, MIXER.pattern)
    assert len(mixers) > 20
    assert watch.moved[:2] == [mixers] * 2
    assert watch.moved[2:] == [student_names(model)] * 2
    assert watch.calls == dict(student=[0, 0, 1, 1], teacher=[1] * 4)
    late = {'loss', 'student.loss', 'distill.loss_hidden', 'distill.loss_kl'}
    assert list(map(set, watch.losses)) == [
        *[{'loss', 'distill.loss_mixer'}] * 2,
        *[late] * 2,
    ]


@pytest.mark.parametrize('optimizer', [SGD, ADAMW], ids=['SGD', 'AdamW'])
def test_what_has_momentum_stands_still_and_goes_on(
    scheduled, tmp_path, optimizer
):
    phases = [dict(end=1 / 3), dict(end=2 / 3, trains='mixers')]
    model = scheduled(KL, phases=phases)
    watch = run(tmp_path, model, steps=6, optimizer=optimizer)
    everything = student_names(model)
    mixers = student_names(model, MIXER.pattern)
    for step, wanted in enumerate([everything, mixers, everything]):
        assert watch.moved[2 * step : 2 * step + 2] == [wanted] * 2


def gradients(model, progress, batch):
    """Gradients by name, of a copy."""
    model = copy.deepcopy(model)
    model.schedule.progress = progress
    model.parse_losses(model(*batch, mode='loss'))[0].backward()
    return {
        f'architecture.{name}': p.grad
        for name, p in model.student.named_parameters()
    }


class Batches(Hook):
    """Keeps the model and the batch of every step."""

    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner, batch_idx, data_batch):
        data = runner.model.data_preprocessor(data_batch, True)
        batch = torch.stack(list(data['inputs'])).float()
        self.seen.append(
            (copy.deepcopy(runner.model), (batch, data['data_samples']))
        )


def norm_of(grads):
    return torch.cat([x.flatten() for x in grads]).norm().item()


def test_what_is_held_adds_nothing_to_the_norm(scheduled, tmp_path):
    phases = [dict(end=0.5, trains='mixers')]
    model = scheduled(dict(KL, loss_weight=1e3), phases=phases)
    batches = Batches()
    watch = run(tmp_path, model, steps=2, hooks=[batches])
    mixers = student_names(model, MIXER.pattern)
    for step, (before, batch) in enumerate(batches.seen):
        grads = gradients(before, step / 2, batch)
        kept = [x for name, x in grads.items() if step or name in mixers]
        assert watch.norms[step] == pytest.approx(norm_of(kept), rel=1e-4)
        assert norm_of(grads.values()) > 1.1 * norm_of(kept) or step
    # So mixers move as far as if nothing else had a gradient.
    before, batch = batches.seen[0]
    grads = gradients(before, 0, batch)
    after = dict(batches.seen[1][0].named_parameters())
    old = dict(before.named_parameters())
    scale = 0.01 / watch.norms[0]
    assert scale < 1
    for name in mixers:
        step = 0.05 * (scale * grads[name] + 0.1 * old[name])
        torch.testing.assert_close(after[name], old[name] - step, **SAME)


def test_what_was_accumulated_is_dropped_where_a_phase_holds_it(
    scheduled, tmp_path
):
    """The phase begins between two iterations of one step."""
    phases = [dict(end=0.25), dict(end=1.0, trains='mixers')]
    model = scheduled(KL, phases=phases)
    batches = Batches()
    watch = run(tmp_path, model, hooks=[batches], accumulative_counts=2)
    mixers = student_names(model, MIXER.pattern)
    assert watch.moved == [set(), mixers, set(), mixers]
    first, second = (
        gradients(before, i / 4, batch)
        for i, (before, batch) in enumerate(batches.seen[:2])
    )
    kept = [(first[name] + second[name]) / 2 for name in mixers]
    assert watch.norms[0] == pytest.approx(norm_of(kept), rel=1e-4)


def test_accumulated_halves_equal_whole_batches(scheduled, tmp_path):
    weights = []
    for steps, size, counts in ((2, 8, 1), (4, 4, 2)):
        model = scheduled(
            dict(KL, begin=0.5),
            method('HardLabel', end=0.5),
            phases=[dict(end=0.5, trains='mixers', task_loss=False)],
        )
        folder = tmp_path / str(size)
        run(folder, model, steps, size=size, accumulative_counts=counts)
        weights.append(model.state_dict())
    torch.testing.assert_close(*weights, **SAME)


@pytest.fixture
def several_processes():
    """As far as the model can tell."""
    distributed.init_process_group(
        'gloo', store=distributed.HashStore(), rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize('where', ['one process', 'several_processes'])
def test_the_projection_of_a_method_stands_still_without_it(
    scheduled, tmp_path, where, request
):
    if where == 'several_processes':
        request.getfixturevalue(where)
    hint = method('LastLayerHint')
    model = scheduled(
        dict(hint, end=0.5), dict(hint, begin=0.5, name='late'), KL
    )
    for name in ('hint_student', 'late_student'):
        assert name in model.distiller.connectors
    watch = run(tmp_path, model, optimizer=ADAMW)
    projections = [
        {x.split('.')[2] for x in moved if x.startswith('distiller.')}
        for moved in watch.moved
    ]
    assert projections == [{'hint_student'}] * 2 + [{'late_student'}] * 2


def test_the_teacher_runs_only_while_a_loss_counts(scheduled, tmp_path):
    model = scheduled(dict(KL, begin=0.25, end=0.5))
    watch = run(tmp_path, model)
    assert watch.calls == dict(student=[1] * 4, teacher=[0, 1, 0, 0])
    late = ['distill.loss_kl' in losses for losses in watch.losses]
    assert late == [False, True, False, False]


def test_the_student_runs_where_a_loss_reads_it(scheduled, tmp_path):
    """Without its task loss it learns from that loss alone."""
    phases = [dict(end=0.5, task_loss=False)]
    model = scheduled(dict(HIDDEN, end=0.5), phases=phases)
    watch = run(tmp_path, model, optimizer=ADAM)
    assert watch.calls == dict(student=[1] * 4, teacher=[1, 1, 0, 0])
    assert set(watch.losses[0]) == {'loss', 'distill.loss_hidden'}
    blocks = student_names(model, r'backbone\.(?!ln1).+')
    assert watch.moved == [blocks] * 2 + [student_names(model)] * 2


def test_what_no_loss_reads_now_is_not_recorded(scheduled):
    """A recorder that no loss ever reads is somebody else's, and records."""
    model = scheduled(
        KL,
        method('AdaptiveBidirectional', begin=0.5),
        student_recorders=dict(
            own=dict(type='mmrazor.ModuleOutputs', source='head')
        ),
    )
    own = model.distiller.student_recorders.recorders['own']
    taps, active, recording = model.student.backbone.taps()[0], [], []

    def look(*args):
        active.append([taps.active(name) for name in taps.out])
        recording.append(own.recording)

    model.student.head.register_forward_pre_hook(look)
    for model.schedule.progress in (0.0, 0.5):
        model(*tiny_batch(), mode='loss')
    assert active == [[False] * 4, [True] * 4]
    assert recording == [True, True]


def test_a_loss_may_warm_up_in_a_phase_of_its_own(scheduled, tmp_path):
    """Nothing counts in the very first step."""
    model = scheduled(dict(MIXERS, warmup=0.5, end=0.75), phases=[WARM])
    watch = run(tmp_path, model, optimizer=ADAM)
    assert watch.losses[0] == dict(loss=0, **{'distill.loss_idle': 0})
    assert watch.moved[0] == set()
    mixers = student_names(model, MIXER.pattern)
    assert watch.moved[1] == mixers
    assert watch.calls['teacher'] == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ('methods', 'phases'),
    [
        ([HIDDEN], [dict(end=0.5, task_loss=False)]),
        ([MIXERS], [dict(WARM, end=0.5)]),
        ([dict(MIXERS, warmup=0.5)], [WARM]),
        ([dict(method('LastLayerHint'), begin=0.5)], []),
        (RECIPE, [WARM]),
    ],
    ids=[
        'hidden states alone',
        'mixers alone',
        'nothing yet',
        'a projection later',
        'all in turn',
    ],
)
@pytest.mark.usefixtures('several_processes')
def test_data_parallel_training_misses_no_gradient(scheduled, methods, phases):
    """Without find_unused_parameters it insists on all of them."""
    model = scheduled(*methods, phases=phases)
    wrapped = MMDistributedDataParallel(model)
    images, samples = tiny_batch()
    data = dict(inputs=images, data_samples=samples)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 0.01))
    # Each step complains of what the one before has missed.
    for model.schedule.progress in (0.0, 0.25, 0.5, 0.75, 0.9):
        wrapped.train_step(data, wrapper)


def test_factors_multiply_losses_inside_and_beside_alpha(scheduled):
    inside = method('AdaptiveBidirectional', end=0.8, decay='linear')
    beside = dict(KL, begin=0.2, warmup=0.4)
    model = scheduled(inside, beside)
    batch = tiny_batch()
    found = []
    for model.schedule.progress in (0.4, 0.6, 0.9):
        found.append(model(*batch, mode='loss'))
    half, whole, task = found
    for key, ratio in (('transmamba', 2.0), ('kl', 0.5)):
        key = f'distill.loss_{key}'
        torch.testing.assert_close(half[key], ratio * whole[key], **SAME)
    assert half['student.loss'] == whole['student.loss']
    # Nothing inside alpha any more.
    assert 'distill.loss_transmamba' not in task
    wanted = 2 * whole['student.loss']
    torch.testing.assert_close(task['student.loss'], wanted, **SAME)


# ------------------------------------------- the monitor, the log, the end


def test_a_loss_inside_alpha_shares_it_from_its_first_step(scheduled):
    """Also where it warms up, and counts with 0 at first."""
    kl = dict(KL, in_alpha=True, begin=0.2, end=0.6, warmup=0.2)
    model, (images, samples) = scheduled(kl), tiny_batch()
    task = model.student(images, samples, mode='loss')['loss']
    for progress, share in ((0.1, 1), (0.2, 0.5), (0.5, 0.5), (0.6, 1)):
        model.schedule.progress = progress
        loss = model(images, samples, mode='loss')['student.loss']
        torch.testing.assert_close(loss, share * task)


def test_statistics_are_named_alike_whoever_counts(scheduled):
    method_a = method('AdaptiveBidirectional', name='a', end=0.5)
    method_b = method('AdaptiveBidirectional', name='b', begin=0.5)
    model, (images, samples) = scheduled(method_a, method_b), tiny_batch()
    for progress, name in ((0.1, 'a'), (0.6, 'b')):
        model.schedule.progress = progress
        losses = model(images, samples, mode='loss')
        names = {key for key in losses if 'sim' in key}
        assert names == {f'distill.{name}_sim_min', f'distill.{name}_sim_max'}


def test_the_check_before_the_first_step_sees_what_sets_in_later(
    scheduled, tmp_path
):
    student = tiny_student(patch_size=8)
    model = scheduled(
        dict(KL, end=0.5),
        method('AdaptiveBidirectional', begin=0.5),
        student=student,
    )
    before = snapshot(model)
    with pytest.raises(ValueError, match="set FeatureCalibration's grid"):
        run(tmp_path, model, hooks=[DistillMonitor()])
    for name, value in model.state_dict().items():
        assert value.equal(before[name]), name


def test_the_log_knows_only_what_counts(scheduled, tmp_path):
    model = scheduled(*RECIPE, phases=[WARM])
    run(tmp_path, model, hooks=[DistillMonitor(interval=1)])
    (path,) = tmp_path.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = [set(), set(), set(), set()]
    for line in lines:
        names = {x for x in line if x.startswith(('distill', 'student'))}
        names |= {x for x in line if x.startswith('loss_')}
        found[line['step'] - 1] |= names
    errors = '{}/errors/all/layer0{}'.format
    early = {errors('loss_mixer', i) for i in (0, 1)}
    late = {errors('loss_hidden', i) for i in (0, 1)}
    wanted = early | {'distill.loss_mixer'}
    assert found[:2] == [wanted] * 2
    wanted = late | {'distill.loss_hidden', 'distill.loss_kl', 'student.loss'}
    assert found[2:] == [wanted] * 2
    (path,) = tmp_path.glob('*/*.log')
    assert 'loss_hidden: errors by layer' in path.read_text()
    assert 'loss_mixer: errors by layer' not in path.read_text()


def test_nothing_is_held_after_training(scheduled, tmp_path):
    model = scheduled(KL, phases=[dict(end=1.0, trains='mixers')])
    hook = DistillScheduleHook()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    watch = run(tmp_path, model, hooks=[hook], optimizer=optimizer)
    assert watch.moved == [student_names(model, MIXER.pattern)] * 4
    assert not any(p._backward_hooks for p in model.parameters())
    assert not optimizer._optimizer_step_pre_hooks


def test_a_schedule_hook_is_idle_without_a_schedule(scheduled, tmp_path):
    states = []
    for hooks in ([DistillScheduleHook()], []):
        model = scheduled(KL)
        runner = tiny_runner(
            tmp_path / str(len(hooks)), model, custom_hooks=hooks
        )
        runner.train()
        assert model.schedule.progress is None
        states.append(model.state_dict())
    for key, value in states[0].items():
        assert value.equal(states[1][key]), key


def test_phases_need_an_optimizer_of_pytorch(scheduled):
    """DeepSpeed's has no hooks by which parameters could rest."""

    class DeepSpeedZeroOptimizer:
        pass

    hook, wrapper = DistillScheduleHook(), SimpleNamespace()
    wrapper.optimizer = DeepSpeedZeroOptimizer()
    runner = SimpleNamespace(optim_wrapper=wrapper)
    runner.model = scheduled(KL, phases=[WARM])
    with pytest.raises(ValueError, match='not DeepSpeedZeroOptimizer: leave'):
        hook.before_train(runner)
    runner.model = scheduled(KL)
    hook.before_train(runner)


def test_what_a_teacher_delivers_ends_with_it(scheduled, tmp_path):
    """mmrazor's deliveries put the teacher's features into the student."""
    path = 'mmpretrain.models.ImageClassifier.extract_feat'
    deliveries = dict(
        feat=dict(type='MethodOutputs', max_keep_data=1, method_path=path)
    )
    model = scheduled(dict(KL, end=0.5), distill_deliveries=deliveries)
    watch = run(tmp_path, model, optimizer=ADAM)
    head = student_names(model, r'head.+')
    assert watch.moved == [head] * 2 + [student_names(model)] * 2


# ------------------------------------------------- phases that name methods


def test_methods_are_confined_to_the_phases_that_name_them():
    spans = dict(a=Span(), b=Span(), c=Span(0.1, 0.9, decay='linear'))
    phases = [Phase(0.2, methods=('a',)), Phase(0.5, methods=('a', 'b'))]
    assert within_phases(spans, phases) == dict(
        a=Span(0, 0.5), b=Span(0.2, 0.5), c=Span(0.5, 0.9, decay='linear')
    )
    # Phases that name none change nothing.
    assert within_phases(spans, [Phase(0.5, trains='mixers')]) == spans


@pytest.mark.parametrize(
    ('phases', 'message'),
    [
        ([Phase(0.2, methods=('d',))], 'names d, but the methods are a, b'),
        ([Phase(1.0, methods=('b',))], 'a has no phase to count in'),
        ([Phase(0.8, methods=('b',))], r'a counts.*\(0.8, 1.0\)'),
        (
            [
                Phase(0.2, methods=('b',)),
                Phase(0.3, methods=('a',)),
                Phase(0.4, methods=('b',)),
            ],
            r'b counts.*\(0.0, 0.2\).*follow each other',
        ),
    ],
)
def test_phases_and_methods_that_do_not_fit(phases, message):
    with pytest.raises(ValueError, match=message):
        within_phases(dict(a=Span(0, 0.7), b=Span()), phases)


def test_a_warm_up_is_one_number():
    """Named by its phase, a method needs no times of its own."""
    named = MethodDistiller(
        [METHODS['mixer'], METHODS['hidden']],
        [dict(end=0.25, methods=['mixer'], task_loss=False)],
    )
    timed = MethodDistiller(
        [dict(METHODS['mixer'], end=0.25), dict(METHODS['hidden'], begin=0.25)]
    )
    assert named.schedule.spans == timed.schedule.spans
