# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""TransMambaDistill: alpha, preprocessing and training."""

import copy

import pytest
import torch
from distill_cases import (
    METHODS,
    PREPROCESSOR,
    SAME,
    of_methods,
    only_kl,
    student_grads,
    total,
    with_kl,
)
from helpers import (
    tiny_batch,
    tiny_distiller,
    tiny_runner,
    tiny_student,
    tiny_teacher,
)
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmrazor.engine.hooks import StopDistillHook
from torch import nn

from transmamba_mm.compat.cpu_training import CpuAmpOptimWrapper
from transmamba_mm.distill import TransMambaDistill
from transmamba_mm.registry import MODELS

# Terms of a gradient may be added in another order.
ROUNDING = 1e-7


# ---------------------------------------------------------------- alpha


def test_alpha_one_is_training_from_scratch(make):
    model, batch = make(alpha=1.0), tiny_batch()
    found = student_grads(model, total(model(*batch, mode='loss')))
    scratch = total(model.student(*batch, mode='loss'))
    for name, grad in student_grads(model, scratch).items():
        torch.testing.assert_close(
            found[name], grad, rtol=1e-5, atol=ROUNDING, msg=name
        )


def test_alpha_zero_is_distillation_alone(make):
    model = make(alpha=0.0)
    losses = model(*tiny_batch(), mode='loss')
    assert losses['student.loss'] == 0
    grads = student_grads(model, total(losses))
    # Nothing after the last tap learns, all before it does.
    assert all(not grads[k].any() for k in grads if k.startswith('head'))
    assert not grads['backbone.ln1.weight'].any()
    assert grads['backbone.layers.1.mamba.in_proj.weight'].abs().sum() > 0
    assert grads['backbone.patch_embed.projection.weight'].abs().sum() > 0


@pytest.mark.parametrize('alpha', [0.0, 0.3, 1.0])
def test_the_weighted_sum(make, alpha):
    model, batch = make(alpha=alpha), tiny_batch()
    losses = model(*batch, mode='loss')
    task = model.student(*batch, mode='loss')['loss']
    loss = model.distiller.distill_losses['loss_tm']
    plain = sum(
        (loss.weights[d] * (1 - loss.similarities[d])).sum()
        for d in loss.weights
    )
    torch.testing.assert_close(losses['student.loss'], alpha * task, **SAME)
    torch.testing.assert_close(
        losses['distill.loss_tm'], (1 - alpha) * plain, **SAME
    )
    statistics = {'distill.sim_min', 'distill.sim_max', 'distill.w_max'}
    assert set(losses) == statistics | {'student.loss', 'distill.loss_tm'}
    parsed, _ = model.parse_losses(losses)
    torch.testing.assert_close(parsed, total(losses))


def test_other_losses_stay_outside_alpha(make):
    batch = tiny_batch()
    found = []
    for alpha in (0.2, 0.9):
        model = make(alpha=alpha, distiller=with_kl())
        found.append(model(*batch, mode='loss')['distill.loss_kl'])
    assert torch.equal(*found)
    student = model.student(batch[0], mode='tensor') / 2
    teacher = model.teacher(batch[0], mode='tensor') / 2
    log_t, log_s = teacher.log_softmax(1), student.log_softmax(1)
    kl = (log_t.exp() * (log_t - log_s)).sum(1).mean() * 4
    torch.testing.assert_close(found[0], 0.7 * kl, **SAME)
    assert kl > 0


def test_plain_kd_has_no_alpha(make):
    model, batch = make(alpha=0.1, distiller=only_kl()), tiny_batch()
    losses = model(*batch, mode='loss')
    task = model.student(*batch, mode='loss')['loss']
    torch.testing.assert_close(losses['student.loss'], task, **SAME)
    assert set(losses) == {'student.loss', 'distill.loss_kl'}


class OwnLoss(nn.Module):
    """A loss of somebody's own, which docs/guides/extending.md describes."""

    alpha_weighted = True

    def forward(self, preds_S, preds_T):
        self.error = (preds_S - preds_T).square().mean()
        return self.error

    def statistics(self):
        return dict(error=self.error)


def test_a_loss_of_ones_own_may_share_alpha_and_be_logged(make):
    distiller = only_kl()
    distiller['distill_losses']['loss_kl'] = dict(type=OwnLoss)
    model = make(alpha=0.3, distiller=distiller)
    batch = tiny_batch()
    losses = model(*batch, mode='loss')
    task = model.student(*batch, mode='loss')['loss']
    torch.testing.assert_close(losses['student.loss'], 0.3 * task, **SAME)
    torch.testing.assert_close(
        losses['distill.loss_kl'], 0.7 * losses['distill.error'], **SAME
    )


def one_more_loss(distiller):
    distiller['distill_losses']['loss_other'] = dict(type='mmrazor.L2Loss')


def without_losses(distiller):
    del distiller['distill_losses'], distiller['loss_forward_mappings']


