# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Write JSON that every reader reads.

Cures:      ``scalars.json``, the results of ``tools/test.py`` and all else
            that MMEngine dumps as JSON hold bare ``NaN`` and ``Infinity``
            where a value is not finite, which are no JSON.
Versions:   mmengine <= 0.10.7.
Delete:     when mmengine dumps with ``allow_nan=False``.
"""

from __future__ import annotations

import json
from typing import Any

from mmengine.fileio.handlers import JsonHandler
from mmengine.fileio.handlers.json_handler import set_default

__all__ = ['write_standard_json']


def write_standard_json() -> str:
    """Write ``null`` for what is not finite.

    Returns:
        str: What was done.
    """
    JsonHandler.dump_to_str = _dump_to_str
    JsonHandler.dump_to_fileobj = _dump_to_fileobj
    return 'null for NaN and infinity'


def _dump_to_str(self: JsonHandler, obj: Any, **kwargs: Any) -> str:
    kwargs.setdefault('default', set_default)
    try:
        return json.dumps(obj, **{'allow_nan': False, **kwargs})
    except ValueError:
        pass  # the rare case
    text = json.dumps(obj, default=kwargs['default'])
    finite = json.loads(text, parse_constant=lambda name: None)
    return json.dumps(finite, **kwargs)


def _dump_to_fileobj(
    self: JsonHandler, obj: Any, file: Any, **kwargs: Any
) -> None:
    file.write(self.dump_to_str(obj, **kwargs))
