# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Keep the attributes of one dataset's subset out of another's.

Cures:      ``BaseDataset.get_subset`` (and so mmpretrain's ``KFoldDataset``)
            now and then returns a dataset whose pipeline, or any other
            attribute, is some object of an earlier dataset: the memo of its
            ``copy.deepcopy`` is a default argument, shared by all calls, in
            which addresses of dead objects stay and are taken for new ones.
Versions:   mmengine <= 0.10.7.
Delete:     when ``_copy_without_annotation`` makes its memo itself.
"""

from __future__ import annotations

import functools
from typing import Optional

from mmengine.dataset import BaseDataset

__all__ = ['copy_subsets_alone']


def copy_subsets_alone() -> str:
    """Give each copy of a dataset a memo of its own.

    Returns:
        str: What was done.
    """
    original = BaseDataset._copy_without_annotation
    if not hasattr(original, '__wrapped__'):

        @functools.wraps(original)
        def copy(self: BaseDataset, memo: Optional[dict] = None):
            return original(self, {} if memo is None else memo)

        BaseDataset._copy_without_annotation = copy
    return 'subsets are copied each for itself'
