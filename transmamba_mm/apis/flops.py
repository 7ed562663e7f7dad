# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Counting operations, those of the scans included.

Importing this also teaches MMEngine's ``get_model_complexity_info``, and with
it mmpretrain's ``tools/analysis_tools/get_flops.py``, our operators.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.analysis import complexity_analysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import transmamba_mm.ops  # noqa: F401  (defines the operators)

_OPERATORS = {
    name: getattr(getattr(torch.ops, namespace), name)
    for namespace, name in (
        ('transmamba_mm', 'selective_scan'),
        ('transmamba_mm', 'causal_conv1d_silu'),
        ('mkldnn', '_linear_pointwise'),
    )
    if hasattr(getattr(torch.ops, namespace), name)
}


@torch.no_grad()
def get_flops(
    model: nn.Module, input_shape: Sequence[int] = (3, 224, 224)
) -> int:
    """Multiply-accumulates of one forward pass, in evaluation mode.

    Matrix products and convolutions are counted by PyTorch; each scan of L
    tokens, E inner channels and N states counts ``9 L E N + L E``. Norms,
    activations and additions count nothing, as usual.

    Args:
        model (nn.Module): A model whose ``forward`` takes a batch.
        input_shape (Sequence[int]): Shape of one sample: (C, H, W), or
            (C, T, H, W) for a video. Defaults to (3, 224, 224).

    Returns:
        int: Multiply-accumulates, half of the floating-point operations.
    """
    parameter = next(model.parameters())
    sample = torch.zeros(
        1, *input_shape, device=parameter.device, dtype=parameter.dtype
    )
    modes = {module: module.training for module in model.modules()}
    nn.Module.eval(model)
    try:
        with FlopCounterMode(display=False) as counter:
            model(sample)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return counter.get_total_flops() // 2


def _value(jit_value: Any) -> Any:
    """What a value of a traced graph is: a shape, a constant or a list."""
    if isinstance(jit_value.type(), torch._C.TensorType):
        return torch.Size(jit_value.type().sizes())
    if jit_value.node().kind() == 'prim::ListConstruct':
        return [_value(item) for item in jit_value.node().inputs()]
    return jit_value.toIValue()


def _handle(operator: Any):
    """A FLOP handle of MMEngine for one of our operators."""

    def count(inputs: list, outputs: list) -> int:
        formula = flop_registry[operator]
        operations = formula(*map(_value, inputs), out_val=None)
        return operations // 2

    return count


for _name, _operator in _OPERATORS.items():
    _namespace = _operator._qualified_op_name.partition('::')[0]
    complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS[
        f'{_namespace}::{_name}'
    ] = _handle(_operator)
