# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""One run at a time in a folder."""

import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Union

from filelock import FileLock, Timeout


class InUseError(ValueError):
    """A folder that another run works in."""


@contextmanager
def locked(folder: Union[str, Path]) -> Iterator[None]:
    """Keeps a folder for this process, until it ends, however it ends.

    Args:
        folder (str | Path): The folder; made if it is not there.

    Raises:
        InUseError: If another process has it: which one, since when.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / '.owner'
    # The system's lock, so no killed run leaves it behind.
    lock = FileLock(folder / '.lock', timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        try:
            who = owner.read_text()
            minutes = (time.time() - owner.stat().st_mtime) / 60
        except OSError:  # not written yet
            who, minutes = 'another process', 0
        raise InUseError(
            f"another run is at work in '{folder}', {who}, for "
            f'{minutes:.0f} minutes: wait for it, or choose another folder'
        ) from error
    except NotImplementedError:
        warnings.warn(
            f"the file system of '{folder}' knows no locks: let no other run "
            f'use it',
            stacklevel=3,
        )
    try:
        owner.write_text(f'process {os.getpid()} on {socket.gethostname()}')
        yield
    finally:
        lock.release()
