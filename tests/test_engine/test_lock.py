# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""One run at a time in a folder, and no lock left by one that was killed."""

import os
import signal
import subprocess
import sys

import pytest

from transmamba_mm.engine.lock import InUseError, locked

HOLD = """
import sys, time
from transmamba_mm.engine.lock import locked
with locked(sys.argv[1]):
    print('held', flush=True)
    time.sleep(60)
"""


def test_the_second_is_told_of_the_first(tmp_path):
    folder = tmp_path / 'new' / 'run'
    process = subprocess.Popen(
        [sys.executable, '-c', HOLD, str(folder)], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b'held\n'
        message = rf'process {process.pid} on .*, for 0 minutes'
        with pytest.raises(InUseError, match=message), locked(folder):
            pass
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    with locked(folder):
        pass


def test_it_is_given_back(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), locked(tmp_path):
            raise KeyError
