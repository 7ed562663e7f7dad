# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Configs that a checkpoint holds as text: read as data, never run."""

import ast
from typing import Any

from mmengine.config import Config

from .files import CheckpointError

_NUMBERS = {'inf': float('inf'), 'nan': float('nan')}


def read_config_text(text: Any) -> dict[str, Any]:
    """Reads what ``Config.pretty_text`` wrote, without running it.

    MMEngine's ``Config.fromstring`` executes the text.

    Args:
        text (Any): Assignments of literals and of ``dict(key=literal)``.

    Returns:
        dict[str, Any]: The settings.

    Raises:
        CheckpointError: If the text holds anything else, or what MMEngine
            replaces or follows in a config file: ``{{...}}``, ``_base_``.
    """
    settings = {}
    try:
        if '{{' in text:
            raise ValueError('it holds {{')
        for node in ast.parse(text).body:
            if not isinstance(node, ast.Assign):
                raise ValueError(f'line {node.lineno} is no assignment')
            (target,) = node.targets
            if not isinstance(target, ast.Name) or target.id == '_base_':
                raise ValueError(f'line {node.lineno} is no setting')
            settings[target.id] = _literal(node.value)
    # The last two are raised for what is nested too deep.
    except (
        SyntaxError,
        TypeError,
        ValueError,
        RecursionError,
        MemoryError,
    ) as error:
        raise CheckpointError(
            f'the config is no plain data, and is not run: {error}'
        ) from error
    return settings


def _literal(node: ast.expr) -> Any:
    """The value of a literal, in which ``dict(...)`` may occur."""
    if isinstance(node, ast.Call):
        keys = [word.arg for word in node.keywords]
        if (
            not isinstance(node.func, ast.Name)
            or node.func.id != 'dict'
            # MMEngine writes `dict({...})` where keys are no names.
            or len(node.args) > 1
            or not all(isinstance(each, ast.Dict) for each in node.args)
            or None in keys
        ):
            raise ValueError(f'line {node.lineno} holds a call')
        values = [_literal(word.value) for word in node.keywords]
        first = _literal(node.args[0]) if node.args else {}
        return {**first, **dict(zip(keys, values))}
    if isinstance(node, ast.Dict):
        # Of `**other` there is no key, which is refused as well.
        keys, values = map(_literal, node.keys), map(_literal, node.values)
        return dict(zip(keys, values))
    for kind, container in (
        (ast.List, list),
        (ast.Tuple, tuple),
        (ast.Set, set),
    ):
        if isinstance(node, kind):
            return container(map(_literal, node.elts))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_literal(node.operand)
    if isinstance(node, ast.Name) and node.id in _NUMBERS:
        return _NUMBERS[node.id]
    return ast.literal_eval(node)


def write_config(cfg: Config, path: str) -> None:
    """Writes a config file that holds nothing but data.

    Args:
        cfg (Config): The config.
        path (str): The file, ``.py``.

    Raises:
        CheckpointError: If its text would be more than data, e.g. by a key
            with a quote in it.
    """
    text = cfg.pretty_text
    read_config_text(text)
    with open(path, 'w', encoding='utf-8') as file:
        file.write(text)