def loss_of_another_name(distiller):
    for part in ('distill_losses', 'loss_forward_mappings'):
        distiller[part]['kl'] = distiller[part].pop('loss_kl')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (one_more_loss, "do not say what .'loss_other'. of distill_losses"),
        (without_losses, 'the distiller has no loss'),
        (loss_of_another_name, r"has \"loss\" in its name: rename .'kl'"),
    ],
)
def test_losses_that_would_not_count(make, change, message):
    distiller = only_kl()
    change(distiller)
    with pytest.raises(ValueError, match=message):
        make(distiller=distiller)


@pytest.mark.parametrize('alpha', [-0.1, 1.1, True, float('nan'), '0.5', None])
def test_alpha_out_of_range(make, alpha):
    with pytest.raises(ValueError, match='alpha must '):
        make(alpha=alpha)


@pytest.mark.parametrize('value', [False, None, 1])
def test_a_student_that_does_not_train(make, value):
    with pytest.raises(ValueError, match='student_trainable'):
        make(student_trainable=value)


def test_stopped_distillation(make, tmp_path):
    """mmrazor's own hook; from then on alpha is 1."""
    seen = []

    class Watch(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch, outputs):
            seen.append((runner.model.distillation_stopped, set(outputs)))

    model = make(alpha=0.3)
    runner = tiny_runner(
        tmp_path,
        model,
        max_epochs=2,
        num=4,
        custom_hooks=[StopDistillHook(stop_epoch=1), Watch()],
    )
    runner.train()
    assert [stopped for stopped, _ in seen] == [False, True]
    assert 'distill.loss_tm' in seen[0][1]
    assert seen[1][1] == {'loss', 'student.loss'}
    model.cpu()
    batch = tiny_batch()
    losses = model(*batch, mode='loss')
    task = model.student(*batch, mode='loss')['loss']
    assert torch.equal(losses['student.loss'], task)


# --------------------------------------------------- modes and plumbing


def test_other_modes_are_the_students(make):
    model = make().eval()
    images, samples = tiny_batch()
    assert torch.equal(
        model(images, mode='tensor'), model.student(images, mode='tensor')
    )
    found = model(images, samples, mode='predict')
    wanted = model.student(images, tiny_batch()[1], mode='predict')
    for a, b in zip(found, wanted):
        assert torch.equal(a.pred_score, b.pred_score)
        assert a.pred_label == b.pred_label


def test_nothing_in_place_is_left(make):
    student = MODELS.build(
        tiny_student(stem='conv', out_type='featmap')
        | dict(neck=dict(type='GlobalAveragePooling'))
    )
    student.neck.relu = nn.ReLU(inplace=True)
    teacher = MODELS.build(tiny_teacher())
    teacher.backbone.extra = nn.Sequential(nn.ReLU6(inplace=True))
    with pytest.raises(ValueError, match='set teacher_ckpt'):
        make(architecture=student, teacher=teacher, teacher_ckpt=None)
    assert not student.neck.relu.inplace
    assert not teacher.backbone.extra[0].inplace


def test_untyped_preprocessor_goes_to_the_student(make):
    augments = dict(augments=[dict(type='Mixup', alpha=0.8)])
    config = dict(tiny_student(), train_cfg=augments)
    model = make(architecture=config, data_preprocessor=PREPROCESSOR)
    # The caller's config is left alone.
    assert 'data_preprocessor' not in config
    preprocessor = model.data_preprocessor
    assert preprocessor is model.student.data_preprocessor
    assert preprocessor.mean.flatten().tolist() == [128.0] * 3
    inputs = [torch.full((3, 16, 16), 64 * i).byte() for i in range(4)]
    data = dict(inputs=inputs, data_samples=tiny_batch()[1])
    mixed = model.data_preprocessor(data, True)
    # One of them may have been mixed with itself.
    scores = [sample.gt_score.max() for sample in mixed['data_samples']]
    assert min(scores) < 1
    plain = model.data_preprocessor(data, False)
    assert plain['inputs'][1].unique().item() == pytest.approx(-1)
    model.train_step(
        data, OptimWrapper(torch.optim.SGD(model.parameters(), 0.1))
    )


def test_the_students_own_preprocessor_wins(make):
    config = dict(
        tiny_student(), data_preprocessor=dict(PREPROCESSOR, mean=[1.0] * 3)
    )
    model = make(architecture=config, data_preprocessor=PREPROCESSOR)
    assert model.data_preprocessor.mean.flatten().tolist() == [1.0] * 3


def test_records_are_dropped_after_the_loss(make):
    model = make(distiller=with_kl())
    model(*tiny_batch(), mode='loss')
    distiller = model.distiller
    for manager in (distiller.student_recorders, distiller.teacher_recorders):
        for recorder in manager.recorders.values():
            assert recorder.data_buffer == []
    for taps in model.student.backbone.taps():
        assert not any(map(taps.active, model.student.backbone.directions))


def test_deepcopy_after_a_step(make):
    model, batch = make(distiller=with_kl()), tiny_batch()
    total(model(*batch, mode='loss')).backward()
    twin = copy.deepcopy(model)
    first, second = (m(*batch, mode='loss') for m in (model, twin))
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key
    # The copy records itself, not the original.
    with torch.no_grad():
        for parameter in model.student.backbone.parameters():
            parameter.zero_()
    again = twin(*batch, mode='loss')
    assert torch.equal(again['distill.loss_tm'], second['distill.loss_tm'])


