# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
import subprocess
import sys
from pathlib import Path

import pytest

from transmamba_mm.compat import mmrazor_kd
from transmamba_mm.compat.mmrazor_kd import QUANTIZATION_ERROR, ensure_mmrazor


def run_python(code):
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_works_after_a_failed_import_and_twice():
    """The user tried mmrazor first, and the cure is asked for again."""
    out = run_python("""
try:
    import mmrazor.models
except ImportError:
    pass
from transmamba_mm.compat import apply, ensure_mmrazor
assert apply() == apply()
first = ensure_mmrazor()
import mmrazor.models, mmrazor.engine, mmrazor.structures
assert ensure_mmrazor() == first
from mmrazor.registry import MODELS
MODELS.build(dict(type='mmrazor.KLDivergence', tau=2.0))
print(first.split()[0], len(mmrazor.models.__dict__) > 50)
""")
    assert out[-2:] in (['stubbed', 'True'], ['native', 'True'])


def test_does_not_replace_what_works():
    cure = Path(mmrazor_kd.__file__)
    out = run_python(
        f'CURE = {str(cure)!r}'
        + """
import runpy, sys, types
works = types.ModuleType('mmrazor.structures.quantization')
sys.modules['mmrazor.structures'] = types.ModuleType('mmrazor.structures')
sys.modules[works.__name__] = works
print(runpy.run_path(CURE)['ensure_mmrazor']())
print(sys.modules[works.__name__] is works)
"""
    )
    assert out[-2:] == ['native', 'True']


def test_survives_a_torch_without_torch_ao():
    cure = Path(mmrazor_kd.__file__)
    out = run_python(
        f'CURE = {str(cure)!r}'
        + """
import runpy
import sys
from importlib.abc import MetaPathFinder

GONE = ('torch.ao', 'torch.nn.intrinsic', 'torch.nn.qat')
import mmrazor
for name in list(sys.modules):
    if name.startswith(GONE):
        del sys.modules[name]

class Gone(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.startswith(GONE):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Gone())
ensure_mmrazor = runpy.run_path(CURE)['ensure_mmrazor']
print(ensure_mmrazor().replace(' ', '-'))
assert ensure_mmrazor().endswith('mmrazor.models.quantizers')
import mmrazor.models
from mmrazor.registry import MODELS
MODELS.build(dict(type='mmrazor.KLDivergence', tau=2.0))
try:
    MODELS.build(dict(type='mmrazor.TorchNativeQuantizer'))
except ImportError as error:
    print('torch-1.13' if 'torch 1.13' in str(error) else error)
"""
    )
    assert out[-1] == 'torch-1.13'


needs_stub = pytest.mark.skipif(
    ensure_mmrazor() == 'native', reason='mmrazor works as it is'
)


@needs_stub
def test_quantization_explains_itself():
    from mmrazor.registry import MODELS

    with pytest.raises(ImportError) as error:
        MODELS.build(dict(type='mmrazor.OpenVINOQuantizer', global_qconfig={}))
    assert str(error.value) == QUANTIZATION_ERROR
    assert 'torch 1.13' in QUANTIZATION_ERROR


@needs_stub
def test_stub_names_raise_on_any_use():
    from mmrazor.structures import quantization

    with pytest.raises(ImportError, match='only the distillation'):
        quantization.BackendConfigs['native']
    with pytest.raises(ImportError, match='only the distillation'):
        quantization.QConfigHandler({})
    with pytest.raises(ImportError, match='only the distillation'):
        quantization.QConfigHandler.replace_fakequant()
    with pytest.raises(ImportError, match='only the distillation'):
        quantization.get_native_backend_config()
    assert not hasattr(quantization, '__wrapped__')
