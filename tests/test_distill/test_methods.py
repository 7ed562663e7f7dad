# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Every method gives the loss that plain hooks give, and teaches no more.

Expected losses are computed anew from what :mod:`pair_cases` sees by forward
hooks on modules that it knows by their own names.
"""

import itertools
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from distill_cases import METHODS, SAME, method, of_methods, total
from helpers import SNAKES, build, pmamba_cfg, vit_cfg
from pair_cases import (
    CLASSES,
    PAIRS,
    batch_of,
    on_grid,
    patches,
    plain_mamba,
    side_of,
    vision_mamba,
    vit,
    vmamba,
    watch,
)

from transmamba_mm.contract import KeptChannels, TeacherError
from transmamba_mm.distill import (
    LayerMatchLoss,
    TransMambaDistill,
    normalised_mse,
)
from transmamba_mm.distill.methods import masked_relation

CLOSE = dict(rtol=1e-4, atol=1e-5)


def some_mask(like, ratio):
    """As :func:`random_mask`, but the same for all that it is asked for."""
    batch, tokens = like.shape[:2]
    places = torch.arange(tokens) * 7 + 3 * torch.arange(batch)[:, None]
    return places % tokens < round(ratio * tokens)


@pytest.fixture(scope='module', autouse=True)
def _masks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masked_relation, 'random_mask', some_mask)
        yield


def distilled(student, teacher, *methods, alpha=0.5, **kwargs):
    """A distillation of live models."""
    torch.manual_seed(0)
    distiller = of_methods(*methods, **kwargs)
    model = TransMambaDistill(student, teacher, distiller, alpha=alpha)
    return model.train()


def kept(width):
    """Stands for the channels that subcloning chose."""
    return torch.arange(width) + 1


class Pair:
    """A pair with all of its methods at once, and what hooks see of it."""

    def __init__(self, case):
        self.case = case
        self.methods = {
            name: dict(config)
            for name, config in METHODS.items()
            if name not in case.without
        }
        self.model = distilled(
            case.student(), case.teacher(), *self.methods.values(), alpha=0
        )
        for module in self.model.modules():
            if isinstance(module, KeptChannels):
                module.take({width: kept(width) for width in range(16)})
        self.student_parts = case.student_parts(self.model.student)
        self.teacher_parts = case.teacher_parts(self.model.teacher)
        self.batch = batch_of(case.size)
        self.teacher = self.look_at_teacher()
        self.student = self.look_at_student()

    @torch.no_grad()
    def look_at_teacher(self):
        run = partial(self.model.teacher, self.batch[0], mode='tensor')
        return watch(self.teacher_parts, run)

    def look_at_student(self):
        backbone = self.model.student.backbone
        taps = {
            (layer, direction): mixer.taps.out[direction]
            for layer, mixer in enumerate(self.student_parts.mixers)
            for direction in backbone.directions
        }
        run = partial(self.model.student, *self.batch, mode='loss')
        return watch(self.student_parts, run, taps)

    def maps(self, connector):
        """Projections of a method by layer."""
        maps = self.model.distiller.connectors[connector].maps
        return {int(layer): each for layer, each in maps.items()}


@pytest.fixture(scope='module', params=PAIRS)
def pair(request):
    return Pair(PAIRS[request.param])


@pytest.fixture(scope='module')
def equals():
    """The pair of equal widths and grids."""
    return Pair(PAIRS['ViT to PlainMamba'])


# ---------------------------------------------------------- the losses


def in_units_of_variance(found, target):
    variance = target.flatten(0, 1).var(0, unbiased=False).mean()
    return (found - target).square().mean() / variance


def matching(pair, site, layers, connector=None):
    """Paired layers on the teacher's grid.

    Of the teacher's width by a connector, else of its kept channels.
    """
    errors, maps = [], pair.maps(connector) if connector else {}
    for layer, source in layers.items():
        target = getattr(pair.teacher, site)[source]
        target = patches(target, pair.teacher_parts.classes)
        found = getattr(pair.student, site)[layer]
        found = patches(found, pair.student_parts.classes)
        found = on_grid(found, side_of(target))
        if connector:
            assert (layer in maps) == (found.shape[-1] != target.shape[-1])
        if layer in maps:
            found = F.linear(found, maps[layer].weight, maps[layer].bias)
        target = like(found, target)
        errors.append(in_units_of_variance(found, target))
    return sum(errors) / len(errors)


def like(found, target):
    """Those channels of the target that subcloning gave the student."""
    if found.shape[-1] == target.shape[-1]:
        return target
    return target[..., kept(found.shape[-1])]


def kl(pair):
    student = (pair.student.logits / 2).log_softmax(1)
    teacher = (pair.teacher.logits / 2).log_softmax(1)
    return 4 * (teacher.exp() * (teacher - student)).sum(1).mean()


def hard_label(pair):
    labels = pair.teacher.logits.argmax(1)
    chosen = pair.student.logits.log_softmax(1)[range(len(labels)), labels]
    return -chosen.mean()


def hint(pair):
    last = pair.student.tokens, pair.teacher.tokens
    return regressed(pair, 'hint_student', *last)


def stream(pair):
    last = pair.student.layers[-1], pair.teacher.layers[-1]
    return regressed(pair, 'stream_student', *last)


def regressed(pair, connector, student, teacher):
    (each,) = pair.maps(connector).values()
    target = patches(teacher, pair.teacher_parts.classes)
    found = patches(student, pair.student_parts.classes)
    found = on_grid(found @ each.weight.T + each.bias, side_of(target))
    return (found - target).square().mean()


def hidden(pair):
    return matching(pair, 'layers', pair.case.layers)


def learned_hidden(pair):
    layers = pair.case.layers
    return matching(pair, 'layers', layers, 'learned_hidden_student')


def own_mixer(pair):
    return matching(pair, 'mixers', pair.case.layers, 'own_mixer_student')


def for_the_student(pair, tokens):
    """The teacher's tokens with its class token where the student has one."""
    sequence = patches(tokens, pair.teacher_parts.classes)
    for slot in pair.student_parts.classes:
        parts = [sequence[:, :slot], tokens[:, :1], sequence[:, slot:]]
        sequence = torch.cat(parts, 1)
    return sequence


