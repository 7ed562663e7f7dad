# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""mmpretrain's inferencers on configs whose test set is wrapped.

They take the test set's pipeline from its outermost config, which a share of
it, or another wrapper, has not. Importing this lets them look inside.
"""

import copy
from collections.abc import Callable
from functools import wraps
from typing import Any

from mmengine.config import Config, ConfigDict
from mmpretrain.apis.base import BaseInferencer


def with_pipeline(dataset: ConfigDict) -> ConfigDict:
    """Config of the dataset inside of wrappers that has the pipeline.

    Args:
        dataset (ConfigDict): Config of a dataset, or of a wrapper of one.

    Returns:
        ConfigDict: The outermost one with a pipeline, or else the innermost.
    """
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset


def _looking_inside(theirs: Callable) -> Callable:
    @wraps(theirs)
    def init_pipeline(self: BaseInferencer, cfg: Config) -> Any:
        cfg = copy.deepcopy(cfg)
        test_set = cfg.test_dataloader
        test_set.dataset = with_pipeline(test_set.dataset)
        return theirs(self, cfg)

    return init_pipeline


for _kind in BaseInferencer.__subclasses__():
    if '_init_pipeline' in vars(_kind):
        _kind._init_pipeline = _looking_inside(_kind._init_pipeline)
