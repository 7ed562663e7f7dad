# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Search for videos by text: an index of a folder, and queries to it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional, Union

import torch
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from mmengine.logging import print_log
from mmpretrain.apis.base import ModelType
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from transmamba_mm.checkpoints import CheckpointError, digest_of
from transmamba_mm.checks import UnreadableFileError, check_int
from transmamba_mm.contract import sides_of
from transmamba_mm.datasets.transforms import TokenizeText
from transmamba_mm.datasets.video_files import VIDEOS
from transmamba_mm.models import VideoTextRetriever

from .inferencers import StrictInferencer, pipeline_of


@dataclass(frozen=True)
class VideoIndex:
    """Embeddings of videos.

    Attributes:
        paths (list[str]): Of the videos.
        embeddings (Tensor): (num_videos, D), of length 1.
        made_by (str): The pipeline, the model's settings, and the digest of
            its weights.
    """

    paths: list
    embeddings: Tensor
    made_by: str

    def save(self, path: Union[str, Path]) -> None:
        """Writes it to a file, which PyTorch reads without running code."""
        torch.save(asdict(self), path)

    @classmethod
    def load(cls, path: Union[str, Path]) -> 'VideoIndex':
        """Reads it from a file.

        Raises:
            ValueError: If the file holds no index.
        """
        try:
            content = torch.load(path, map_location='cpu', weights_only=True)
            index = cls(**content)
            whole = len(index.paths) == len(index.embeddings)
        except OSError:
            raise
        except Exception as error:
            raise ValueError(f"'{path}' is no index of videos") from error
        if not whole:
            raise ValueError(f"'{path}' is no index of videos")
        return index


class _Clips(Dataset):
    """Videos through a pipeline; None for those that are skipped."""

    def __init__(
        self, paths: Sequence[str], pipeline: Compose, skip: bool
    ) -> None:
        self._paths, self._pipeline, self._skip = paths, pipeline, skip

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Optional[dict]:
        path = self._paths[index]
        try:
            return self._pipeline(dict(video_path=path, video_id=path))
        except UnreadableFileError as error:
            if not self._skip:
                raise
            print_log(f'skipped: {error}', logger='current', level=30)
            return None


def _collate(samples: list) -> Optional[dict]:
    kept = [sample for sample in samples if sample is not None]
    return default_collate(kept) if kept else None


def videos_in(folder: str) -> list[str]:
    """Paths of the videos of a folder: files by their ending, and folders.

    Args:
        folder (str): The folder.

    Returns:
        list[str]: Ascending.
    """
    return sorted(
        entry.path
        for entry in os.scandir(folder)
        if not entry.name.startswith('.')
        and (entry.is_dir() or entry.name.lower().endswith(VIDEOS))
    )