def mixer(pair, layers=None):
    errors = []
    for layer, source in (layers or pair.case.layers).items():
        stream = for_the_student(pair, pair.teacher.streams[source])
        target = for_the_student(pair, pair.teacher.mixers[source])
        mixer = pair.student_parts.mixers[layer]
        norm = pair.student_parts.norms[layer]
        width = norm.weight
        stream, target = like(width, stream), like(width, target)
        patch = patches(stream, pair.student_parts.classes)
        mixed = mixer(norm(stream), (side_of(patch),) * 2)
        errors.append(in_units_of_variance(mixed, target))
    return sum(errors) / len(errors)


def rows(tokens):
    """Of the map that tells which tokens are alike."""
    alike = F.cosine_similarity(tokens[:, :, None], tokens[:, None], dim=-1)
    return alike / alike.norm(dim=-1, keepdim=True)


def relations(pair):
    errors, layers = [], list(pair.case.layers.items())
    for layer, source in (layers[len(layers) // 2 - 1], layers[-1]):
        target = pair.teacher.layers[source]
        target = patches(target, pair.teacher_parts.classes)
        found = pair.student.layers[layer]
        found = patches(found, pair.student_parts.classes)
        found = rows(on_grid(found, side_of(target)))
        errors.append(1 - (found * rows(target)).sum(-1).mean())
    return sum(errors) / len(errors)


def standardised_kl(pair):
    def soft(scores):
        mean, std = scores.mean(1, keepdim=True), scores.std(1, keepdim=True)
        return ((scores - mean) / std / 2).log_softmax(1)

    student, teacher = soft(pair.student.logits), soft(pair.teacher.logits)
    return 4 * (teacher.exp() * (teacher - student)).sum(1).mean()


def released(pair):
    wanted = pair.teacher.tokens[:, 0]
    features = [*pair.student.layers, pair.student.tokens]
    total = 0
    for i, tokens in enumerate(features):
        found = patches(tokens, pair.student_parts.classes).mean(1)
        width = min(found.shape[1], wanted.shape[1])
        target = (wanted[:, :width] / 2).softmax(1)
        scores = (found[:, :width] / 2).log_softmax(1)
        weight = 120 if i == len(features) - 1 else i + 1
        total -= weight * (target * scores).sum(1).mean()
    return total


def bridge(pair):
    connector = pair.model.distiller.connectors['bridge_student']
    total = 0
    for layer, source in pair.case.layers.items():
        parts = pair.teacher_parts
        read = parts.norms[source](pair.teacher.streams[source])
        qkv = F.linear(read, *parts.qkv(parts.mixers[source]))
        query, key, _ = patches(qkv, parts.classes).chunk(3, -1)
        mlps = list(connector.maps[str(layer)])
        for B, C in pair.student.bc[layer]:
            for found, target in ((B, key), (C, query)):
                found = patches(found, pair.student_parts.classes)
                first, _, last = mlps.pop(0)
                found = F.linear(found, first.weight, first.bias)
                found = F.linear(F.silu(found), last.weight, last.bias)
                found = on_grid(found, side_of(target))
                total += (found - target).square().mean()
        assert not mlps
    return total / len(pair.case.layers)


def ofa(pair):
    labels = torch.cat([sample.gt_label for sample in pair.batch[1]])
    believed = pair.teacher.logits.softmax(1)
    target = believed**1.5
    for i, label in enumerate(labels):
        target[i, label] = (1 + believed[i, label]) ** 1.5 - 1
    scores = [pair.student.logits]
    exits = pair.model.distiller.connectors['ofa_exits'].exits
    widths = [x.shape[-1] for x in pair.student.layers]
    last = [i for i, x in enumerate(widths) if x not in widths[i + 1 :]]
    assert list(map(int, exits)) == (last if len(last) > 1 else [0, 1])
    for layer, branch in exits.items():
        tokens = pair.student.layers[int(layer)]
        tokens = patches(tokens, pair.student_parts.classes)
        maps = tokens.mT.unflatten(2, (side_of(tokens),) * 2)
        if side_of(tokens) > 7:
            maps = F.interpolate(maps, (7, 7), mode='area')
        tokens = maps.flatten(2).mT
        if tokens.shape[-1] != widths[-1]:
            wide = branch.widen
            tokens = F.linear(tokens, wide.weight, wide.bias)
        for each in branch.layers:
            tokens = each(tokens)
        mean = tokens.mean(1)
        scores.append(F.linear(mean, branch.fc.weight, branch.fc.bias))
    return -sum((target * x.log_softmax(1)).sum(1).mean() for x in scores)


def masked_relations(pair):
    loss = pair.model.distiller.distill_losses['loss_masked_relations']
    masks = []

    def mask(module, inputs, output):
        masks.append(some_mask(output[0], 0.6))
        hidden = masks[0].float().unsqueeze(-1)
        return (1 - hidden) * output[0] + hidden * loss.mask_token, output[1]

    embed = pair.model.student.backbone.patch_embed
    handle = embed.register_forward_hook(mask)
    seen = pair.look_at_student()
    handle.remove()

    def chosen(parts, tokens, masked):
        tokens = on_grid(patches(tokens, parts.classes), 4)
        kept = [x[hidden == masked] for x, hidden in zip(tokens, masks[0])]
        return torch.stack(kept)

    ours, theirs = pair.student_parts, pair.teacher_parts
    errors = []
    for layer, source in pair.case.layers.items():
        found = rows(chosen(ours, seen.layers[layer], False))
        target = rows(chosen(theirs, pair.teacher.layers[source], False))
        errors.append(1 - (found * target).sum(-1).mean())
    guess = chosen(ours, seen.tokens, True)
    truth = chosen(theirs, pair.teacher.tokens, True)
    if guess.shape != truth.shape:
        guess = F.linear(guess, loss.predict.weight, loss.predict.bias)
    error = (guess - truth).abs()
    smooth = torch.where(error < 1, error.square() / 2, error - 0.5).mean()
    return sum(errors) / len(errors) + smooth


def transmamba(pair):
    backbone = pair.model.student.backbone
    mlps = list(pair.model.distiller.connectors['calibration'].mlps)
    target = patches(pair.teacher.tokens, pair.teacher_parts.classes)
    side = side_of(target)
    similarities = {direction: [] for direction in backbone.directions}
    for (_, direction), tap in pair.student.taps.items():
        classes = pair.student_parts.classes
        if direction == 'raster_reverse':
            classes = [tap.shape[1] - 1 - place for place in classes]
        scanned = patches(tap, classes)
        mlp = mlps.pop(0)
        own = backbone.scan_order(direction, *(side_of(scanned),) * 2)
        raster = torch.empty_like(scanned)
        raster[:, own] = scanned
        order = backbone.scan_order(direction, side, side)
        tokens = on_grid(raster, side)[:, order]
        if mlp.reduce is not None:
            tokens = tokens @ mlp.reduce.weight.T
        tokens = F.pad(tokens, (0, target.shape[-1] - tokens.shape[-1]))
        tokens = mlp.fc2(F.gelu(mlp.fc1(tokens)))
        cosine = F.cosine_similarity(tokens, target[:, order], dim=-1)
        similarities[direction].append(cosine.mean())
    loss = 0
    for values in map(torch.stack, similarities.values()):
        loss += ((-values.detach() / 0.1).softmax(0) * (1 - values)).sum()
    return loss


EXPECTED = dict(
    transmamba=transmamba,
    kl=kl,
    hard_label=hard_label,
    hint=hint,
    stream=stream,
    hidden=hidden,
    learned_hidden=learned_hidden,
    mixer=mixer,
    own_mixer=own_mixer,
    relations=relations,
    standardised_kl=standardised_kl,
    released=released,
    bridge=bridge,
    ofa=ofa,
    masked_relations=masked_relations,
)


def grads_of(loss, model):
    """Gradients of the student, zero where the loss knows it not."""
    named = dict(model.student.named_parameters())
    found = torch.autograd.grad(
        loss, named.values(), retain_graph=True, allow_unused=True
    )
    return {
        name: torch.zeros_like(each) if grad is None else grad
        for (name, each), grad in zip(named.items(), found)
    }


@pytest.mark.parametrize(
    ('pair', 'name'),
    [
        (key, name)
        for key, case in PAIRS.items()
        for name in METHODS
        if name not in case.without
    ],
    indirect=['pair'],
)
def test_loss_and_gradient_are_those_of_plain_hooks(pair, name):
    losses = pair.model(*pair.batch, mode='loss')
    found, wanted = losses[f'distill.loss_{name}'], EXPECTED[name](pair)
    assert wanted > 0.01
    torch.testing.assert_close(found, wanted, **CLOSE)
    found = grads_of(found, pair.model)
    pair.student = pair.look_at_student()
    wanted = grads_of(EXPECTED[name](pair), pair.model)
    for key, grad in wanted.items():
        scale = max(grad.abs().max().item(), 1e-3)
        torch.testing.assert_close(
            found[key], grad, rtol=1e-3, atol=1e-4 * scale, msg=key
        )


def losses_and_grads(pair):
    losses = pair.model(*pair.batch, mode='loss')
    losses = {k: v for k, v in losses.items() if 'distill.loss' in k}
    grads = {k: grads_of(loss, pair.model) for k, loss in losses.items()}
    return losses, grads


def test_computing_activations_again_changes_nothing(pair):
    plain, grads = losses_and_grads(pair)
    pair.model.student.backbone.with_cp = True
    again, same_grads = losses_and_grads(pair)
    pair.model.student.backbone.with_cp = False
    assert len(plain) == len(pair.methods)
    torch.testing.assert_close(again, plain, **SAME)
    for key, wanted in grads.items():
        for name, grad in wanted.items():
            torch.testing.assert_close(
                same_grads[key][name], grad, msg=f'{key} {name}', **CLOSE
            )


def test_half_precision_is_close(pair):
    exact = pair.model(*pair.batch, mode='loss')
    with torch.autocast('cpu', dtype=torch.bfloat16):
        rough = pair.model(*pair.batch, mode='loss')
    total(rough).backward()
    pair.model.zero_grad()
    for name in pair.methods:
        key = f'distill.loss_{name}'
        assert rough[key].dtype == torch.float32
        torch.testing.assert_close(
            rough[key], exact[key], rtol=0.05, atol=0.03, msg=key
        )


# ------------------------------------------------- what a loss can teach


#: Parameters of the tiny PlainMamba: names that match these.
EMBEDDINGS = r'backbone\.(pos_embed|patch_embed\..+)'
MIXER = r'backbone\.layers\.{}\.(norm|mamba)\..+'
BLOCK = r'backbone\.layers\.{}\..+'
FIRST = (EMBEDDINGS, BLOCK.format(0))
LAST_MIXER = (*FIRST, MIXER.format(1))
ALL_BLOCKS = (*FIRST, BLOCK.format(1))
EVERYTHING = (r'.+',)

TEACHES = {
    'kl': (method('LogitsKD'), EVERYTHING),
    'hard label': (method('HardLabel'), EVERYTHING),
    'hint': (method('LastLayerHint'), (r'backbone\..+',)),
    'hidden': (method('HiddenStates'), ALL_BLOCKS),
    'hidden, first layer': (
        method('HiddenStates', layer_map=[1, None]),
        FIRST,
    ),
    'bridge': (
        method('AttentionBridge'),
        (
            *FIRST,
            r'backbone\.layers\.1\.norm\..+',
            r'.+\.1\.mamba\.(in_proj|conv2d|x_proj|direction_Bs)\b.*',
        ),
    ),
    'exits': (method('OneForAll'), EVERYTHING),
    'masked relations': (
        method('MaskedTokenRelations'),
        (r'backbone\..+',),
    ),
    'transmamba': (
        method('AdaptiveBidirectional'),
        # A tap has no bias.
        (*FIRST, r'(?!.+out_proj\.bias)' + MIXER.format(1)),
    ),
    'own mixers': (method('MixerMatching', teacher_forced=False), LAST_MIXER),
    'own mixer, first layer': (
        method('MixerMatching', teacher_forced=False, layer_map=[2, None]),
        (EMBEDDINGS, MIXER.format(0)),
    ),
    'mixers': (method('MixerMatching'), (MIXER.format('[01]'),)),
    'mixer, last layer': (
        method('MixerMatching', layer_map=[None, 1]),
        (MIXER.format(1),),
    ),
}


@pytest.mark.parametrize(
    ('config', 'reached'), TEACHES.values(), ids=list(TEACHES)
)
def test_gradients_reach_what_they_should_and_nothing_else(
    equals, config, reached
):
    model = distilled(equals.model.student, equals.model.teacher, config)
    losses = model(*equals.batch, mode='loss')
    (key,) = (k for k in losses if 'distill.loss' in k)
    for name, grad in grads_of(losses[key], model).items():
        wanted = any(re.fullmatch(pattern, name) for pattern in reached)
        assert bool(grad.any()) == wanted, name
    losses[key].backward()
    assert all(p.grad.any() for p in model.distiller.parameters())
    assert all(p.grad is None for p in model.teacher.parameters())
    model.zero_grad()


def test_a_student_as_wide_as_its_teacher_needs_no_projection():
    names = ('hidden', 'learned_hidden', 'own_mixer', 'hint')
    methods = [METHODS[name] for name in names]
    for dims in (16, 12):
        model = distilled(plain_mamba(dims), vit(), *methods)
        found = {
            name: {key: each.weight.shape for key, each in c.maps.items()}
            for name, c in model.distiller.connectors.items()
        }
        last = {'1': (16, dims)}
        both = {'0': (16, 12), '1': (16, 12)} if dims == 12 else {}
        assert found == dict(
            learned_hidden_student=both,
            own_mixer_student=both,
            hint_student=last,
        )


LAYER_MAPS = [
    ('uniform', {0: 0, 1: 2}),
    ('first_n', {0: 0, 1: 1}),
    ([2, 0], {0: 2, 1: 0}),
    ([None, 1], {1: 1}),
]


@pytest.mark.parametrize(('layer_map', 'layers'), LAYER_MAPS)
def test_layer_maps(equals, layer_map, layers):
    names = ('hidden', 'own_mixer', 'mixer')
    model = distilled(
        equals.model.student,
        equals.model.teacher,
        *(dict(METHODS[name], layer_map=layer_map) for name in names),
    )
    losses = model(*equals.batch, mode='loss')
    wanted = [
        matching(equals, 'layers', layers),
        matching(equals, 'mixers', layers, 'own_mixer_student'),
        mixer(equals, layers),
    ]
    for name, value in zip(names, wanted):
        torch.testing.assert_close(
            losses[f'distill.loss_{name}'], value, msg=name, **CLOSE
        )


def test_surplus_student_layers_learn_nothing_of_first_n(equals):
    student = build(pmamba_cfg(depth=4, classes=CLASSES))
    config = method('MixerMatching', layer_map='first_n')
    model = distilled(student, equals.model.teacher, config)
    loss = model(*equals.batch, mode='loss')['distill.loss_mixer']
    for name, grad in grads_of(loss, model).items():
        wanted = re.fullmatch(MIXER.format('[012]'), name)
        assert bool(grad.any()) == bool(wanted), name


@pytest.mark.parametrize('scale', [1e-4, 1.0, 1e4])
def test_errors_are_in_units_of_the_teachers_variance(scale):
    student, teacher = torch.randn(2, 3, 5, 7)
    found = normalised_mse(scale * student, scale * teacher)
    wanted = in_units_of_variance(student, teacher)
    torch.testing.assert_close(found, wanted, **CLOSE)
    mean = teacher.mean((0, 1)).expand_as(teacher)
    torch.testing.assert_close(
        normalised_mse(mean, teacher), torch.tensor(1.0)
    )


def test_a_teacher_that_says_nothing_gives_a_finite_error():
    teacher = torch.zeros(2, 3, 4)
    assert normalised_mse(torch.ones(2, 3, 4), teacher).isfinite()
    assert normalised_mse(teacher, teacher) == 0


# -------------------------------------------------------- several at once


def together(pair, *methods, **kwargs):
    """Other methods for the models of a pair, with its connectors."""
    model = distilled(
        pair.model.student, pair.model.teacher, *methods, **kwargs
    )
    for kind in ('connectors', 'distill_losses'):
        own = getattr(pair.model.distiller, kind)
        for name, each in getattr(model.distiller, kind).items():
            if name in own:
                each.load_state_dict(own[name].state_dict())
    return model


@pytest.fixture(scope='module')
def alone(equals):
    """The task loss, and the loss of each method by itself."""
    losses = {}
    for name, config in METHODS.items():
        found = together(equals, config, alpha=0.5)(*equals.batch, mode='loss')
        assert {k for k in found if 'loss' in k} == {
            'student.loss',
            f'distill.loss_{name}',
        }
        losses[name] = found[f'distill.loss_{name}']
    losses['transmamba'] = 2 * losses['transmamba']  # inside alpha
    losses['task'] = equals.model.student(*equals.batch, mode='loss')['loss']
    return losses


COMBINATIONS = [*itertools.combinations(METHODS, 2), tuple(METHODS)]


@pytest.mark.parametrize('names', COMBINATIONS, ids=' and '.join)
def test_methods_add_up(equals, alone, names):
    inside = 'transmamba' in names
    configs = [dict(METHODS[name], loss_weight=3.0) for name in names]
    model = together(equals, *configs, alpha=0.3)
    losses = model(*equals.batch, mode='loss')
    wanted = (0.3 if inside else 1) * alone['task']
    for name in names:
        share = 3 * (0.7 if name == 'transmamba' else 1)
        found = losses[f'distill.loss_{name}']
        torch.testing.assert_close(found, share * alone[name], **SAME)
        wanted = wanted + share * alone[name]
    assert len([key for key in losses if 'loss' in key]) == 1 + len(names)
    torch.testing.assert_close(model.parse_losses(losses)[0], wanted, **SAME)


@pytest.mark.parametrize('name', METHODS)
def test_inside_and_beside_alpha(equals, alone, name):
    for inside in (True, False):
        config = dict(METHODS[name], in_alpha=inside)
        other = method('HardLabel', name='other')
        model = together(equals, config, other, alpha=0.2)
        losses = model(*equals.batch, mode='loss')
        task, share = (0.2, 0.8) if inside else (1, 1)
        wanted = {
            'student.loss': task * alone['task'],
            f'distill.loss_{name}': share * alone[name],
            'distill.loss_other': alone['hard_label'],
        }
        found = {key: losses[key] for key in wanted}
        torch.testing.assert_close(found, wanted, **SAME)


def test_a_method_twice_needs_a_name(equals):
    with pytest.raises(ValueError, match=r"'loss_kl' twice.*another name="):
        together(equals, method('LogitsKD'), method('LogitsKD', tau=4.0))


def test_a_method_twice_under_two_names(equals, alone):
    configs = [METHODS['kl'], METHODS['transmamba']]
    model = distilled(
        equals.model.student,
        equals.model.teacher,
        *configs,
        *(dict(x, name=f'half_{i}') for i, x in enumerate(configs)),
        alpha=0,
    )
    distiller = model.distiller
    # They read the same, and learn apart.
    assert len(distiller.student_recorders.recorders) == 2
    assert len(distiller.teacher_recorders.recorders) == 2
    one, other = distiller.connectors.values()
    other.load_state_dict(one.state_dict())
    losses = model(*equals.batch, mode='loss')
    for a, b in (('kl', 'half_0'), ('transmamba', 'half_1')):
        assert losses[f'distill.loss_{a}'] == losses[f'distill.loss_{b}']
    assert {'distill.transmamba_w_max', 'distill.half_1_w_max'} <= set(losses)


def raw_logits(**loss):
    """Logits distillation of mmrazor's own parts."""
    recorder = partial(dict, type='mmrazor.ModuleOutputs')
    return dict(
        student_recorders=dict(s=recorder(source='head.fc')),
        teacher_recorders=dict(t=recorder(source='head.layers.head')),
        distill_losses=dict(
            loss_raw=dict(type='mmrazor.KLDivergence', tau=2.0, **loss)
        ),
        loss_forward_mappings=dict(
            loss_raw=dict(
                preds_S=dict(recorder='s', from_student=True),
                preds_T=dict(recorder='t', from_student=False),
            )
        ),
    )


def test_parts_of_mmrazor_stand_beside_methods(alone):
    pair = Pair(PAIRS['ViT to PlainMamba'])
    model = together(
        pair, *METHODS.values(), alpha=0.3, **raw_logits(loss_weight=3.0)
    )
    losses = model(*pair.batch, mode='loss')
    wanted = 3 * losses['distill.loss_kl']
    torch.testing.assert_close(losses['distill.loss_raw'], wanted, **SAME)
    assert len([k for k in losses if 'distill.loss' in k]) == 1 + len(METHODS)


def plain_distiller():
    """Two methods as configs of version 0.1 wrote them, sizes and all."""
    raw = raw_logits(loss_weight=0.7)
    raw['student_recorders']['taps'] = dict(type='transmamba.DirectionTaps')
    raw['teacher_recorders']['tokens'] = dict(
        type='transmamba.PatchTokens', source=r'backbone\.ln1'
    )
    raw['distill_losses'] = dict(
        loss_tm=dict(type='transmamba.AdaptiveBidirectionalDistill', tau=0.2),
        **raw['distill_losses'],
    )
    raw['loss_forward_mappings']['loss_tm'] = dict(
        student=dict(
            recorder='taps', from_student=True, connector='calibration'
        ),
        teacher=dict(recorder='tokens', from_student=False),
    )
    calibration = dict(
        type='transmamba.FeatureCalibration',
        in_channels=16,
        out_channels=16,
        num_layers=2,
        directions=SNAKES,
    )
    return dict(
        type='mmrazor.ConfigurableDistiller',
        connectors=dict(calibration=calibration),
        **raw,
    )


def test_methods_equal_a_plain_distiller_bit_by_bit():
    methods = of_methods(
        method('AdaptiveBidirectional', tau=0.2),
        method('LogitsKD', tau=2.0, loss_weight=0.7),
    )
    found = []
    for distiller in (methods, plain_distiller()):
        torch.manual_seed(0)
        student, teacher = plain_mamba(), vit()
        model = TransMambaDistill(student, teacher, distiller, alpha=0.3)
        losses = model.train()(*batch_of(16), mode='loss')
        model.parse_losses(losses)[0].backward()
        state = [(k, p.grad) for k, p in model.named_parameters()]
        found.append((losses, dict(state), model.state_dict()))
    ours, plain = found
    renamed = {'loss_tm': 'loss_transmamba', 'loss_raw': 'loss_kl'}
    for key, value in plain[0].items():
        name = key.removeprefix('distill.')
        assert value.equal(ours[0][key.replace(name, renamed.get(name, name))])
    assert len(ours[0]) == len(plain[0])
    for mine, theirs in zip(ours[1:], plain[1:]):
        # Names too: a checkpoint of one loads into the other.
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            if value is None:
                assert mine[key] is None, key
            else:
                assert value.equal(mine[key]), key


# ---------------------------------------------------------------- mistakes


def deit_without_class_token():
    return build(
        vit_cfg(
            depth=3,
            classes=CLASSES,
            with_cls_token=False,
            out_type='avg_featmap',
        )
    )


@pytest.mark.parametrize(
    ('student', 'teacher', 'config', 'error', 'message'),
    [
        (
            plain_mamba,
            vit,
            method('LogitsKD', tua=3.0),
            TypeError,
            'LogitsKD has no option tua',
        ),
        (
            plain_mamba,
            vit,
            method('HiddenStates', begin=0.5, end=0.2),
            ValueError,
            'got 0.5 and 0.2',
        ),
        (
            plain_mamba,
            vit,
            method('NoMethod'),
            KeyError,
            'NoMethod is not in',
        ),
        (
            partial(plain_mamba, 20),
            vit,
            method('MixerMatching'),
            ValueError,
            r'layer 0 \(20 channels\).*layer 0 reads \(16 channels\): '
            'choose a student that is not wider, or teacher_forced=False',
        ),
        (
            vision_mamba,
            deit_without_class_token,
            method('MixerMatching'),
            ValueError,
            'needs a teacher with a class token.*or teacher_forced=False',
        ),
        (
            plain_mamba,
            vit,
            method('HiddenStates', layer_map=[0, 1, 2]),
            ValueError,
            r'layer_map \[0, 1, 2\] needs.*each of the 2 student layers',
        ),
        (
            plain_mamba,
            vit,
            method('MixerMatching', layer_map=[None, 3]),
            ValueError,
            r'teacher layer in 0\.\.2, or None',
        ),
        (
            plain_mamba,
            vit,
            method('HiddenStates', layer_map='linear'),
            ValueError,
            "'uniform', 'first_n' or a list, got 'linear'",
        ),
        (
            plain_mamba,
            vit,
            method('HiddenStates', layer_map=[None, None]),
            ValueError,
            'pairs no layer',
        ),
        (
            plain_mamba,
            plain_mamba,
            method('HiddenStates'),
            TeacherError,
            'no known Transformer.*extending.md',
        ),
        (
            vit,
            vit,
            method('LogitsKD'),
            TypeError,
            'expected one transmamba_mm backbone.*found 0',
        ),
        (
            partial(vmamba, (1, 1)),
            vit,
            method('MaskedTokenRelations'),
            ValueError,
            r'VMamba does not keep the grid.*transmamba\.TokenRelations',
        ),
        (
            plain_mamba,
            vit,
            method('MaskedTokenRelations', mask_ratio=1.0),
            ValueError,
            'between 0 and 1, got 1.0',
        ),
        (
            plain_mamba,
            vit,
            method('OneForAll', gamma=0.0),
            ValueError,
            'gamma must be positive',
        ),
        (
            plain_mamba,
            vit,
            method('OneForAll', stages=0),
            ValueError,
            'stages must be at least 1',
        ),
        (
            plain_mamba,
            plain_mamba,
            method('AttentionBridge'),
            TeacherError,
            'no known Transformer',
        ),
        (
            plain_mamba,
            vit,
            method('LastLayerHint', lifted=True),
            ValueError,
            'no lift: give it neck=',
        ),
        (
            plain_mamba,
            vit,
            method('LastLayerHint', lifted=True, normalised=False),
            ValueError,
            'lifted=True needs normalised=True',
        ),
        (
            plain_mamba,
            vit,
            method('HiddenStates', teacher_backbone='text'),
            TeacherError,
            "no known Transformer called 'text'",
        ),
    ],
    ids=lambda value: value.get('type') if isinstance(value, dict) else None,
)
def test_mistakes_are_told(student, teacher, config, error, message):
    with pytest.raises(error) as caught:
        distilled(student(), teacher(), config)
    assert re.search(message, str(caught.value), re.DOTALL)


@pytest.mark.parametrize('dims', [12, 20])
@pytest.mark.parametrize('name', ['hidden', 'mixer'])
def test_kept_channels_must_have_been_kept(name, dims):
    if (name, dims) == ('mixer', 20):
        return  # told before
    model = distilled(plain_mamba(dims), vit(), METHODS[name])
    message = rf'student \({dims} channels\).*SubcloneInitializer'
    with pytest.raises(RuntimeError, match=message):
        model(*batch_of(16), mode='loss')


def test_a_teacher_without_class_token_may_teach_all_else():
    names = [name for name in METHODS if name not in ('mixer', 'released')]
    configs = [METHODS[name] for name in names]
    model = distilled(vision_mamba(), deit_without_class_token(), *configs)
    losses = model(*batch_of(16), mode='loss')
    assert all(losses[f'distill.loss_{name}'].isfinite() for name in names)


def test_of_several_students_and_teachers_the_named_ones_are_read():
    """Heads apart, which are one's own."""
    student, teacher = plain_mamba(), vit()
    student.other, teacher.other = plain_mamba(12), vit()
    names = dict(student_backbone='backbone', teacher_backbone='backbone')
    kept = [
        name
        for name in METHODS
        if name not in ('kl', 'hard_label', 'standardised_kl', 'ofa')
    ]
    configs = [dict(METHODS[name], **names) for name in kept]
    model = distilled(student, teacher, *configs)
    losses = model(*batch_of(16), mode='loss')
    assert all(losses[f'distill.loss_{name}'] > 0 for name in kept)


@pytest.mark.parametrize(
    'name',
    ['LogitsKD', 'StandardisedLogitsKD', 'ReleasedTransMamba', 'OneForAll'],
)
@pytest.mark.parametrize('tau', [0, -1.0, float('nan'), True, '2'])
def test_a_temperature_is_positive(name, tau):
    with pytest.raises(ValueError, match='tau must be '):
        distilled(plain_mamba(), vit(), method(name, tau=tau))


@pytest.mark.parametrize('name', METHODS)
@pytest.mark.parametrize('weight', [-1, float('nan'), float('inf'), None])
def test_a_weight_is_a_number(name, weight):
    options = {**METHODS[name], 'loss_weight': weight}
    with pytest.raises(ValueError, match='loss_weight must be '):
        distilled(plain_mamba(), vit(), options)


@pytest.mark.parametrize(
    'name', ['HardLabel', 'StandardisedLogitsKD', 'OneForAll']
)
def test_heads_are_of_the_same_classes(name):
    teacher = vit()
    teacher.head.layers.head = torch.nn.Linear(16, 7)
    model = distilled(plain_mamba(), teacher, method(name))
    with pytest.raises(ValueError, match=r'scores \d classes, the teacher 7'):
        model(*batch_of(16), mode='loss')


def test_methods_are_no_parts_of_a_plain_distiller():
    config = dict(
        of_methods(METHODS['kl']), type='mmrazor.ConfigurableDistiller'
    )
    with pytest.raises(ValueError, match=r'transmamba\.MethodDistiller'):
        TransMambaDistill(plain_mamba(), vit(), config)


def test_a_loss_of_pairs_that_knows_no_pair_says_so():
    with pytest.raises(RuntimeError, match='does not know its pair'):
        LayerMatchLoss()([], [])
