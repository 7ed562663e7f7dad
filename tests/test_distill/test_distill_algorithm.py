# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""TransMambaDistill: alpha, the teacher, preprocessing and bookkeeping."""

import copy

import pytest
import torch
from helpers import (
    TINY_CLASSES,
    save_teacher,
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
SAME = dict(rtol=1e-5, atol=1e-6)
PREPROCESSOR = dict(
    num_classes=TINY_CLASSES, mean=[128.0] * 3, std=[64.0] * 3, to_rgb=False
)


@pytest.fixture(scope='module')
def teacher_ckpt(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp('teacher') / 'teacher.pth')


@pytest.fixture
def make(teacher_ckpt):
    """Builds and initialises a distillation model."""

    def build(**kwargs):
        torch.manual_seed(0)
        settings = dict(
            architecture=tiny_student(),
            teacher=tiny_teacher(),
            distiller=tiny_distiller(),
            teacher_ckpt=teacher_ckpt,
        )
        settings.update(kwargs)
        model = TransMambaDistill(**settings)
        model.init_weights()
        return model.train()

    return build


def total(losses):
    return sum(v for k, v in losses.items() if 'loss' in k)


def student_grads(model, loss):
    model.zero_grad()
    loss.backward()
    return {k: p.grad for k, p in model.student.named_parameters()}


def with_kl(**kwargs):
    distiller = tiny_distiller(**kwargs)
    logits = dict(type='mmrazor.ModuleOutputs')
    distiller['student_recorders']['s'] = dict(logits, source='head.fc')
    distiller['teacher_recorders']['t'] = dict(
        logits, source='head.layers.head'
    )
    distiller['distill_losses']['loss_kl'] = dict(
        type='mmrazor.KLDivergence', tau=2.0, loss_weight=0.7
    )
    distiller['loss_forward_mappings']['loss_kl'] = dict(
        preds_S=dict(recorder='s', from_student=True),
        preds_T=dict(recorder='t', from_student=False),
    )
    return distiller


def only_kl():
    distiller = with_kl()
    distiller.pop('connectors')
    for key in ('student_recorders', 'teacher_recorders'):
        distiller[key] = {
            k: v for k, v in distiller[key].items() if k in ('s', 't')
        }
    for key in ('distill_losses', 'loss_forward_mappings'):
        distiller[key].pop('loss_tm')
    return distiller


# ------------------------------------------------------------------- alpha


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


def test_alpha_out_of_range(make):
    for alpha in (-0.1, 1.1):
        with pytest.raises(ValueError, match='alpha must lie in'):
            make(alpha=alpha)


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


# ------------------------------------------------------------- the teacher


def test_teacher_is_in_eval_mode(make):
    teacher = tiny_teacher(drop_path_rate=0.5, drop_rate=0.5)
    model = make(teacher=teacher)
    for mode in (True, False, True):
        assert model.train(mode) is model
        assert model.training is mode
        assert model.student.backbone.layers[0].training is mode
        assert not any(m.training for m in model.teacher.modules())
    assert model.eval() is model
    images, _ = tiny_batch()
    model.train()
    first = model.teacher(images, mode='tensor')
    assert torch.equal(first, model.teacher(images, mode='tensor'))
    # The same teacher in training mode is random.
    model.teacher.train()
    assert not torch.equal(
        model.teacher(images, mode='tensor'),
        model.teacher(images, mode='tensor'),
    )


def test_similarities_do_not_vary_with_the_teachers_dropout(make):
    model = make(teacher=tiny_teacher(drop_path_rate=0.5, drop_rate=0.5))
    batch = tiny_batch()
    losses = [model(*batch, mode='loss') for _ in range(2)]
    assert torch.equal(*(x['distill.loss_tm'] for x in losses))


def test_teacher_never_changes(make, teacher_ckpt):
    model = make(distiller=with_kl())
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.5)
    before = copy.deepcopy(model.student.state_dict())
    for _ in range(2):
        optimizer.zero_grad()
        total(model(*tiny_batch(), mode='loss')).backward()
        assert all(p.grad is None for p in model.teacher.parameters())
        assert not any(p.requires_grad for p in model.teacher.parameters())
        optimizer.step()
    for key, value in torch.load(teacher_ckpt).items():
        assert torch.equal(model.teacher.state_dict()[key], value), key
    after = model.student.state_dict()
    assert all(not torch.equal(before[k], after[k]) for k in before)


def test_teacher_weights_are_loaded(make, teacher_ckpt):
    model = make()
    state = torch.load(teacher_ckpt)
    assert set(state) == set(model.teacher.state_dict())
    for key, value in model.teacher.state_dict().items():
        assert torch.equal(value, state[key])


