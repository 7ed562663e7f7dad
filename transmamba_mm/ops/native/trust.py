# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Folders into which nobody else can put code that we would run."""

import os
import stat
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class UnsafeFolderError(RuntimeError):
    """Another user may write a folder; the message says which and why."""


def private_folder(root: Path, name: str) -> Path:
    """Return the folder ``name`` in ``root``, made if missing.

    Both must belong to the user and be writable by nobody else.  No folder
    above may belong to another user, but for the system's, or be one where
    everybody can replace what is not theirs (writable without sticky bit).

    Returns:
        Path: without symbolic links.

    Raises:
        UnsafeFolderError: if others could change what is in it.
        OSError: if it cannot be made.
    """
    root = root.resolve()
    folder = root / name
    _make(folder)
    if os.name != 'posix':
        return folder
    for place in (folder, root):
        if not is_own(place):
            raise UnsafeFolderError(
                f'{place} belongs to another user or can be written by '
                f'others (mode {stat.filemode(place.lstat().st_mode)})'
            )
    for place in root.parents:
        state = place.lstat()
        open_to_all = state.st_mode & stat.S_IWOTH
        if state.st_uid not in (0, os.geteuid()) or (
            open_to_all and not state.st_mode & stat.S_ISVTX
        ):
            raise UnsafeFolderError(
                f'{place}, above {root}, belongs to another user or lets '
                f'everybody replace what is in it (mode '
                f'{stat.filemode(state.st_mode)})'
            )
    return folder


def is_own(path: Path) -> bool:
    """Whether a file or folder is the user's and nobody else can write it."""
    try:
        state = path.lstat()
    except OSError:
        return False
    if os.name != 'posix':
        return True
    return (
        state.st_uid == os.geteuid()
        and not stat.S_ISLNK(state.st_mode)
        and not state.st_mode & _OTHERS_WRITE
    )


def _make(folder: Path) -> None:
    """Make a folder and those above it, for the user alone."""
    if not folder.parent.exists():
        _make(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
