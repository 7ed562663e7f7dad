# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Subcloning in place, and what the tests look up in its plan."""

from helpers import build, pmamba_cfg, snapshot

from transmamba_mm.contract import read_teacher
from transmamba_mm.transfer import Subcloner

# float32 noise of a few layers.
CLOSE = dict(rtol=1e-4, atol=1e-5)

# Student name to teacher name, both below `backbone.layers.<i>.`.
LAYER_PAIRS = {
    'norm': 'ln1',
    'norm2': 'ln2',
    'ffn.layers.0.0': 'ffn.layers.0.0',
    'ffn.layers.1': 'ffn.layers.1',
    'mamba.out_proj': 'attn.proj',
}

WIDTH, HIDDEN = 10, 12  # of 16 and 32


def subclone(student, teacher, **kwargs):
    """Subclones in place; returns the plan and the weights before."""
    kwargs.setdefault('importance', 'first')
    before = snapshot(student)
    subcloner = Subcloner(
        student, read_teacher(teacher.state_dict()), **kwargs
    )
    plan = subcloner.plan()
    for name, value in student.state_dict().items():
        assert value.equal(before[name]), 'planning must not write'
    plan.apply(student)
    return plan, before


def narrow_student(seed=2, **kwargs):
    """Width 10, FFN 12 and d_inner 10."""
    return build(pmamba_cfg(dims=WIDTH, ffn_ratio=1.2, **kwargs), seed)


def counterparts(layers, leaves=('weight', 'bias')):
    """Student parameter to teacher parameter, ``layers`` pairs by index."""
    pairs = {
        f'backbone.layers.{i}.{ours}.{leaf}': (
            f'backbone.layers.{j}.{theirs}.{leaf}'
        )
        for i, j in enumerate(layers)
        if j is not None
        for ours, theirs in LAYER_PAIRS.items()
        for leaf in leaves
    }
    for leaf in leaves:
        pairs[f'backbone.ln1.{leaf}'] = f'backbone.ln1.{leaf}'
        pairs[f'head.fc.{leaf}'] = f'head.layers.head.{leaf}'
        name = f'backbone.patch_embed.projection.{leaf}'
        pairs[name] = name
    return pairs


def rules(plan):
    return {entry.name: entry.rule for entry in plan.entries}


def entry_of(plan, name):
    return next(entry for entry in plan.entries if entry.name == name)


def assert_untouched(student, before, names):
    state = student.state_dict()
    for name in names:
        assert state[name].equal(before[name]), name
