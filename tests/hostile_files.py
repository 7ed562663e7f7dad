# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Checkpoint files that want to run code, crash, or are broken."""

import io
import os
import pickle
import threading
import zipfile
from collections import OrderedDict
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

#: What the code in a file makes in the current folder.
MARK = 'code_ran'
COMMAND = f'touch {MARK}'
STATEMENT = f"import os\nos.system('{COMMAND}')\nmodel = dict()\n"


class Call:
    """Pickles to a call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Built:
    """Pickles to a call, and a state for what it returns."""

    def __init__(self, function, args, state):
        self.call = function, args, state

    def __reduce__(self):
        return self.call


def history(**changes):
    """A history whose state is not MMEngine's."""
    buffer = HistoryBuffer([1.0], [1])
    vars(buffer).update(changes)
    return buffer


def hub(**scalars):
    return dict(log_scalars=scalars, runtime_info={}, resumed_keys={})


RECONSTRUCT, ARGS, _ = np.zeros(1).__reduce__()
SCALAR = np.float32(1).__reduce__()[0]
STATE = dict(w=torch.zeros(4, 4))
WITH_ATTRIBUTE = Built(OrderedDict, ([('w', torch.ones(1))],), dict(items=5))
MALFORMED = torch.nn.Linear(1, 1).state_dict()
MALFORMED._metadata = {'': dict(version='x')}

#: What is put beside, or in place of, a state dict that is in order.
CONTENTS = dict(
    system=dict(x=Call(os.system, COMMAND)),
    object_array=dict(x=Call(np.ndarray, (1,), np.dtype('O'), b'A' * 8)),
    structured=dict(
        x=Call(np.ndarray, (1,), np.dtype([('a', 'O')]), b'A' * 8)
    ),
    void=dict(x=np.zeros(2, 'V8')),
    objects=dict(x=np.array([{}], dtype=object)),
    dates=dict(x=np.zeros(2, 'M8[s]')),
    unfilled=dict(x=Call(np.ndarray, (1000,), np.dtype('f8'))),
    in_hub=dict(
        message_hub=hub(
            loss=history(
                _log_history=Call(np.ndarray, (1,), np.dtype('O'), b'A' * 8)
            )
        )
    ),
    short_array=dict(
        x=Built(RECONSTRUCT, ARGS, (1, (9,), np.dtype('f8'), False, b'A' * 8))
    ),
    negative=dict(
        x=Built(RECONSTRUCT, ARGS, (1, (-1, -1), np.dtype('u1'), False, b'A'))
    ),
    long_scalar=dict(x=Call(SCALAR, np.dtype('f8'), b'A')),
    history_of_text=dict(message_hub=hub(loss=history(_log_history='abc'))),
    history_uneven=dict(
        message_hub=hub(loss=history(_log_history=np.zeros(3)))
    ),
    history_bare=dict(message_hub=hub(loss=Call(HistoryBuffer, [1], [1]))),
    score=dict(message_hub=dict(runtime_info=dict(best_score='high'))),
    scalars=dict(message_hub=dict(log_scalars=[1])),
    hub=dict(message_hub=5),
    meta=dict(meta=5),
    number=dict(state_dict=5),
    nothing=dict(state_dict={}),
    no_tensor=dict(state_dict=dict(w=torch.zeros(1), x='abc')),
    names=dict(state_dict={3: torch.zeros(1)}),
    sparse=dict(state_dict=dict(w=torch.eye(2).to_sparse())),
    nested=dict(
        optimizer=dict(
            state=[torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])]
        )
    ),
    quantised=dict(state_dict={'a.weight': torch.ones(2, dtype=torch.int8)}),
    no_memory=dict(state_dict=dict(w=torch.zeros(2, device='meta'))),
    attribute=dict(state_dict=WITH_ATTRIBUTE),
    metadata=dict(state_dict=MALFORMED),
)


def in_whole(content):
    return dict(meta={}, state_dict=STATE) | content


def _saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _repacked(edit, method=zipfile.ZIP_STORED):
    packed = io.BytesIO()
    source = io.BytesIO(_saved(in_whole({})))
    old, new = zipfile.ZipFile(source), zipfile.ZipFile(packed, 'w', method)
    with old, new:
        for name in old.namelist():
            new.writestr(name, edit(name, old.read(name)))
    return packed.getvalue()


def _inflated(name, data):
    return bytes(10**7) if '/data/' in name else data


#: Whole files.
FILES = dict(
    **{name: partial(_saved, in_whole(x)) for name, x in CONTENTS.items()},
    pickle_4=lambda: pickle.dumps(Call(os.system, COMMAND)),
    pickle_2=lambda: pickle.dumps(Call(os.system, COMMAND), 2),
    bomb=lambda: _repacked(_inflated, zipfile.ZIP_DEFLATED),
    larger_record=lambda: _repacked(_inflated),
    smaller_record=lambda: _repacked(
        lambda name, data: data[:8] if '/data/' in name else data
    ),
    truncated=lambda: _saved(in_whole({}))[:-200],
    empty=lambda: b'',
    text=lambda: b'<html>404</html>',
    list=lambda: _saved([torch.zeros(1)]),
    tensor=lambda: _saved(torch.zeros(1)),
    safetensors=lambda: (1 << 60).to_bytes(8, 'little') + b'{"a": 1}',
)


def write(kind, path):
    """Writes such a file, returns its path."""
    Path(path).write_bytes(FILES[kind]())
    return str(path)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextmanager
def served(folder):
    """Serves a folder; yields its URL."""
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()
        thread.join()
