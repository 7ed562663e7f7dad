# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What the recorders record, and that they leave no trace."""

import pytest
import torch
from helpers import TINY_GRID, tiny_batch, tiny_student, tiny_teacher
from mmengine.model import BaseModule
from mmpretrain.structures import DataSample
from mmrazor.models.task_modules import RecorderManager
from torch import nn
from torch.utils.checkpoint import checkpoint

from transmamba_mm.contract import find_student
from transmamba_mm.contract.scan_orders import scan_order
from transmamba_mm.contract.taps import DirectionTaps
from transmamba_mm.distill import (
    DirectionTapsRecorder,
    LayerwiseOutputsRecorder,
    PatchTokensRecorder,
    StudentSiteRecorder,
)
from transmamba_mm.models import MambaBackbone
from transmamba_mm.registry import MODELS

SUM_TOL = dict(rtol=1e-5, atol=1e-5)


def record(recorder, model, images=None):
    if images is None:
        images = tiny_batch()[0]
    recorder.initialize(model)
    with recorder, torch.no_grad():
        output = model(images)
    return recorder.get_record_data(), output


def build(config):
    model = MODELS.build(config)
    model.init_weights()
    return model.eval()


@pytest.fixture
def teacher():
    return build(tiny_teacher())


@pytest.fixture
def student():
    return build(tiny_student())


def hooks_of(model):
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for module in model.modules()
    )


# --------------------------------------------------------- what is shown


def shown(student, samples, site):
    recorder = StudentSiteRecorder(site)
    recorder.initialize(student)
    images, _ = tiny_batch()
    with recorder:
        student(images, samples, mode='tensor')
    return images, recorder.get_record_data()


def test_images_are_those_of_the_student(student):
    images, found = shown(student, tiny_batch()[1], 'images')
    assert found is images


def test_labels_are_those_of_the_task_loss(student):
    _, samples = tiny_batch()
    assert shown(student, samples, 'labels')[1].tolist() == [0, 1, 2, 0]
    scores = torch.rand(4, 3)
    mixed = [DataSample().set_gt_score(x) for x in scores]
    assert shown(student, mixed, 'labels')[1].equal(scores)


@pytest.mark.parametrize(
    'samples',
    [
        None,
        [DataSample().set_gt_label(1)] * 3 + [DataSample()],
        [DataSample().set_gt_label([0, 1])] * 4,
    ],
    ids=['none', 'one without', 'several each'],
)
def test_images_without_a_label_are_told(student, samples):
    with pytest.raises(ValueError, match='not every image of the batch has'):
        shown(student, samples, 'labels')


# -------------------------------------------------------- LayerwiseOutputs


