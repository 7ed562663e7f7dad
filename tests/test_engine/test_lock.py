# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""One run at a time in a folder, and no lock left by one that was killed."""

import multiprocessing
import os
import signal
import time

import pytest

from transmamba_mm.engine.lock import InUseError, locked


def hold(folder, channel):
    with locked(folder):
        channel.send('held')
        time.sleep(60)


def test_the_second_is_told_of_the_first(tmp_path):
    folder = tmp_path / 'new' / 'run'
    context = multiprocessing.get_context('fork')
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(folder, theirs))
    process.start()
    try:
        assert ours.recv() == 'held'
        message = rf'process {process.pid} on .*, for 0 minutes'
        with pytest.raises(InUseError, match=message), locked(folder):
            pass
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    with locked(folder):
        pass


def test_it_is_given_back(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), locked(tmp_path):
            raise KeyError
