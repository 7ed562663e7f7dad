# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The teacher of TransMambaDistill: its mode and its weights."""

import copy

import pytest
import torch
from distill_cases import total, with_kl
from helpers import (
    tiny_batch,
    tiny_distiller,
    tiny_runner,
    tiny_student,
    tiny_teacher,
)
from mmengine.model import PretrainedInit
from mmengine.runner import load_checkpoint
from torch import nn

from transmamba_mm.distill import TransMambaDistill
from transmamba_mm.registry import MODELS


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


@pytest.mark.parametrize(
    'wrapper', ['state_dict', 'model', 'model_state_dict', 'module.']
)
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


@pytest.mark.parametrize(
    'rename',
    [
        lambda key: f'_orig_mod.{key}',
        lambda key: f'model.{key}',
        lambda key: f'module.model.{key}',
        lambda key: f'classifier.net.{key}',
        lambda key: f'module._orig_mod.{key}',
        lambda key: f'model._orig_mod.{key}',
        lambda key: key.replace('layers.1.', 'layers.1._orig_mod.'),
        lambda key: f'_fsdp_wrapped_module.{key}',
    ],
)
def test_what_other_code_puts_in_front_of_names(
    make, teacher_ckpt, tmp_path, rename
):
    state = torch.load(teacher_ckpt)
    path = str(tmp_path / 'renamed.pth')
    torch.save({rename(key): value for key, value in state.items()}, path)
    model = make(teacher_ckpt=path)
    for key, value in state.items():
        assert torch.equal(model.teacher.state_dict()[key], value), key


def test_names_in_front_of_some_are_superfluous(make, teacher_ckpt, tmp_path):
    state = torch.load(teacher_ckpt)
    path = str(tmp_path / 'renamed.pth')
    content = {f'model.{key}': value for key, value in state.items()}
    torch.save({**content, 'criterion.weight': torch.ones(1)}, path)
    with pytest.raises(ValueError, match='does not match the teac') as error:
        make(teacher_ckpt=path)
    assert "holds such a model under 'model': set init_cfg" in str(error.value)


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


def declared(teacher_ckpt, tmp_path, how):
    """A teacher whose weights its config names in one of many ways."""
    config, state = tiny_teacher(), torch.load(teacher_ckpt)

    def file(prefix, part=''):
        path = str(tmp_path / f'{prefix}{part}x.pth')
        found = {k: v for k, v in state.items() if k.startswith(part)}
        content = {prefix + k.removeprefix(part): v for k, v in found.items()}
        torch.save(dict(state_dict={**content, 'z.a': torch.ones(1)}), path)
        return dict(type='Pretrained', checkpoint=path)

    if how == 'prefix':
        config['init_cfg'] = dict(file('teacher.'), prefix='teacher')
    elif how == 'prefix with a dot':
        config['init_cfg'] = dict(file('teacher.'), prefix='teacher.')
    elif how == 'class':
        whole = dict(file('a.'), prefix='a', type=PretrainedInit)
        config['init_cfg'] = whole
    elif how == 'list':
        draw = dict(type='TruncNormal', layer='Linear', std=0.02)
        config['init_cfg'] = [dict(file('a.'), prefix='a'), draw]
    elif how == 'parts of one file':
        whole = dict(type='Pretrained', checkpoint=teacher_ckpt)
        config['backbone']['init_cfg'] = dict(whole, prefix='backbone')
        config['head']['init_cfg'] = [dict(whole, prefix='head.')]
    elif how == 'parts of two files':
        backbone = dict(file('b.', 'backbone.'), prefix='b')
        config['backbone']['init_cfg'] = [backbone]
        config['head']['init_cfg'] = dict(file('h.', 'head.'), prefix='h')
    return config, state


@pytest.mark.parametrize(
    'how',
    [
        'prefix',
        'prefix with a dot',
        'class',
        'list',
        'parts of one file',
        'parts of two files',
    ],
)
def test_all_ways_of_an_init_cfg_are_honoured(
    make, teacher_ckpt, tmp_path, how
):
    config, state = declared(teacher_ckpt, tmp_path, how)
    model = make(teacher_ckpt=None, teacher=config)
    for key, value in state.items():
        assert torch.equal(model.teacher.state_dict()[key], value), key


def test_an_init_cfg_of_a_part_alone_is_not_enough(make, teacher_ckpt):
    config = tiny_teacher()
    part = dict(type='Pretrained', checkpoint=teacher_ckpt, prefix='backbone')
    config['backbone']['init_cfg'] = part
    with pytest.raises(ValueError, match=r'(?s)does not match.*head\.layers'):
        make(teacher_ckpt=None, teacher=config)
    config['backbone']['init_cfg'] = dict(part, prefix='encoder')
    with pytest.raises(ValueError, match="prefix 'encoder'"):
        make(teacher_ckpt=None, teacher=config)


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


# ------------------------------------------------- weights of the student


def test_a_checkpoint_of_the_student_alone_is_loaded(make, tmp_path):
    path = str(tmp_path / 'x.pth')
    student = make().student
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    torch.save(dict(state_dict=student.state_dict()), path)
    model = make()
    teacher = copy.deepcopy(model.teacher.state_dict())
    load_checkpoint(model, path, strict=True)
    for key, value in student.state_dict().items():
        assert value.equal(model.student.state_dict()[key]), key
    for key, value in teacher.items():
        assert value.equal(model.teacher.state_dict()[key]), key
    whole = model.state_dict()
    make().load_state_dict(whole, strict=True)
    part = {k: v for k, v in whole.items() if k.startswith('distiller.')}
    assert not make().load_state_dict(part, strict=False).unexpected_keys


def test_a_checkpoint_of_something_else_is_refused(make, tmp_path):
    path = str(tmp_path / 'x.pth')
    model = make()
    torch.save(dict(state_dict=dict(w=torch.ones(1))), path)
    with pytest.raises(ValueError, match=r'holds nothing for'):
        load_checkpoint(model, path)
    torch.save(dict(state_dict=tiny_teacher_state()), path)
    with pytest.raises(ValueError, match='unexpected'):
        load_checkpoint(model, path)


def tiny_teacher_state():
    return MODELS.build(tiny_teacher()).state_dict()
