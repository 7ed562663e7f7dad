# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Which installed versions cannot work, and how to put that right.

Cures:      nothing by itself; it turns obscure import errors into one line
            per wrong package. Reads metadata only, imports no package.
Versions:   the table below.
Delete:     a row, when the package it is about no longer has the limit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata

__all__ = ['Problem', 'find_problems', 'installed_version', 'version_tuple']


@dataclass(frozen=True)
class Problem:
    """Something wrong with an installed package.

    Args:
        what (str): What is wrong and what it breaks.
        fix (str): The command that cures it.
        breaks_import (bool): Whether ``import transmamba_mm`` fails.
        required (bool): False for a mere remark.
    """

    what: str
    fix: str
    breaks_import: bool = False
    required: bool = True

    def __str__(self) -> str:
        return f'{self.what}. Fix: {self.fix}'


@dataclass(frozen=True)
class _Range:
    """A version range with the reason for it; ``below`` is exclusive."""

    name: str
    at_least: str
    below: str
    why: str
    fix: str
    breaks_import: bool = True


# Full mmcv and mmcv-lite are one package under two names, see _find_mmcv.
_RANGES = (
    _Range('torch', '2.4', '3', 'older versions are not supported',
           'pip install "torch>=2.4"'),
    _Range('torchvision', '0.19', '1', 'mmpretrain imports it',
           'pip install --upgrade torch torchvision'),
    _Range('mmengine', '0.10.7', '1', 'mmrazor and mmpretrain need it',
           'pip install "mmengine>=0.10.7,<1"'),
    _Range('mmpretrain', '1.2', '2', 'models, data sets and tools build on it',
           'pip install "mmpretrain>=1.2,<2"'),
    _Range('mmrazor', '1.0.0', '1.0.1', 'distillation builds on it',
           'pip install "mmrazor==1.0.0"'),
    _Range('joblib', '0', '99', 'mmrazor imports it without declaring it',
           'pip install joblib'),
    _Range('setuptools', '0', '82',
           'configs with a "mmpretrain::" or "mmrazor::" base need its '
           'pkg_resources, dropped in 82', 'pip install "setuptools<82"',
           breaks_import=False),
)  # fmt: skip


def version_tuple(version: str) -> tuple[int, ...]:
    """Return the release numbers of a version, e.g. (2, 14, 1)."""
    release = re.match(r'\d+(\.\d+)*', version)
    return tuple(map(int, release[0].split('.'))) if release else ()


def installed_version(package: str) -> str | None:
    """Return the version of a distribution, or None if it is absent."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def find_problems() -> list[Problem]:
    """Check the installed packages that transmamba_mm cannot do without.

    Returns:
        list[Problem]: Empty if everything is as it should be.
    """
    problems = [p for r in _RANGES if (p := _check(r)) is not None]
    problems += _find_mmcv()
    problems += _find_torch_flavours()
    return problems


def _check(want: _Range) -> Problem | None:
    found = installed_version(want.name)
    if found is None:
        # Only mmengine's external bases ask for setuptools; a wrong version
        # and no version break the same thing.
        return Problem(
            f'{want.name} is not installed ({want.why})',
            want.fix,
            want.breaks_import,
        )
    version = version_tuple(found)
    if version_tuple(want.at_least) <= version < version_tuple(want.below):
        return None
    return Problem(
        f'{want.name} {found} is outside >={want.at_least},<{want.below} '
        f'({want.why})',
        want.fix,
        want.breaks_import,
    )


def _find_mmcv() -> list[Problem]:
    found = {
        name: version
        for name in ('mmcv-lite', 'mmcv')
        if (version := installed_version(name)) is not None
    }
    fix = 'pip install "mmcv-lite==2.1.0"'
    if not found:
        return [Problem('mmcv is not installed', fix, breaks_import=True)]
    problems = []
    for name, version in found.items():
        if not (2,) <= version_tuple(version)[:3] <= (2, 1, 0):
            problems.append(
                Problem(
                    f'{name} {version} is outside >=2.0.0,<=2.1.0 (mmrazor '
                    '1.0.0 refuses it)',
                    f'pip uninstall -y {name} && {fix}',
                    breaks_import=True,
                )
            )
    if len(set(found.values())) > 1:
        problems.append(
            Problem(
                'mmcv and mmcv-lite are both installed, in different '
                'versions, and overwrite each other',
                f'pip uninstall -y mmcv mmcv-lite && {fix}',
            )
        )
    return problems


def _find_torch_flavours() -> list[Problem]:
    torch = installed_version('torch') or ''
    vision = installed_version('torchvision') or ''
    if '+cpu' in torch and vision and '+cpu' not in vision:
        return [
            Problem(
                f'torch {torch} is a CPU-only build and torchvision {vision} '
                'is not, so that torchvision cannot be imported',
                'pip uninstall -y torch torchvision && '
                'pip install torch torchvision',
                breaks_import=True,
            )
        ]
    return []
