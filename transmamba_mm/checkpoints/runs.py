# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The checkpoints in the folder of a run."""

import logging
import os.path as osp
import re
import zipfile
from pathlib import Path
from typing import Optional

from mmengine.logging import print_log

from .files import CheckpointError

_POINTER = 'last_checkpoint'
_STEP = re.compile(r'(?:epoch|iter)_(\d+)\.pth')


def newest_whole(folder: str, but: str = '') -> Optional[str]:
    """The newest checkpoint of a run whose file is not cut short.

    Args:
        folder (str): Folder of the run.
        but (str): Name of a file that does not count. Defaults to ``''``.

    Returns:
        str | None: Its path, if there is one.
    """
    steps = {}
    for path in Path(folder).glob('*_*.pth'):
        match = _STEP.fullmatch(path.name)
        # Cut short, it lacks the directory of its parts.
        if match and path.name != but and zipfile.is_zipfile(path):
            steps[int(match[1])] = str(path)
    return steps[max(steps)] if steps else None


def name_older(path: str) -> str:
    """Words for the end of a message that a run's checkpoint is no good.

    Args:
        path (str): The checkpoint.

    Returns:
        str: They name the newest whole one beside it, if there is one.
    """
    folder, name = osp.split(path)
    if not _STEP.fullmatch(name) and name != _POINTER:
        return ''
    other = newest_whole(folder, but=name)
    return f"; '{other}' beside it is whole" if other else ''


def find_latest_checkpoint(folder: str) -> Optional[str]:
    """Finds the checkpoint with which a run goes on.

    MMEngine's own believes the path in ``last_checkpoint``. A copy of a
    folder then goes on from the checkpoint of the original, and a folder
    that has moved from none.

    Args:
        folder (str): Folder of the run.

    Returns:
        str | None: The file of the folder that ``last_checkpoint`` names;
        one of another folder, with a warning, if there is none of that name
        here; the newest here, with a warning, if the path leads nowhere.
        None for a folder without checkpoints.

    Raises:
        CheckpointError: If ``last_checkpoint`` names no file, or one of
            this folder that is not there.
    """
    pointer = osp.join(folder, _POINTER)
    if not osp.lexists(pointer):
        newest = newest_whole(folder)
        if newest:
            _warn(f"there is no '{pointer}': '{newest}' is the newest")
        return newest
    try:
        named = Path(pointer).read_text(encoding='utf-8').strip()
    except (OSError, ValueError):
        named = ''
    if not named or not named.isprintable():
        raise CheckpointError(
            f"'{pointer}' names no checkpoint{name_older(pointer)}: name one "
            f'with --resume FILE'
        )
    own = osp.join(folder, osp.basename(named))
    elsewhere = osp.abspath(osp.dirname(named)) != osp.abspath(folder)
    if osp.isfile(own):
        if elsewhere and osp.exists(named):
            _warn(f"'{pointer}' names '{named}': '{own}' is taken instead")
        return own
    if '://' in named or (elsewhere and osp.isfile(named)):
        _warn(f"'{pointer}' leads out of its folder, to '{named}'")
        return named
    newest = newest_whole(folder) if elsewhere else None
    if newest is None:
        raise CheckpointError(
            f"'{pointer}' names '{named}', which does not exist"
            f'{name_older(own)}: name one with --resume FILE'
        )
    _warn(f"'{named}' of '{pointer}' is gone: '{newest}' is the newest here")
    return newest


def _warn(text: str) -> None:
    print_log(text, logger='current', level=logging.WARNING)
