# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Checks of settings and inputs, with errors that name the setting.

All raise ValueError, also where the type is the mistake: what comes from a
config file has no types that its reader could see. Numbers are returned as
plain Python ones. A bool is no number.
"""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Optional

from torch import Tensor


class UnreadableFileError(ValueError):
    """An image or a video that cannot be decoded."""


def is_int(value: Any) -> bool:
    """Whether a value is an integer, maybe NumPy's, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, Real)
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


def is_sequence(value: Any) -> bool:
    """Whether a value is a tuple, a list or the like, and no string."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def _require(holds: bool, name: str, what: str, value: Any) -> None:
    if not holds:
        raise ValueError(f'{name} must be {what}, got {value!r}')


def check_int(
    name: str, value: Any, minimum: int = 1, instead: str = ''
) -> int:
    """Checks an integer.

    Args:
        name (str): Name of the setting.
        value (Any): Its value.
        minimum (int): The least that it may be. Defaults to 1.
        instead (str): What else it may be, for the error. Defaults to
            ``''``.

    Returns:
        int: The value.
    """
    _require(is_int(value), name, f'an integer{instead}', value)
    _require(value >= minimum, name, f'at least {minimum}{instead}', value)
    return int(value)


def check_ints(
    name: str, value: Any, minimum: int = 1, maximum: Optional[int] = None
) -> tuple[int, ...]:
    """Checks a tuple or list of integers.

    Args:
        name (str): Name of the setting.
        value (Any): Its value.
        minimum (int): The least that they may be. Defaults to 1.
        maximum (int, optional): The most that they may be. Defaults to
            None.

    Returns:
        tuple[int, ...]: The values.
    """
    limits = f'at least {minimum}'
    if maximum is not None:
        limits = f'in {minimum}..{maximum}'
    _require(
        is_sequence(value)
        and all(is_int(item) and item >= minimum for item in value)
        and (maximum is None or max(value, default=minimum) <= maximum),
        name,
        f'a tuple of integers, each {limits}',
        value,
    )
    return tuple(map(int, value))


def check_pair(name: str, value: Any) -> tuple[int, int]:
    """Checks a size (H, W) in pixels, or one integer for both sides."""
    sides = tuple(value) if is_sequence(value) else (value, value)
    what = '(H, W), or one integer for both'
    _require(len(sides) == 2 and all(map(is_int, sides)), name, what, value)
    _require(min(sides) >= 1, name, 'at least 1', value)
    return int(sides[0]), int(sides[1])


def check_number(
    name: str,
    value: Any,
    minimum: float = -math.inf,
    maximum: float = math.inf,
) -> float:
    """Checks a finite number.

    Args:
        name (str): Name of the setting.
        value (Any): Its value.
        minimum (float): The least that it may be. Defaults to no limit.
        maximum (float): The most that it may be. Defaults to no limit.

    Returns:
        float: The value, as it is.
    """
    _require(_is_number(value), name, 'a number', value)
    limits = f'at least {minimum}'
    if maximum < math.inf:
        limits = f'in {minimum}..{maximum}'
    _require(minimum <= value <= maximum, name, limits, value)
    return value


def check_positive(name: str, value: Any) -> float:
    """Checks a finite number above 0.

    Args:
        name (str): Name of the setting.
        value (Any): Its value.

    Returns:
        float: The value, as it is.
    """
    _require(_is_number(value), name, 'a number', value)
    _require(value > 0, name, 'positive', value)
    return value


def check_bool(name: str, value: Any) -> bool:
    """Checks a switch.

    Args:
        name (str): Name of the setting.
        value (Any): Its value.

    Returns:
        bool: The value.
    """
    _require(isinstance(value, bool), name, 'True or False', value)
    return value


def check_width(name: str, ratio: Any, dims: int, instead: str = '') -> int:
    """Checks the ratio of two widths.

    Args:
        name (str): Name of the setting.
        ratio (Any): Its value.
        dims (int): Width that it multiplies.
        instead (str): What else it may be, for the error. Defaults to
            ``''``.

    Returns:
        int: The width that results.
    """
    what = f'a number that leaves a channel or more of {dims}{instead}'
    _require(_is_number(ratio) and int(ratio * dims) >= 1, name, what, ratio)
    return int(ratio * dims)


def check_directions(directions: Any) -> tuple[str, ...]:
    """Checks scan directions.

    Args:
        directions (Any): The setting.

    Returns:
        tuple[str, ...]: The directions.

    Raises:
        ValueError: If they are no tuple of different names.
    """
    if isinstance(directions, str):
        raise ValueError(
            f'directions must be a tuple of scan orders, got the string '
            f'{directions!r}: write ({directions!r},)'
        )
    _require(
        is_sequence(directions)
        and all(isinstance(name, str) for name in directions)
        and not any('.' in name for name in directions)
        and 0 < len(set(directions)) == len(directions),
        'directions',
        'a tuple of at least one scan order by its bare name, each once (a '
        "second one is called e.g. 'raster:2')",
        directions,
    )
    return tuple(directions)


def check_images(x: Tensor) -> None:
    """Checks an input.

    Args:
        x (Tensor): The input.

    Raises:
        ValueError: If it is no images (B, C, H, W) with a pixel.
    """
    if x.dim() != 4 or x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(
            f'images must be (B, C, H, W) with at least one pixel, got '
            f'{tuple(x.shape)}'
        )
