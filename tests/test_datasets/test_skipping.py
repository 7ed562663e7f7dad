# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Files that cannot be read leave no trace in random numbers."""

import random

import numpy as np
import torch

from transmamba_mm.checks import UnreadableFileError
from transmamba_mm.datasets.skipping import SkipsUnreadable


def load(info):
    """Draws, as a crop does, before it finds a file unreadable."""
    info['crop'] = random.random(), np.random.rand(), torch.rand(1).item()
    if info['number'] == 0:
        raise UnreadableFileError('broken')
    return info


class Numbers(SkipsUnreadable):
    def load_data_list(self):
        return [dict(number=i) for i in range(6)]

    def draw(self, idx):
        return dict(self.get_data_info(idx), caption=np.random.randint(100))


def seen(dataset):
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    return [
        (x['number'], x['caption'], x['crop'])
        for x in (dataset[i] for i in range(4))
    ]


def test_a_file_is_skipped_alike_at_first_and_later():
    """A resumed run does not know it yet, an uninterrupted one does."""
    options = dict(pipeline=[load], on_error='skip', serialize_data=False)
    dataset = Numbers(**options)
    first = seen(dataset)
    assert dataset.num_skipped == 1
    assert seen(dataset) == first == seen(Numbers(**options))
    assert first[0][0] != 0