class Chain(nn.Module):
    """Twelve scalings, run last to first."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Identity() for _ in range(12))
        self.skip = {}
        self.repeat = {}

    def forward(self, x):
        for i in reversed(range(12)):
            if i in self.skip:
                continue
            for _ in range(self.repeat.get(i, 1)):
                x = self.layers[i](x + 1)
        return x


def test_layerwise_is_in_module_order():
    """Neither in order of execution nor of spelling (10 before 2)."""
    found, _ = record(
        LayerwiseOutputsRecorder(r'layers\.\d+'), Chain(), torch.zeros(1)
    )
    assert [x.item() for x in found] == [12 - i for i in range(12)]


def test_layerwise_pattern_must_match_the_whole_name():
    recorder = LayerwiseOutputsRecorder(r'layers\.1')
    found, _ = record(recorder, Chain(), torch.zeros(1))
    assert [x.item() for x in found] == [11]


def test_layerwise_typo_lists_similar_names(student):
    recorder = LayerwiseOutputsRecorder(r'backbone\.layer\.\d+')
    with pytest.raises(ValueError, match='matches no module of ImageClass'):
        recorder.initialize(student)
    recorder = LayerwiseOutputsRecorder('bakbone.ln1')
    with pytest.raises(ValueError, match=r"names like \['backbone\.ln1'\]"):
        recorder.initialize(student)


@pytest.mark.parametrize(
    ('attribute', 'value', 'times'),
    [('repeat', {3: 2}, 2), ('skip', {3: 1}, 0)],
)
def test_layerwise_wants_one_run_each(attribute, value, times):
    model = Chain()
    setattr(model, attribute, value)
    with pytest.raises(ValueError, match=rf"layers\.3' ran {times} times"):
        record(LayerwiseOutputsRecorder(r'layers\.\d+'), model, torch.ones(1))
    assert hooks_of(model) == 0


def test_hooks_go_even_if_the_forward_pass_fails():
    model, recorder = Chain(), LayerwiseOutputsRecorder(r'layers\.\d+')
    recorder.initialize(model)
    with pytest.raises(RuntimeError, match='boom'), recorder:
        assert hooks_of(model) == 12
        raise RuntimeError('boom')
    assert hooks_of(model) == 0
    # The next pass starts clean.
    with recorder:
        model(torch.zeros(1))
    assert len(recorder.data_buffer) == 1


def test_reset_forgets():
    recorder = LayerwiseOutputsRecorder(r'layers\.\d+')
    record(recorder, Chain(), torch.zeros(1))
    recorder.reset_data_buffer()
    assert recorder.data_buffer == []
    assert recorder._seen == {}


def test_names_in_configs(student):
    """mmrazor appends 'Recorder' to the type."""
    manager = RecorderManager(
        dict(
            layers=dict(
                type='transmamba.LayerwiseOutputs',
                source=r'backbone\.layers\.\d+',
            ),
            taps=dict(type='transmamba.DirectionTaps', tap='inner'),
        )
    )
    manager.initialize(student)
    with manager, torch.no_grad():
        student(tiny_batch()[0])
    assert len(manager.get_recorder('layers').get_record_data()) == 2
    assert len(manager.get_recorder('taps').get_record_data()) == 8


# ------------------------------------------------------------- PatchTokens


def outputs_of(model, names, images):
    kept = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda m, i, out, name=name: kept.__setitem__(name, out)
        )
        for name in names
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return [kept[name] for name in names]


@pytest.mark.parametrize(
    ('backbone', 'extra'),
    [
        (dict(type='VisionTransformer'), 1),
        (dict(type='DistilledVisionTransformer'), 2),
        (
            dict(
                type='VisionTransformer',
                with_cls_token=False,
                out_type='avg_featmap',
            ),
            0,
        ),
    ],
)
def test_class_tokens_are_dropped(backbone, extra):
    model = build(tiny_teacher(**backbone)).backbone
    images, _ = tiny_batch()
    (raw,) = outputs_of(model, ['ln1'], images)
    (tokens,), _ = record(PatchTokensRecorder('ln1'), model, images)
    assert raw.shape[1] == 16 + extra
    assert torch.equal(tokens, raw[:, extra:])


def test_explicit_number_of_extra_tokens(teacher):
    recorder = PatchTokensRecorder(num_extra_tokens=3)
    (tokens,), _ = record(recorder, teacher)
    assert tokens.shape == (4, 17 - 3, 16)


def test_a_teacher_of_no_family_by_pattern_and_number():
    model = nn.Sequential(Chain())
    recorder = PatchTokensRecorder(r'0\.layers\.11', num_extra_tokens=2)
    (tokens,), _ = record(recorder, model, torch.zeros(1, 5, 3))
    assert tokens.shape == (1, 3, 3)


def test_all_layers_with_the_norm_in_place_of_the_last(teacher):
    images, _ = tiny_batch()
    names = ['layers.0', 'layers.1', 'layers.2', 'ln1']
    raw = outputs_of(teacher.backbone, names, images)
    recorder = PatchTokensRecorder(r'backbone\.layers\.\d+|backbone\.ln1')
    found, _ = record(recorder, teacher, images)
    assert len(found) == 3
    for tokens, wanted in zip(found, [raw[0], raw[1], raw[3]]):
        assert torch.equal(tokens, wanted[:, 1:])


def test_norm_replaces_only_the_layer_that_it_normalises(teacher):
    """Layer 1 of 0..2 does not feed the final norm."""
    images, _ = tiny_batch()
    raw = outputs_of(teacher.backbone, ['layers.1', 'ln1'], images)
    recorder = PatchTokensRecorder(r'backbone\.layers\.1|backbone\.ln1')
    found, _ = record(recorder, teacher, images)
    assert len(found) == 2
    for tokens, wanted in zip(found, raw):
        assert torch.equal(tokens, wanted[:, 1:])


# ----------------------------------------------------------- DirectionTaps


def test_out_taps_sum_to_the_mixer_output(student):
    images, _ = tiny_batch()
    names = [f'layers.{i}.mamba' for i in range(2)]
    mixed = outputs_of(student.backbone, names, images)
    found, _ = record(DirectionTapsRecorder(), student, images)
    directions = student.backbone.directions
    assert [(r.layer, r.direction) for r in found] == [
        (layer, name) for layer in range(2) for name in directions
    ]
    for layer in range(2):
        total = 0
        for tap in found:
            if tap.layer != layer:
                continue
            assert tap.grid == TINY_GRID
            assert tap.tokens.shape == (4, 16, 12)
            wanted = scan_order(tap.direction, *TINY_GRID)
            assert torch.equal(tap.order(), wanted)
            total = total + tap.tokens[:, wanted.argsort()]
        bias = student.backbone.layers[layer].mamba.out_proj.bias
        torch.testing.assert_close(total + bias, mixed[layer], **SUM_TOL)


def test_inner_taps_are_those_before_out_proj(student):
    inner, _ = record(DirectionTapsRecorder('inner'), student)
    out, _ = record(DirectionTapsRecorder('out'), student)
    for a, b in zip(inner, out):
        assert a.tokens.shape == (4, 16, 24)
        weight = student.backbone.layers[a.layer].mamba.out_proj.weight
        torch.testing.assert_close(a.tokens @ weight.T, b.tokens, **SUM_TOL)


def test_residual_taps_add_the_block_input_in_scan_order(student):
    images, _ = tiny_batch()
    stream = []
    handles = [
        layer.register_forward_pre_hook(lambda m, x: stream.append(x[0]))
        for layer in student.backbone.layers
    ]
    found, _ = record(DirectionTapsRecorder('residual'), student, images)
    for handle in handles:
        handle.remove()
    out, _ = record(DirectionTapsRecorder('out'), student, images)
    for a, b in zip(found, out):
        visited = stream[a.layer][:, scan_order(a.direction, *TINY_GRID)]
        torch.testing.assert_close(a.tokens, b.tokens + visited, **SUM_TOL)


def test_direction_subset(student):
    chosen = ['snake_vertical', 'snake_horizontal']
    found, _ = record(DirectionTapsRecorder(directions=chosen), student)
    assert {r.direction for r in found} == set(chosen)
    everything, _ = record(DirectionTapsRecorder(), student)
    tokens = {(r.layer, r.direction): r.tokens for r in everything}
    for tap in found:
        assert torch.equal(tap.tokens, tokens[tap.layer, tap.direction])


def test_wrong_options(student):
    with pytest.raises(ValueError, match='tap must be one of'):
        DirectionTapsRecorder(tap='outer')
    recorder = DirectionTapsRecorder(directions=['raster', 'snake_vertical'])
    with pytest.raises(ValueError, match='no scan direction raster; it has'):
        recorder.initialize(student)


def test_teacher_is_no_student(teacher):
    with pytest.raises(TypeError, match='found 0'):
        DirectionTapsRecorder().initialize(teacher)


@pytest.mark.parametrize('tap', DirectionTapsRecorder.TAPS)
def test_taps_leave_no_trace(student, tap):
    """No hooks, no active taps, no projections, the same output."""
    images, _ = tiny_batch()
    with torch.no_grad():
        before = student(images)
    recorder = DirectionTapsRecorder(tap)
    found, during = record(recorder, student, images)
    torch.testing.assert_close(before, during, **SUM_TOL)
    assert hooks_of(student) == 0
    assert not any(
        taps.active(name)
        for taps in student.backbone.taps()
        for name in student.backbone.directions
    )
    assert recorder._seen == []
    assert recorder._block_inputs == {}

    calls = []
    for layer in student.backbone.layers:
        mix = layer.mamba.mix
        layer.mamba.mix = lambda x, grid, merge, mix=mix: (
            calls.append(merge) or mix(x, grid, merge)
        )
    with torch.no_grad():
        after = student(images)
    assert torch.equal(before, after)
    assert calls == [True] * len(student.backbone.layers)
    with recorder, torch.no_grad():
        student(images)
    assert len(recorder.get_record_data()) == len(found)


def test_a_failed_pass_leaves_no_trace(student):
    recorder = DirectionTapsRecorder('residual')
    recorder.initialize(student)
    with pytest.raises(RuntimeError), recorder:
        student(torch.zeros(1, 5, 16, 16))
    assert hooks_of(student) == 0
    assert recorder.data_buffer == []


def test_stock_mmrazor_recorder_sees_a_tap(student):
    direction = 'snake_vertical_reverse'
    manager = RecorderManager(
        dict(
            tap=dict(
                type='mmrazor.ModuleOutputs',
                source=f'backbone.layers.0.mamba.taps.out.{direction}',
            )
        )
    )
    manager.initialize(student)
    images, _ = tiny_batch()
    with manager, torch.no_grad():
        student(images)
    stock = manager.get_recorder('tap').get_record_data()
    found, _ = record(DirectionTapsRecorder(), student, images)
    (ours,) = (
        r.tokens for r in found if (r.layer, r.direction) == (0, direction)
    )
    assert torch.equal(stock, ours)


class MiddleClassToken(MambaBackbone, BaseModule):
    """Scans three patches with a class token in the middle."""

    directions = ('raster', 'raster_reverse')
    layer_dims = (2,)
    num_extra_tokens = 1

    def __init__(self):
        super().__init__(out_type='raw')
        self.mixer = nn.Identity()
        self.mixer.taps = DirectionTaps(self.directions)
        self.layers = nn.ModuleList([nn.Identity()])

    def mixers(self):
        return [self.mixer]

    def blocks(self):
        return list(self.layers)

    def class_token_positions(self, direction, *grid):
        return (1,) if direction == 'raster' else (2,)

    def forward(self, x):
        x = self.layers[0](x)
        for name in self.directions:
            tap = self.mixer.taps.out[name]
            if tap.active:
                tap(x if name == 'raster' else x.flip(1), (1, 3))
        return (x,)


def test_class_tokens_of_students_are_skipped():
    model = MiddleClassToken()
    assert find_student(model) is model
    sequence = torch.tensor([10.0, -1, 11, 12]).view(1, 4, 1).repeat(1, 1, 2)
    found, _ = record(DirectionTapsRecorder(), model, sequence)
    by_name = {r.direction: r.tokens[0, :, 0].tolist() for r in found}
    assert by_name == dict(raster=[10, 11, 12], raster_reverse=[12, 11, 10])
    assert [r.order().tolist() for r in found] == [[0, 1, 2], [2, 1, 0]]
    with pytest.raises(ValueError, match='without class tokens'):
        record(DirectionTapsRecorder('residual'), model, sequence)


def test_taps_refuse_reentrant_checkpointing():
    student = build(tiny_student())
    layer = student.backbone.layers[0]
    inner = layer.forward
    layer.forward = lambda x, grid: checkpoint(
        inner, x, grid, use_reentrant=True
    )
    recorder = DirectionTapsRecorder()
    recorder.initialize(student)
    images, _ = tiny_batch()
    refused = pytest.raises(RuntimeError, match='activation checkpointing')
    with refused, recorder:
        student(images)
    with recorder, torch.no_grad():
        student(images)  # nothing to cut off


@pytest.mark.parametrize('tap', DirectionTapsRecorder.TAPS)
@pytest.mark.parametrize('directions', [None, ['snake_vertical']])
def test_taps_reach_through_the_backbones_own_checkpointing(tap, directions):
    """The graph, the taps' gradients and what is left behind are the same."""
    images, _ = tiny_batch()
    grads = {}
    for with_cp in (False, True):
        torch.manual_seed(0)
        student = build(tiny_student(with_cp=with_cp)).train()
        recorder = DirectionTapsRecorder(tap, directions)
        recorder.initialize(student)
        with recorder:
            output = student(images)
        taps = recorder.get_record_data()
        assert len(taps) == 2 * len(directions or student.backbone.directions)
        loss = output[0].square().sum()
        loss = loss + sum(t.tokens.square().sum() * t.layer for t in taps)
        loss.backward()
        grads[with_cp] = {
            name: parameter.grad
            for name, parameter in student.backbone.named_parameters()
        }
        assert hooks_of(student) == 0
        assert not any(
            tap.active
            for taps in student.backbone.taps()
            for tap in (*taps.inner.values(), *taps.out.values())
        )
    for name, grad in grads[False].items():
        torch.testing.assert_close(grads[True][name], grad, **SUM_TOL)
        assert grad.abs().sum() > 0, name