def change(state, how):
    if how == 'missing':
        state.pop('head.layers.head.weight')
    elif how == 'superfluous':
        state['neck.weight'] = torch.zeros(2)
    elif how == 'shape':
        state['head.layers.head.weight'] = torch.zeros(5, 16)
    elif how == 'bare backbone':
        state = {
            k.replace('backbone.', ''): v
            for k, v in state.items()
            if k.startswith('backbone')
        }
    elif how == 'another network':
        state = nn.Linear(2, 2).state_dict()
    return state


@pytest.mark.parametrize(
    ('how', 'detail'),
    [
        ('missing', 'head.layers.head.weight'),
        ('superfluous', 'neck.weight'),
        ('shape', r'\[5, 16\]'),
        ('bare backbone', 'backbone.cls_token'),
        ('another network', 'Missing key'),
    ],
)
def test_teacher_checkpoint_must_match(
    make, teacher_ckpt, tmp_path, how, detail
):
    path = str(tmp_path / 'other.pth')
    torch.save(change(torch.load(teacher_ckpt), how), path)
    with pytest.raises(ValueError, match='does not match the teach') as error:
        make(teacher_ckpt=path)
    assert error.match(detail)
    assert len(str(error.value)) < 3000


def test_unreadable_teacher_checkpoints(make, tmp_path):
    with pytest.raises(ValueError, match='set teacher_ckpt'):
        make(teacher_ckpt=None)
    with pytest.raises(FileNotFoundError, match=r'gone\.pth'):
        make(teacher_ckpt=str(tmp_path / 'gone.pth'))
    torch.save(dict(epoch=3), tmp_path / 'empty.pth')
    with pytest.raises(ValueError, match='holds no tensors'):
        make(teacher_ckpt=str(tmp_path / 'empty.pth'))


@pytest.mark.parametrize('wrapper', ['state_dict', 'model', 'module.'])
def test_wrapped_teacher_checkpoints(make, teacher_ckpt, tmp_path, wrapper):
    state = torch.load(teacher_ckpt)
    if wrapper == 'module.':
        content = {f'module.{k}': v for k, v in state.items()}
    else:
        extra = {'data_preprocessor.mean': torch.ones(3), 'ema_x': state}
        extra['ema_x'] = torch.ones(1)
        content = {wrapper: {**state, **extra}, 'epoch': 3}
    path = str(tmp_path / 'wrapped.pth')
    torch.save(content, path)
    model = make(teacher_ckpt=path)
    weight = model.teacher.head.layers.head.weight
    assert torch.equal(weight, state['head.layers.head.weight'])


def test_refused_before_the_first_iteration(make, tmp_path):
    """Built without a look at the file, refused when training starts."""
    model = TransMambaDistill(
        tiny_student(), tiny_teacher(), tiny_distiller(), 'gone.pth'
    )
    steps = []
    model.register_forward_pre_hook(lambda *args: steps.append(1))
    runner = tiny_runner(tmp_path, model)
    with pytest.raises(FileNotFoundError, match=r"'gone\.pth' does not exist"):
        runner.train()
    assert steps == []


def test_teacher_by_its_own_init_cfg(make, teacher_ckpt, tmp_path):
    pretrained = dict(type='Pretrained', checkpoint=teacher_ckpt)
    model = make(
        teacher_ckpt=None, teacher=dict(tiny_teacher(), init_cfg=pretrained)
    )
    for key, value in torch.load(teacher_ckpt).items():
        assert torch.equal(model.teacher.state_dict()[key], value), key
    torch.save(change(torch.load(teacher_ckpt), 'shape'), tmp_path / 'a.pth')
    pretrained['checkpoint'] = str(tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='does not match the teacher'):
        make(
            teacher_ckpt=None,
            teacher=dict(tiny_teacher(), init_cfg=pretrained),
        )


def test_a_distilled_checkpoint_needs_no_teacher_file(make):
    trained = make()
    twin = TransMambaDistill(
        tiny_student(), tiny_teacher(), tiny_distiller(), 'gone.pth'
    )
    twin.load_state_dict(trained.state_dict())
    images, samples = tiny_batch()
    twin.eval()
    trained.eval()
    found = twin(images, samples, mode='predict')
    wanted = trained(images, tiny_batch()[1], mode='predict')
    for a, b in zip(found, wanted):
        assert torch.equal(a.pred_score, b.pred_score)


# -------------------------------------------------------- modes and plumbing


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


# ---------------------------------------------------------------- training


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


def test_a_trainable_teacher_is_refused():
    with pytest.raises(ValueError, match='frozen'):
        MODELS.build(
            dict(
                type='transmamba.TransMambaDistill',
                architecture=tiny_student(),
                teacher=tiny_teacher(),
                distiller=tiny_distiller(),
                teacher_trainable=True,
            )
        )
