# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Where in a config, or in a model, an error of whatever origin comes from."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Optional

from mmengine.config import Config
from mmengine.hooks import Hook
from torch import Tensor, nn

_PACKAGE = str(Path(__file__).resolve().parents[1])
_LONGEST = 600


def explain(
    error: Exception, cfg: Config, model: Optional[nn.Module] = None
) -> str:
    """One line about an error: the setting, what happened, and where.

    Args:
        error (Exception): The error, as it was caught.
        cfg (Config): The config that was built from.
        model (nn.Module, optional): The model that ran. Defaults to None.

    Returns:
        str: The line.
    """
    cfg = {key: cfg[key] for key in cfg}  # MMEngine's is no mapping
    frames = list(_frames(error))
    text = _text(error)
    path = _built_path(frames, cfg)
    code = _raised_in(error)
    if not code.co_filename.startswith(_PACKAGE):
        name = Path(code.co_filename).name
        text = f'{type(error).__name__}: {text} (in {code.co_name} of {name})'
        path = path or _hook_path(frames, cfg)
        module = _running(frames, model) if model is not None else None
        if module is not None:
            path, detail = module
            text = f'{detail}: {text}'
            path = _nearest(cfg, f'model.{path}')
    setting = _lookup(cfg, path)
    if not path or f'{path}.' in text or f'{path}=' in text:
        return text
    if isinstance(setting, Mapping):
        setting = {
            key: value
            for key, value in setting.items()
            if not isinstance(value, (Mapping, list))
        }
        return f'{path}={setting}: {text}'
    return text


def _raised_in(error: BaseException) -> CodeType:
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code


def _text(error: Exception) -> str:
    text = str(error.args[0]) if type(error) is KeyError else str(error)
    if 'Original Traceback' in text:  # of a worker of the data loader
        text = text.strip().splitlines()[-1].partition(': ')[2]
    text = re.sub(r' in <\S+ object at \w+>$', '', text)  # MMEngine's hooks
    text = ' '.join(text.split()) or 'no text'
    return text if len(text) <= _LONGEST else f'{text[:_LONGEST]} ...'


def _frames(error: BaseException) -> Iterator[FrameType]:
    """From the outermost to the innermost, of an error and its causes."""
    chain: list[BaseException] = []
    cause: Optional[BaseException] = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for each in chain:
        trace = each.__traceback__
        while trace is not None:
            yield trace.tb_frame
            trace = trace.tb_next


def _arguments(frame: FrameType) -> dict[str, Any]:
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return {name: frame.f_locals.get(name) for name in names}


def _built_path(frames: list[FrameType], cfg: Mapping) -> str:
    """Path of the innermost part of the config that was being built."""
    path = ''
    for frame in frames:
        found = {
            _find(_lookup(cfg, path), value, path) or _find(cfg, value, '')
            for value in _arguments(frame).values()
            if isinstance(value, Mapping)
        } - {None}
        if len(found) == 1:  # else it builds one after the other
            (path,) = found
    return path


def _hook_path(frames: list[FrameType], cfg: Mapping) -> str:
    """Path of the hook that was at work, if any."""
    working = [_arguments(frame).get('self') for frame in frames]
    kinds = [type(x).__name__ for x in working if isinstance(x, Hook)]
    for owner in ('default_hooks', 'custom_hooks') if kinds else ():
        hooks = cfg.get(owner) or {}
        named = isinstance(hooks, Mapping)
        for key, hook in hooks.items() if named else enumerate(hooks):
            name = hook.get('type') if isinstance(hook, Mapping) else None
            if str(name).endswith(kinds[-1]):
                return f'{owner}.{key}'
    return ''


def _find(tree: Any, part: Mapping, path: str) -> Optional[str]:
    """Path below ``path`` of a config that ``part`` was made of."""
    items: Any = ()
    if isinstance(tree, Mapping):
        items = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    for key, value in items:
        below = f'{path}.{key}' if path else str(key)
        if isinstance(value, Mapping) and (
            _made_of(part, value) if value else path and not part
        ):
            return below
        found = _find(value, part, below)
        if found:
            return found
    return None


def _made_of(part: Mapping, setting: Mapping) -> bool:
    """Whether code has at most added to a setting."""
    try:
        return 'type' in setting and all(
            key in part and bool(part[key] == value)
            for key, value in setting.items()
        )
    except (ValueError, RuntimeError):  # of arrays
        return False


def _lookup(cfg: Any, path: str) -> Any:
    for key in path.split('.') if path else ():
        cfg = cfg[int(key)] if isinstance(cfg, (list, tuple)) else cfg[key]
    return cfg


def _nearest(cfg: Mapping, path: str) -> str:
    """The longest beginning of a path that the config has."""
    found = ''
    for key in path.split('.'):
        longer = f'{found}.{key}' if found else key
        try:
            value = _lookup(cfg, longer)
        except (KeyError, IndexError, ValueError, TypeError):
            break
        if not isinstance(value, Mapping):
            break
        found = longer
    return found


def _running(
    frames: list[FrameType], model: nn.Module
) -> Optional[tuple[str, str]]:
    """Name and description of the innermost module that was running."""
    names = {module: name for name, module in model.named_modules()}
    for frame in reversed(frames):
        arguments = _arguments(frame)
        module = arguments.get('self')
        if not isinstance(module, nn.Module) or not names.get(module):
            continue
        given = ', '.join(
            str(tuple(value.shape))
            for value in arguments.values()
            if isinstance(value, Tensor)
        )
        kind = repr(module)
        if len(kind) > 80 or '\n' in kind:
            kind = type(module).__name__
        name = names[module]
        return name, f'{name}, {kind}' + (f', is given {given}' * bool(given))
    return None
