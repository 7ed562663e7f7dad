# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from mmengine.dataset import BaseDataset

from transmamba_mm.compat import copy_subsets_alone


class Numbers(BaseDataset):
    def load_data_list(self):
        return [dict(value=i) for i in range(4)]


def test_copies_share_nothing():
    """The memo of MMEngine's default argument is neither read nor filled."""
    copy_subsets_alone()
    method = BaseDataset._copy_without_annotation
    copy_subsets_alone()
    assert BaseDataset._copy_without_annotation is method
    (memo,) = method.__wrapped__.__defaults__
    dataset = Numbers(pipeline=[lambda sample: sample['value']])
    # What is left there when a dead object had the pipeline's address.
    memo.clear()
    memo[id(dataset.pipeline)] = 'an object of another dataset'
    try:
        subset = dataset.get_subset([1, 3])
        assert [subset[0], subset[1]] == [1, 3]
        assert len(memo) == 1
    finally:
        memo.clear()
    assert subset.pipeline is not dataset.pipeline
