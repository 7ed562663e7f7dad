# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Small PlainMambas, and what their modules return."""

import torch
from helpers import randomise

from transmamba_mm.models import PlainMamba


def backbone(depth=2, seed=0, eval_mode=True, **kwargs):
    kwargs.setdefault('arch', dict(embed_dims=16, num_layers=depth))
    kwargs.setdefault('img_size', 16)
    kwargs.setdefault('patch_size', 4)
    kwargs.setdefault('mixer_cfg', dict(d_state=4, conv_size=3))
    torch.manual_seed(seed)
    net = PlainMamba(**kwargs)
    randomise(net, seed)
    return net.eval() if eval_mode else net


def outputs_of(net, modules, x):
    """Runs ``net`` and returns its output and those of some submodules."""
    seen = {}
    handles = [
        module.register_forward_hook(
            lambda m, i, out, name=name: seen.update({name: out})
        )
        for name, module in modules.items()
    ]
    out = net(x)
    for handle in handles:
        handle.remove()
    return out, seen