# ------------------------------------------------------------- training


def train_steps(model, wrapper, num=6):
    data = dict(
        inputs=[torch.randint(256, (3, 16, 16)).byte() for _ in range(6)],
        data_samples=tiny_batch(6)[1],
    )
    wrapper.initialize_count_status(model, 0, num)
    return [model.train_step(data, wrapper)['loss'].item() for _ in range(num)]


@pytest.mark.parametrize(
    'kind', ['mixed', 'accumulated', 'amp', 'amp accumulated', 'conv stem']
)
def test_it_learns(make, kind):
    student = tiny_student()
    if kind == 'conv stem':
        student = tiny_student(stem='conv', drop_path_rate=0.1)
    model = make(
        architecture=student,
        distiller=with_kl(),
        data_preprocessor=PREPROCESSOR,
    )
    kwargs = dict(accumulative_counts=2 if 'accumulated' in kind else 1)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    wrapper = CpuAmpOptimWrapper if 'amp' in kind else OptimWrapper
    losses = train_steps(model, wrapper(optimizer=optimizer, **kwargs), 12)
    assert all(map(torch.isfinite, map(torch.tensor, losses)))
    assert losses[-1] < 0.9 * losses[0]
    loss = model.distiller.distill_losses['loss_tm']
    assert all(s.dtype == torch.float32 for s in loss.similarities.values())


def test_accumulation_equals_one_large_batch(make):
    """With weights that do not depend on the batch."""
    images, samples = tiny_batch(4)
    whole = make(distiller=tiny_distiller(weighting='uniform'))
    halves = copy.deepcopy(whole)
    total(whole(images, samples, mode='loss')).backward()
    for part in (slice(0, 2), slice(2, 4)):
        losses = halves(images[part], samples[part], mode='loss')
        (total(losses) / 2).backward()
    for (name, a), (_, b) in zip(
        whole.named_parameters(), halves.named_parameters()
    ):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=name, **SAME)


def test_amp_is_close_to_float32(make):
    model, batch = make(), tiny_batch()
    exact = model(*batch, mode='loss')
    with torch.autocast('cpu', dtype=torch.bfloat16):
        rough = model(*batch, mode='loss')
    assert rough['distill.loss_tm'].dtype == torch.float32
    torch.testing.assert_close(
        rough['distill.loss_tm'], exact['distill.loss_tm'], rtol=0.02, atol=0
    )


def test_ema_hook_and_validation_copy(make, tmp_path):
    model = make()
    start = copy.deepcopy(model.student.state_dict())
    runner = tiny_runner(
        tmp_path,
        model,
        max_epochs=1,
        custom_hooks=[dict(type='EMAHook', momentum=0.5)],
    )
    runner.train()
    checkpoint = torch.load(tmp_path / 'epoch_1.pth', map_location='cpu')
    ema = checkpoint['state_dict']  # EMAHook swaps the two when saving
    raw = checkpoint['ema_state_dict']
    key = 'architecture.head.fc.weight'
    first = start['head.fc.weight']
    assert not torch.equal(ema[key], first)
    assert not torch.equal(ema[key], raw[f'module.{key}'])
    teacher = 'teacher.head.layers.head.weight'
    torch.testing.assert_close(ema[teacher], raw[f'module.{teacher}'])


def test_two_alpha_weighted_losses_log_apart():
    distiller = tiny_distiller()
    first = distiller['distill_losses']['loss_tm']
    mapping = distiller['loss_forward_mappings']['loss_tm']
    distiller['distill_losses']['loss_uniform'] = dict(
        first, weighting='uniform'
    )
    distiller['loss_forward_mappings']['loss_uniform'] = mapping
    model = MODELS.build(
        dict(
            type='transmamba.TransMambaDistill',
            architecture=tiny_student(),
            teacher=tiny_teacher(),
            distiller=distiller,
        )
    )
    images, samples = tiny_batch()
    losses = model(images, samples, mode='loss')
    assert {'distill.tm_w_max', 'distill.uniform_w_max'} <= set(losses)
    assert losses['distill.uniform_w_max'] == 0.5  # two layers


def test_what_methods_learn_is_drawn_by_init_weights(make):
    """So that it can be built on ``meta``, with memory full of garbage."""
    kinds = ('transmamba', 'learned_hidden', 'bridge', 'ofa')
    methods = [METHODS[kind] for kind in kinds]

    def drawn(garbage):
        torch.manual_seed(0)
        model = TransMambaDistill(
            architecture=tiny_student(),
            teacher=tiny_teacher(),
            distiller=of_methods(*methods),
            teacher_ckpt=make().teacher_ckpt,
        )
        own = model.distiller
        if garbage:
            with torch.no_grad():
                for tensor in (*own.parameters(), *own.buffers()):
                    tensor.fill_(77)
        model.init_weights()
        return own.state_dict()

    want, got = drawn(False), drawn(True)
    assert len(want) > 20
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, msg=name)
