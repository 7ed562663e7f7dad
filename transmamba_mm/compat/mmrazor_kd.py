# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Make the distillation half of mmrazor importable on PyTorch 2.

Cures:      ``import mmrazor.models`` fails with "`torch>=1.13` is not
            installed properly". Its quantization half needs names that
            PyTorch 2 removed from ``torch.ao``, and the distillation half
            cannot be imported without it.
Versions:   mmrazor 1.0.0 (the last release) with torch >= 2.
Delete:     when a mmrazor release imports on the supported torch versions;
            then ``ensure_mmrazor()`` returns 'native' and this file is idle.

How: ``mmrazor.structures.quantization`` is replaced by one stub module whose
names raise a clear ImportError when somebody uses them. PyTorch itself is
not touched, and mmrazor's quantization algorithms stay registered: only
building one fails. Should a later torch drop ``torch.ao`` altogether,
``mmrazor.models.quantizers`` is replaced in the same manner.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ['QUANTIZATION_ERROR', 'ensure_mmrazor']

QUANTIZATION_ERROR = (
    'mmrazor 1.0.0 quantization needs torch 1.13 (newer versions lack parts '
    'of torch.ao that it uses); transmamba_mm enables only the distillation '
    'part of mmrazor.'
)

_STRUCTURES = 'mmrazor.structures'
_QUANTIZATION = 'mmrazor.structures.quantization'
_QUANTIZERS = 'mmrazor.models.quantizers'

# What the rest of mmrazor imports from the stubbed module.
_STRUCTURE_NAMES = ('BackendConfigs', 'QConfigHandler', 'QSchemeHandler')
_QUANTIZER_NAMES = (
    'AcademicQuantizer',
    'BaseQuantizer',
    'OpenVINOQuantizer',
    'TensorRTQuantizer',
    'TorchNativeQuantizer',
)

# Names that mmrazor/models/quantizers/native_quantizer.py uses while it is
# being imported. One that is missing makes the whole import fail.
_QUANTIZER_NEEDS = {
    'torch.ao.quantization': (
        'disable_observer',
        'enable_fake_quant',
        'enable_observer',
    ),
    'torch.ao.quantization.fx': ('prepare',),
    'torch.ao.quantization.fx.graph_module': ('ObservedGraphModule',),
    'torch.ao.quantization.qconfig_mapping': (
        '_FIXED_QPARAMS_OP_TO_OBSERVER',
        'FixedQParamsFakeQuantize',
        'QConfig',
        'QConfigMapping',
        'default_weight_fake_quant',
    ),
    'torch.ao.quantization.quantize_fx': ('_fuse_fx',),
    'torch.nn.intrinsic.qat.modules': ('ConvBn1d', 'ConvBnReLU3d'),
    'torch.nn.qat.modules': ('Conv1d', 'Linear'),
    'torch.onnx': ('register_custom_op_symbolic',),
}


def ensure_mmrazor() -> str:
    """Make ``mmrazor.models`` importable; call it before importing that.

    Calling it again, or after the user imported ``mmrazor.models`` with
    success, changes nothing.

    Returns:
        str: 'native' if mmrazor works as it is, else a line that starts with
            'stubbed' and names what was replaced.

    Raises:
        AssertionError: If mmrazor refuses the installed mmcv or mmengine.
        ImportError: If mmrazor is not installed.
    """
    importlib.import_module('mmrazor')  # its version checks stay in force
    stubbed = [
        name
        for name in (_QUANTIZATION, _QUANTIZERS)
        if isinstance(sys.modules.get(name), _StubModule)
    ]
    if not stubbed and 'mmrazor.models' not in sys.modules:
        if not _is_native():
            _forget(_STRUCTURES)
            _install_stub(_QUANTIZATION, _STRUCTURE_NAMES)
            stubbed.append(_QUANTIZATION)
        if stubbed and not _quantizers_importable():
            _forget(_QUANTIZERS)
            _install_stub(_QUANTIZERS, ())
            _register_quantizer_placeholders()
            stubbed.append(_QUANTIZERS)
    return f'stubbed {", ".join(stubbed)}' if stubbed else 'native'


class _RaisingMeta(type):
    """Raise the explanation whatever is done with the class."""

    def __call__(cls, *args, **kwargs):
        raise ImportError(QUANTIZATION_ERROR)

    def __getitem__(cls, item):
        raise ImportError(QUANTIZATION_ERROR)

    def __getattr__(cls, name):
        _refuse(name)


class _StubModule(ModuleType):
    """A module that explains itself to whoever asks for more than it has."""

    def __getattr__(self, name):
        _refuse(name)


def _refuse(name: str) -> None:
    # inspect, pickle and friends probe for dunder names and expect this.
    if name.startswith('__') and name.endswith('__'):
        raise AttributeError(name)
    raise ImportError(QUANTIZATION_ERROR)


def _is_native() -> bool:
    try:
        importlib.import_module(_QUANTIZATION)
    except Exception:  # whatever mmrazor trips over, the cure is the same
        return False
    return True


def _quantizers_importable() -> bool:
    """Look for what the quantizers need, instead of trying to import them.

    A failed import of ``mmrazor.models`` would leave half of its classes
    registered, and the second attempt would register them twice.
    """
    try:
        for module, names in _QUANTIZER_NEEDS.items():
            loaded = importlib.import_module(module)
            if not all(hasattr(loaded, name) for name in names):
                return False
    except Exception:
        return False
    return True


def _forget(package: str) -> None:
    """Drop what a failed import left behind; nothing there registers."""
    for name in list(sys.modules):
        if name == package or name.startswith(package + '.'):
            del sys.modules[name]


def _install_stub(name: str, exports: tuple[str, ...]) -> None:
    stub = _StubModule(name, QUANTIZATION_ERROR)
    stub.__spec__ = ModuleSpec(name, loader=None)
    stub.__all__ = list(exports)
    for export in exports:
        body = {'__doc__': QUANTIZATION_ERROR, '__module__': name}
        setattr(stub, export, _RaisingMeta(export, (), body))
    sys.modules[name] = stub


def _register_quantizer_placeholders() -> None:
    from mmrazor.registry import MODELS

    def placeholder(*args, **kwargs):
        raise ImportError(QUANTIZATION_ERROR)

    for name in _QUANTIZER_NAMES:
        if name not in MODELS.module_dict:
            MODELS.register_module(name=name, module=placeholder)
