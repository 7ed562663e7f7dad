# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Registries of scope ``transmamba``, children of MMEngine's root registries.

Any OpenMMLab config reaches our modules by prefix, e.g.
``dict(type='transmamba.PlainMamba')``, whatever its ``default_scope`` is.
"""

from mmengine import registry as root
from mmpretrain import registry as mmpretrain

_SCOPE = 'transmamba'


def _child(name: str, parent: root.Registry) -> root.Registry:
    return root.Registry(
        name, parent=parent, scope=_SCOPE, locations=['transmamba_mm']
    )


MODELS = _child('model', root.MODELS)
TASK_UTILS = _child('task util', root.TASK_UTILS)
HOOKS = _child('hook', root.HOOKS)
DATASETS = _child('dataset', root.DATASETS)
TRANSFORMS = _child('transform', root.TRANSFORMS)
METRICS = _child('metric', root.METRICS)
OPTIM_WRAPPERS = _child('optimizer wrapper', root.OPTIM_WRAPPERS)
OPTIM_WRAPPER_CONSTRUCTORS = _child(
    'optimizer wrapper constructor', root.OPTIM_WRAPPER_CONSTRUCTORS
)
RUNNERS = _child('runner', root.RUNNERS)
STRATEGIES = _child('strategy', root.STRATEGIES)
TOKENIZER = _child('tokenizer', mmpretrain.TOKENIZER)
FUNCTIONS = _child('function', root.FUNCTIONS)

#: Scan orders, functions ``(h, w) -> LongTensor (h*w,)``; ours alone.
SCAN_ORDERS = root.Registry('scan order', scope=_SCOPE)
