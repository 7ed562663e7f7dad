# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
import warnings

from .collect_env import collect_env
from .setup_env import register_all_modules

# `python -m transmamba_mm.utils.collect_env` runs a module that the line
# above has imported already. Running it twice is harmless here.
warnings.filterwarnings(
    'ignore',
    message="'transmamba_mm.utils.collect_env' found in sys.modules",
    category=RuntimeWarning,
)

__all__ = ['collect_env', 'register_all_modules']
