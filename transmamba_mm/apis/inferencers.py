# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""mmpretrain's inferencers on configs whose test set is wrapped.

They take the test set's pipeline from its outermost config, which a share of
it, or another wrapper, has not. Importing this lets them look inside.

Our own derive from :class:`StrictInferencer`.
"""

import copy
from collections.abc import Callable
from functools import wraps
from typing import Any, Union

from mmengine.config import Config, ConfigDict
from mmpretrain.apis.base import BaseInferencer

from transmamba_mm.checkpoints import CheckpointError, read_state_dict


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


def pipeline_of(cfg: Config) -> list:
    """The pipeline of a config's test set, or of another one of its sets.

    Args:
        cfg (Config): The config.

    Returns:
        list: Configs of the transforms.

    Raises:
        ValueError: If there is none.
    """
    for kind in ('test', 'val', 'train'):
        loader = cfg.get(f'{kind}_dataloader')
        pipeline = loader and with_pipeline(loader.dataset).get('pipeline')
        if pipeline:
            return pipeline
    raise ValueError(
        'the config has no test_dataloader (nor another one) with a pipeline, '
        'which says how inputs are treated: add one'
    )


class StrictInferencer(BaseInferencer):
    """An inferencer that answers with the weights of a file, or not at all.

    mmpretrain's leaves as it was what the file lacks, or has in another
    shape.

    Args:
        model (BaseModel | str | Config): See mmpretrain's.
        pretrained (bool | str): Path or URL of a checkpoint. Defaults to
            True, that of a named model.
        device (str, optional): Defaults to None, the CPU.
        **kwargs: Further arguments of mmpretrain's.

    Raises:
        CheckpointError: If the file does not fit.
    """

    def __init__(
        self,
        model: Any,
        pretrained: Union[bool, str] = True,
        device: Any = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(pretrained, str):
            super().__init__(model, pretrained, device, **kwargs)
            return
        super().__init__(model, False, device, **kwargs)
        state = read_state_dict(pretrained)
        try:
            self.model.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(
                f"'{pretrained}' is of another model. {error}"
            ) from error


def _looking_inside(theirs: Callable) -> Callable:
    @wraps(theirs)
    def init_pipeline(self: BaseInferencer, cfg: Config) -> Any:
        cfg = copy.deepcopy(cfg)
        test_set = cfg.test_dataloader
        test_set.dataset = with_pipeline(test_set.dataset)
        return theirs(self, cfg)

    return init_pipeline


# Those that are defined so far, which are mmpretrain's.
for _kind in BaseInferencer.__subclasses__():
    if '_init_pipeline' in vars(_kind):
        _kind._init_pipeline = _looking_inside(_kind._init_pipeline)