class VideoTextRetrievalInferencer(StrictInferencer):
    """Finds the videos that fit a text best.

    Args:
        model (BaseModel | str | Config): A ``VideoTextRetriever``, alone or
            as the student of a distillation: its name, the path of its
            config, or the model with its config as ``_config``. The pipeline
            is that of the config's test set.
        videos (str | Sequence[str], optional): A folder, or paths of videos,
            which are indexed at once; see :meth:`index_videos`.
        index (str, optional): Path of an index that :meth:`save_index`
            wrote. Defaults to None.
        pretrained (bool | str): Path of a checkpoint. Defaults to True, that
            of a named model.
        device (str, optional): Defaults to None, the CPU.
        batch_size (int): Videos in a batch. Defaults to 8.
        num_workers (int): Processes that decode. Defaults to 0, this one.
        on_error (str): ``'error'`` or ``'skip'`` of videos that cannot be
            decoded. Defaults to ``'error'``.
        **kwargs: Further arguments of :class:`StrictInferencer`.

    Attributes:
        index (VideoIndex | None): What queries are answered from.

    Raises:
        TypeError: If the model is no retriever.
        ValueError: If an option makes no sense.
        CheckpointError: If the checkpoint does not fit, or the index was
            made by another model.

    Examples:
        >>> search = VideoTextRetrievalInferencer(
        ...     'configs/retrieval/....py', pretrained='epoch_5.pth',
        ...     videos='clips/')
        >>> search.save_index('clips.index')
        >>> search('a dog catches a ball', topk=3)[0]['predictions'][0]
        {'video': 'clips/dog.mp4', 'score': 0.31}
    """

    def __init__(
        self,
        model: ModelType,
        videos: Union[str, Sequence[str], None] = None,
        index: Optional[str] = None,
        pretrained: Union[bool, str] = True,
        device: Any = None,
        batch_size: int = 8,
        num_workers: int = 0,
        on_error: str = 'error',
        **kwargs: Any,
    ) -> None:
        if on_error not in ('error', 'skip'):
            raise ValueError(
                f"on_error must be 'error' or 'skip', got {on_error!r}"
            )
        self.batch_size = check_int('batch_size', batch_size)
        self.num_workers = check_int('num_workers', num_workers, minimum=0)
        self.on_error = on_error
        super().__init__(model, pretrained, device, **kwargs)
        self.retriever = _retriever_of(self.model)
        self.index: Optional[VideoIndex] = None
        if index is not None:
            self.load_index(index)
        elif videos is not None:
            self.index_videos(videos)

    def _init_pipeline(self, cfg: Config) -> Compose:
        steps = pipeline_of(cfg)
        # Made here, so that a transform's class and its name are one case.
        built = Compose(steps).transforms
        self._tokenize = next(
            (x for x in built if isinstance(x, TokenizeText)), None
        )
        if self._tokenize is None:
            raise ValueError(
                'the pipeline of the test set has no transmamba.TokenizeText'
            )
        self._steps = list(map(str, steps))
        return Compose([x for x in built if x is not self._tokenize])

    # ------------------------------------------------------------ the index

    def index_videos(self, videos: Union[str, Sequence[str]]) -> VideoIndex:
        """Embeds videos, of which queries then find the best.

        Args:
            videos (str | Sequence[str]): A folder with video files, and with
                folders of frames, or their paths.

        Returns:
            VideoIndex: The new :attr:`index`.

        Raises:
            UnreadableVideoError: If a video cannot be decoded, unless
                ``on_error='skip'``.
            ValueError: If there is no video, or none can be decoded.
        """
        paths = videos_in(videos) if isinstance(videos, str) else list(videos)
        loader = DataLoader(
            _Clips(paths, self.pipeline, self.on_error == 'skip'),
            self.batch_size,
            num_workers=self.num_workers,
            collate_fn=_collate,
        )
        names, rows = [], []
        for batch in loader:
            if batch is None:
                continue
            with torch.no_grad():
                for sample in self.retriever.test_step(batch):
                    names.append(sample.video_path)
                    rows.append(sample.video_embedding.float().cpu())
        if not rows:
            raise ValueError(f'there is no video to be found in {videos!r}')
        self.index = VideoIndex(names, torch.stack(rows), self._identity())
        return self.index

    def save_index(self, path: str) -> None:
        """Writes the index to a file.

        Raises:
            ValueError: If there is none.
        """
        self._indexed().save(path)

    def load_index(self, path: str) -> VideoIndex:
        """Takes the index from a file.

        Raises:
            ValueError: If the file holds none.
            CheckpointError: If another model or pipeline made it.
        """
        index = VideoIndex.load(path)
        if index.made_by != self._identity():
            raise CheckpointError(
                f"the index '{path}' was made by other weights or settings, "
                f'or another pipeline, than this model has: index the videos '
                f'again'
            )
        self.index = index
        return index

    def _indexed(self) -> VideoIndex:
        if self.index is None:
            raise ValueError(
                'no video is indexed: give videos=..., index=..., or call '
                'index_videos'
            )
        return self.index

    def _identity(self) -> str:
        """What embeddings of videos depend on."""
        model = self.config.get('model', {})
        settings = dict(model.get('architecture', model))  # of a distillation
        for owner in (model, self.config):
            settings['data_preprocessor'] = settings.get(
                'data_preprocessor'
            ) or owner.get('data_preprocessor')
        digest = digest_of(self.retriever.state_dict())
        return f'{self._steps} {_embedding_settings(settings)} {digest}'

    # -------------------------------------------------------------- queries

    def __call__(
        self, inputs: Union[str, Sequence[str]], topk: int = 10
    ) -> list[dict]:
        """Finds the videos for each text.

        Args:
            inputs (str | Sequence[str]): A text, or several.
            topk (int): Videos for each. Defaults to 10.

        Returns:
            list[dict]: For each text ``text`` and ``predictions``, the best
            videos first, each with ``video``, its path, and ``score``, its
            cosine.

        Raises:
            ValueError: If no video is indexed.
        """
        index, check = self._indexed(), check_int('topk', topk)
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        tokens = self._tokenize(dict(texts=texts))['tokens']
        device = next(self.retriever.parameters()).device
        with torch.no_grad():
            found = self.retriever.encode_texts(tokens.to(device))
        scores = found.float().cpu() @ index.embeddings.mT
        best = scores.topk(min(check, len(index.paths)))
        return [
            dict(
                text=text,
                predictions=[
                    dict(video=index.paths[place], score=round(value, 6))
                    for value, place in zip(values, places)
                ],
            )
            for text, values, places in zip(
                texts, best.values.tolist(), best.indices.tolist()
            )
        ]


def _embedding_settings(value: Any) -> Any:
    """Settings without those that say where weights are from."""
    if isinstance(value, Mapping):
        return {
            key: _embedding_settings(value[key])
            for key in sorted(value)
            if key != 'init_cfg'
        }
    if isinstance(value, (list, tuple)):
        return [_embedding_settings(x) for x in value]
    return value


def _retriever_of(model: nn.Module) -> VideoTextRetriever:
    """The retriever itself, or the student that is one."""
    student, _ = sides_of(model)
    if isinstance(student, VideoTextRetriever):
        return student
    raise TypeError(
        f'{type(student).__name__} is no VideoTextRetriever: text-video '
        f'retrieval wants one, or a distillation of one'
    )
