# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Distillers with other losses, and gradients of the student."""

from helpers import TINY_CLASSES, tiny_distiller

SAME = dict(rtol=1e-5, atol=1e-6)
PREPROCESSOR = dict(
    num_classes=TINY_CLASSES, mean=[128.0] * 3, std=[64.0] * 3, to_rgb=False
)


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


# --------------------------------------------------------------- methods


def of_methods(*methods, phases=(), **parts):
    """Config of a distiller of methods."""
    return dict(
        type='transmamba.MethodDistiller',
        methods=list(methods),
        phases=list(phases),
        **parts,
    )


def method(kind, **options):
    return dict(type=f'transmamba.{kind}', **options)


#: Every method, by the name of its loss.
METHODS = dict(
    transmamba=method('AdaptiveBidirectional'),
    kl=method('LogitsKD', tau=2.0),
    hard_label=method('HardLabel'),
    hint=method('LastLayerHint'),
    stream=method('LastLayerHint', normalised=False, name='stream'),
    hidden=method('HiddenStates'),
    learned_hidden=method(
        'HiddenStates', channels='learned', name='learned_hidden'
    ),
    mixer=method('MixerMatching'),
    own_mixer=method('MixerMatching', teacher_forced=False, name='own_mixer'),
    relations=method('TokenRelations', stages=2),
    standardised_kl=method('StandardisedLogitsKD'),
    released=method('ReleasedTransMamba'),
    bridge=method('AttentionBridge', hidden=8),
    ofa=method('OneForAll', gamma=1.5, stages=2),
    masked_relations=method('MaskedTokenRelations', stages=2, mask_ratio=0.6),
)
