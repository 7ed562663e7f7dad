# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Backend ``'mamba_ssm'``: the CUDA kernels of the mamba-ssm package.

They are in the extension module ``selective_scan_cuda``, which recent
releases of mamba-ssm do not build unless asked to: ``import mamba_ssm``
succeeds without it.  So this module is what is looked for, and nothing else
of that package is imported.

The kernels read tensors (B, D, L) with contiguous time steps, of one dtype,
and know no orders: tensors are copied accordingly.
"""

import importlib
import importlib.util
import sys
from typing import Optional

import torch
from torch import Tensor

from . import per_direction
from .problem import COEFFICIENTS, TENSORS, TOKENS, ScanProblem

MODULE = 'selective_scan_cuda'
MOST_STATES = 256
# Steps between the states which the kernels keep.
CHUNK = 2048


def probe() -> Optional[str]:
    """Tell why the backend cannot be used, and what to do; None if it can."""
    if not torch.cuda.is_available():
        return 'PyTorch sees no CUDA device'
    if sys.modules.get(MODULE) is not None:
        return None
    if importlib.util.find_spec(MODULE) is None:
        return (
            f'there is no module {MODULE}; build mamba-ssm with its CUDA '
            'kernels (MAMBA_KEEP_CUDA_BUILD=TRUE pip install '
            '--no-build-isolation mamba-ssm)'
        )
    try:
        importlib.import_module(MODULE)
    except Exception as error:
        return (
            f'{MODULE} cannot be imported ({type(error).__name__}: {error}); '
            'rebuild mamba-ssm for the installed PyTorch'
        )
    return None


def supports(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether inputs of this device and dtype are served."""
    served = (torch.float32, torch.bfloat16, torch.float16)
    return device.type == 'cuda' and dtype in served


def refuses(p: ScanProblem) -> Optional[str]:
    """Tell why this problem is not served; None if it is."""
    if p.B.dim() == 2 or p.C.dim() == 2:
        # For a constant B their last state lacks the factor B.
        return 'B and C that are constant in time are not implemented'
    if p.A.shape[2] > MOST_STATES:
        return f'N = {p.A.shape[2]} is more than {MOST_STATES}'
    if any(x is not None and x.dtype == torch.float64 for x in p.tensors):
        return 'float64 tensors are not implemented'
    return None


def states_shape(p: ScanProblem) -> tuple[int, ...]:
    """Shape of the kept states: (B, K * D, chunks, 2 * N).

    With a gate, the backward pass needs the output before it.  It is computed
    again then, and the states with it.
    """
    batch, K, length, channels, N = p.sizes
    if p.z is not None:
        return (0,)
    return batch, K * channels, -(-length // CHUNK), 2 * N


def forward(p: ScanProblem, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Scan; see :class:`ScanProblem`."""
    return per_direction.forward(_scan, p, keep, _is_mixed(p))


def backward(
    p: ScanProblem, states: Tensor, grad_out: Tensor, needs: tuple[bool, ...]
) -> list[Optional[Tensor]]:
    """Compute the gradients; see :class:`ScanProblem`."""
    return per_direction.backward(
        _scan_backward, p, states, grad_out, needs, _is_mixed(p)
    )


def _is_mixed(p: ScanProblem) -> bool:
    """Whether the tensors must be converted to float32 to have one dtype."""
    tokens = (p.delta, p.B, p.C, p.z)
    return any(x is not None and x.dtype != p.u.dtype for x in tokens)


def _arguments(p: ScanProblem) -> tuple[Optional[Tensor], ...]:
    """Return what both kernels take, for one direction without an order."""
    dtype = torch.float32 if _is_mixed(p) else p.u.dtype

    def tokens(x: Optional[Tensor]) -> Optional[Tensor]:
        """(B, 1, L, D) -> (B, D, L)."""
        return None if x is None else x.squeeze(1).mT.to(dtype).contiguous()

    def coefs(x: Tensor) -> Tensor:
        """(B, 1, G, L, N) -> (B, G, N, L)."""
        return x.squeeze(1).mT.to(dtype).contiguous()

    def vector(x: Optional[Tensor]) -> Optional[Tensor]:
        return None if x is None else x[0].float().contiguous()

    return (
        tokens(p.u),
        tokens(p.delta),
        vector(p.A),
        coefs(p.B),
        coefs(p.C),
        vector(p.D),
        tokens(p.z),
        vector(p.delta_bias),
    )


def _scan(p: ScanProblem, keep: bool):
    """Compute :func:`forward` of one direction in the order of memory."""
    kernels = importlib.import_module(MODULE)
    inputs = _arguments(p)
    out, states, *gated = kernels.fwd(*inputs, p.delta_softplus)
    result = p.new_out()
    result.copy_((gated[0] if gated else out).mT.unsqueeze(1))
    last = states[:, :, -1, 1::2].unsqueeze(1).contiguous()
    if not keep or p.z is not None:
        states = states.new_empty(0)
    return result, last, states


def _scan_backward(p: ScanProblem, states, grad_out, needs):
    """Compute :func:`backward` of one direction in the order of memory."""
    kernels = importlib.import_module(MODULE)
    inputs = _arguments(p)
    out = None
    if p.z is not None:
        out, states, *_ = kernels.fwd(*inputs, p.delta_softplus)
    grad_out = grad_out.squeeze(1).mT.to(inputs[0].dtype).contiguous()
    u, delta, A, B, C, D, bias, *z = kernels.bwd(
        *inputs,
        grad_out,
        states,
        out,
        None,  # storage for the gradient of z
        p.delta_softplus,
        False,  # whether to compute the gated output again
    )
    found = (u, delta, A, B, C, D, z[0] if z else None, bias)
    grads = []
    for name, grad, x, need in zip(TENSORS, found, p.tensors, needs):
        if not need:
            grads.append(None)
            continue
        if name in TOKENS + COEFFICIENTS:  # time is last there
            grad = grad.mT
        grads.append(grad.to(x.dtype).reshape(x.shape).contiguous())
    return grads
