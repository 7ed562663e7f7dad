# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Conversations with a TransLlava, answered at once or token by token."""

from collections.abc import Iterator, Sequence
from typing import Any, Union

import numpy as np
import torch
from mmcv.image import imread
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from mmpretrain.datasets import PackInputs
from PIL import Image, ImageOps
from torch import nn

from transmamba_mm.checks import check_int
from transmamba_mm.contract import sides_of
from transmamba_mm.datasets.transforms import (
    AskQuestion,
    DropQuestions,
    EachImage,
    PackConversation,
)
from transmamba_mm.models import TransLlava, TransMambaLM
from transmamba_mm.models.language import stream
from transmamba_mm.models.multimodal.prompts import Turn

from .inferencers import StrictInferencer, pipeline_of

#: A path, a picture, or an array (H, W, 3) as mmcv reads it, BGR.
Picture = Union[str, Image.Image, np.ndarray]
#: Pictures, and a question or turns of which the last lacks its answer.
Asked = tuple[Sequence[Picture], Union[str, Sequence[Turn]]]

_NOT_OF_ONE_IMAGE = (
    AskQuestion,
    DropQuestions,
    LoadImageFromFile,
    PackConversation,
    PackInputs,
)


class VisualChatInferencer(StrictInferencer):
    """Answers questions about images, several or none.

    What it is asked it asks as it is, without the prompt of a benchmark, which
    mmpretrain's ``VisualQuestionAnsweringInferencer`` adds where the pipeline
    of the config's test set has one; of that pipeline, or that of the training
    set where there is no other, this takes what happens to an image.

    Args:
        model (BaseModel | str | Config): A :class:`TransLlava`, alone or as
            the student of a distillation: the path of its config, or the
            model with its config as ``_config``.
        *args: Further arguments of :class:`StrictInferencer`.
        **kwargs: Likewise.

    Attributes:
        llava (TransLlava): What answers.

    Raises:
        TypeError: If the model is none.
        CheckpointError: If the checkpoint does not fit.
        ValueError: If no dataset of the config has a pipeline.

    Examples:
        >>> chat = VisualChatInferencer('config.py', 'iter_5197.pth')
        >>> chat([(['fox.jpg'], 'What is it?'), ([], 'One and one?')])
        ['A fox.', 'Two.']
        >>> for text in chat.stream(['fox.jpg'], 'What is it?'):
        ...     print(text)
        A
        A fox
        A fox.
    """

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self.llava = _llava_of(self.model)

    def _init_pipeline(self, cfg: Config) -> Compose:
        steps, built = pipeline_of(cfg), []
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            steps = Compose(steps).transforms
        for step in steps:
            inner = isinstance(step, EachImage)
            built += step.transforms.transforms if inner else [step]
        return Compose(
            [x for x in built if not isinstance(x, _NOT_OF_ONE_IMAGE)]
        )

    def prepare(self, inputs: Sequence[Asked]) -> dict:
        """Images and turns as the model reads them.

        Args:
            inputs (Sequence[Asked]): See :meth:`__call__`.

        Returns:
            dict: ``inputs`` and ``data_samples``, preprocessed.
        """
        pack, rows = PackConversation(), []
        for images, turns in inputs:
            turns = [(turns, None)] if isinstance(turns, str) else list(turns)
            if not turns:
                raise ValueError(
                    'a conversation needs a question, and has none'
                )
            shown = [self.pipeline(_read(image))['img'] for image in images]
            known = dict(id=None, img_paths=[], img=shown, turns=turns)
            rows.append(pack(known))
        return self.model.data_preprocessor(pseudo_collate(rows), False)

    def __call__(
        self,
        inputs: Sequence[Asked],
        batch_size: int = 1,
        **generation_cfg: Any,
    ) -> list[str]:
        """Answers questions.

        Args:
            inputs (Sequence[Asked]): Of each its images, as paths, pictures
                or BGR arrays, and a question, or turns of which the last has
                the answer None. ``<image>`` is the place of an image; where
                there is none, images come first.
            batch_size (int): Defaults to 1.
            **generation_cfg: Options that come before those of the model.

        Returns:
            list[str]: The answers.
        """
        inputs, answers = list(inputs), []
        step = check_int('batch_size', batch_size)
        for start in range(0, len(inputs), step):
            data = self.prepare(inputs[start : start + step])
            found = self.llava.predict(**data, **generation_cfg)
            answers += [sample.pred_answer for sample in found]
        return answers

    def stream(
        self,
        images: Sequence[Picture],
        turns: Union[str, Sequence[Turn]],
        **generation_cfg: Any,
    ) -> Iterator[str]:
        """Answers one question while it is generated.

        Args:
            images (Sequence[Picture]): See :meth:`__call__`.
            turns (str | Sequence[Turn]): See :meth:`__call__`.
            **generation_cfg: See :meth:`__call__`.

        Yields:
            str: The answer so far, after each token; of a language model of
            transformers, and of a search by beams, only all of it.
        """
        llava = self.llava
        options = {**llava.generation_cfg, **generation_cfg}
        beams = options.pop('num_beams', 1)
        options.pop('length_penalty', None)  # of beams
        if beams > 1 or not isinstance(llava.lang_encoder, TransMambaLM):
            yield self([(images, turns)], **generation_cfg)[0]
            return
        data = self.prepare([(images, turns)])
        with torch.no_grad():
            merged = llava.merge(**data, to_answer=True)
        stop, ids = llava.tokenizer.eos_token_id, []
        for tokens in stream(
            llava.lang_encoder, eos_token_id=stop, **merged.inputs, **options
        ):
            if tokens.item() == stop:
                return
            ids.append(tokens.item())
            yield llava.tokenizer.decode(ids).strip()


def _read(image: Picture) -> dict:
    if isinstance(image, Image.Image):
        # Upright, as mmcv reads files.
        image = ImageOps.exif_transpose(image).convert('RGB')
        pixels = np.asarray(image)[..., ::-1]
    elif isinstance(image, np.ndarray):
        pixels = image
        if pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(
                f'an image must be an array (H, W, 3), got {pixels.shape}'
            )
    else:
        pixels = imread(image)
        if pixels is None:
            raise ValueError(f"image '{image}' cannot be read")
    shape = pixels.shape[:2]
    return dict(
        img=np.ascontiguousarray(pixels), img_shape=shape, ori_shape=shape
    )


def _llava_of(model: nn.Module) -> TransLlava:
    """The TransLlava itself, or the student that is one."""
    student, _ = sides_of(model)
    if isinstance(student, TransLlava):
        return student
    raise TypeError(
        f'{type(student).__name__} is no TransLlava: visual questions want '
        f'one, or a distillation of one'
    )
