# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Reports the environment and everything that is wrong with it.

Run ``python -m transmamba_mm.utils.collect_env``. It ends with one line per
problem, with the fix, and exits with 1 if something required is wrong.
"""

from __future__ import annotations

import platform
import sys
from importlib import import_module

from transmamba_mm import compat
from transmamba_mm.compat.environment import Problem, installed_version
from transmamba_mm.ops import scan_backends
from transmamba_mm.version import __version__

__all__ = ['collect_env', 'find_all_problems', 'main']

_REQUIRED = (
    'torch',
    'torchvision',
    'numpy',
    'mmengine',
    'mmcv-lite',
    'mmcv',
    'mmpretrain',
    'mmrazor',
    'joblib',
    'opencv-python',
    'scikit-learn',
    'matplotlib',
    'setuptools',
)
# Distribution name and the extra that asks for it.
_OPTIONAL = {
    'triton': 'triton',
    'mamba-ssm': 'mamba',
    'av': 'video',
    'transformers': 'vqa',
    'codecarbon': 'energy',
    'pycocotools': '',
    'timm': '',
    'open_clip_torch': '',
    'tensorboard': '',
}


def collect_env() -> dict[str, str]:
    """Collects versions, working scan backends and active compat cures.

    Returns:
        dict[str, str]: What to print, in order.
    """
    from mmengine.utils.dl_utils import collect_env as collect_base

    env = {key: str(value) for key, value in collect_base().items()}
    env.pop('PyTorch compiling details', None)
    env['Platform'] = platform.platform()
    env['transmamba_mm'] = __version__
    for name in _REQUIRED:
        env[name] = installed_version(name) or 'absent'
    for name, extra in _OPTIONAL.items():
        hint = f' [extra: {extra}]' if extra else ''
        env[name] = installed_version(name) or f'absent (optional{hint})'
    env.update(_scan_backends())
    for name, state in compat.apply().items():
        env[f'compat: {name}'] = state
    return env


def find_all_problems() -> list[Problem]:
    """Finds what is wrong, by versions and by importing what must work.

    Returns:
        list[Problem]: One per problem; empty if all is fine.
    """
    problems = compat.find_problems()
    if not any(problem.breaks_import for problem in problems):
        problems += _failing_imports()
    if not any(backend.available for backend in scan_backends().values()):
        problems.append(
            Problem('no scan backend works', 'pip install --force-reinstall .')
        )
    return problems


def main() -> int:
    """Prints the report.

    Returns:
        int: The exit code, 1 if something required is wrong.
    """
    for key, value in collect_env().items():
        print(f'{key}: {value}')
    problems = find_all_problems()
    for problem in problems:
        print(f'{"PROBLEM" if problem.required else "NOTE"}: {problem}')
    failed = any(problem.required for problem in problems)
    if not failed:
        print('Everything that transmamba_mm requires is fine.')
    return int(failed)


def _scan_backends() -> dict[str, str]:
    lines = {}
    for name, (available, reason) in scan_backends().items():
        state = 'available' if available else 'not available'
        lines[f'scan backend: {name}'] = state + (reason and f': {reason}')
    return lines


def _failing_imports() -> list[Problem]:
    fixes = {
        'torchvision': 'pip uninstall -y torch torchvision && '
        'pip install torch torchvision',
        'mmpretrain.models': 'pip install "mmpretrain>=1.2,<2"',
        'mmrazor.models': 'pip install "mmrazor==1.0.0" joblib',
    }
    problems = []
    for name, fix in fixes.items():
        try:
            import_module(name)
        except Exception as error:  # report whatever it is
            first_line = str(error).strip().partition('\n')[0]
            reason = f'{type(error).__name__}: {first_line}'
            problems.append(Problem(f'{name} fails to import ({reason})', fix))
    return problems


if __name__ == '__main__':
    sys.exit(main())
