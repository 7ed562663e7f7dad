# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
import subprocess
import sys

import pytest

from transmamba_mm import razor

LAZY_CONFIG = """
from mmengine.config import read_base
from transmamba_mm.razor import ConfigurableDistiller, KLDivergence

distiller = dict(
    type=ConfigurableDistiller,
    distill_losses=dict(loss_kl=dict(type=KLDivergence, tau=2.0)),
)
"""


def test_names_are_mmrazors():
    assert len(razor.__all__) > 50
    for name in razor.__all__:
        assert getattr(razor, name).__module__.startswith('mmrazor.')


@pytest.mark.skipif(
    sys.version_info < (3, 10), reason='MMEngine cannot dump a lazy config'
)
def test_lazy_config_works_before_transmamba_is_imported(tmp_path):
    """As a whole, dumped, and read again in the dumped form."""
    path = tmp_path / 'lazy.py'
    path.write_text(LAZY_CONFIG)
    code = f"""
from mmengine.config import Config
cfg = Config.fromfile({str(path)!r}, lazy_import=True)
assert cfg.distiller.type.__name__ == 'ConfigurableDistiller'
cfg.dump({str(tmp_path / 'dumped.py')!r})
from mmrazor.registry import MODELS
loss = cfg.distiller.distill_losses.loss_kl
assert MODELS.build(loss).tau == 2.0
"""
    reread = f"""
from mmengine.config import Config
cfg = Config.fromfile({str(tmp_path / 'dumped.py')!r})
from mmengine.registry import MODELS
print(cfg.distiller.distill_losses.loss_kl)
assert MODELS.build(cfg.distiller.distill_losses.loss_kl).tau == 2.0
"""
    for script in (code, reread):
        result = subprocess.run(
            [sys.executable, '-c', script], capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
