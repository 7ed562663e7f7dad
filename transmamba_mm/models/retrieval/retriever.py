# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Two encoders and a head: text-video retrieval, teacher and student alike."""

from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from transmamba_mm.checkpoints import (
    Source,
    read_state_dict,
    strip_prefix,
)
from transmamba_mm.checkpoints.clip import as_retriever, is_clip
from transmamba_mm.checkpoints.load import check_match, refuse_foreign
from transmamba_mm.contract import Embeddings
from transmamba_mm.contract.start_values import StrictPretrained
from transmamba_mm.registry import MODELS

from .contrastive import contrastive_loss


@MODELS.register_module()
class VideoTextRetriever(StrictPretrained, BaseModel):
    """Scores texts with videos by the cosine of their embeddings.

    CLIP4Clip (arXiv 2104.08860) is the one whose ``backbone`` runs CLIP's
    vision tower on each frame; a Mamba of videos makes the other. CLIP's,
    CLIP4Clip's and mmaction2's checkpoints of the former load as they are,
    by ``init_cfg`` or ``load_from``; all tensors must fit.

    Args:
        backbone (dict): Encoder of videos (B, 3, T, H, W): a
            :class:`~transmamba_mm.contract.PerFrame`, or a ``VideoMamba`` of
            ``out_type='pooled'`` and ``keep_temporal=True``. It gives a
            feature of each frame (B, T, C), or of the video (B, 1, C) or
            (B, C), or a tuple of which that is the last.
        text_encoder (dict): Encoder of tokens (N, L), 0 being padding, to
            (N, C).
        head (dict): A :class:`MeanPooling` or another
            :class:`~transmamba_mm.contract.EmbeddingHead` with its methods.
        data_preprocessor (dict, optional): Defaults to a
            :class:`StackedVideoDataPreprocessor`, whose settings it may hold
            without a ``type``.
        init_cfg (dict | list[dict], optional): mmengine initialisation.
    """

    def __init__(
        self,
        backbone: dict,
        text_encoder: dict,
        head: dict,
        data_preprocessor: Union[dict, nn.Module, None] = None,
        init_cfg: Any = None,
    ) -> None:
        if not isinstance(data_preprocessor, nn.Module):
            kind = dict(type='transmamba.StackedVideoDataPreprocessor')
            data_preprocessor = dict(kind, **(data_preprocessor or {}))
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(backbone)
        self.text_encoder = MODELS.build(text_encoder)
        self.head = MODELS.build(head)
        self._register_load_state_dict_pre_hook(self._accept_clip)

    # ---------------------------------------------------------- checkpoints

    def load_pretrained(self, path: str, prefix: Optional[str]) -> None:
        """See :meth:`StrictPretrained.load_pretrained`.

        Of a CLIP that was not tuned for retrieval, a head takes its start
        values as CLIP4Clip's does.
        """
        source, state = Source(path=path), read_state_dict(path)
        if prefix:
            state = strip_prefix(state, f'{prefix.rstrip(".")}.')
        fresh: list[str] = []
        if is_clip(state):
            state = as_retriever(state)
            heads = {key for key in state if key.startswith('head.')}
            if heads == {'head.logit_scale'}:
                inherited = tuple(f'head.{x}' for x in self.head.INHERITED)
                fresh = [
                    x for x in self.state_dict() if x.startswith(inherited)
                ]
        check_match(self, state, source, fresh)
        self.load_state_dict(state, strict=False)
        if fresh:
            self.head.inherit(self.text_encoder)

    def _accept_clip(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Renames, in place, the tensors of a CLIP before they are loaded.

        What is of other models is refused: loaders that are not strict, as
        mmpretrain's, would leave this one as it is.
        """
        if prefix:
            return
        if not is_clip(state_dict):
            refuse_foreign(self, state_dict, Source())
            return
        named = as_retriever(state_dict)
        check_match(self, named, Source())
        state_dict.clear()
        state_dict.update(named)

    # ------------------------------------------------------------ the modes

    def encode_texts(self, tokens: Tensor) -> Tensor:
        """Embeddings of texts.

        Args:
            tokens (Tensor): LongTensor (N, L), padded with 0.

        Returns:
            Tensor: (N, D), of length 1.
        """
        return self.head.embed_texts(self.text_encoder(_cut(tokens)))

    def encode_videos(
        self, videos: Tensor, mask: Optional[Tensor] = None
    ) -> tuple[Tensor, Optional[Tensor]]:
        """Embeddings of preprocessed videos.

        Args:
            videos (Tensor): (B, 3, T, H, W).
            mask (Tensor, optional): Bool (B, T), True for frames that are no
                padding. Defaults to None, all of them.

        Returns:
            tuple[Tensor, Tensor | None]: Of videos (B, D), of length 1, and
            of frames (B, T, D) where there are any.
        """
        if mask is None:
            mask = videos.new_ones(len(videos), videos.shape[2]).bool()
        return self.head.embed_videos(self._features(videos), mask)

    def embed(
        self, videos: Tensor, data_samples: Sequence[BaseDataElement]
    ) -> Embeddings:
        """Embeddings of videos and all of their texts.

        Args:
            videos (Tensor): (B, 3, T, H, W), preprocessed.
            data_samples (Sequence[BaseDataElement]): Of each video, with
                ``tokens`` (n, L) and, if it is padded, ``num_frames``.

        Returns:
            Embeddings: Texts in the order of the videos.
        """
        texts = self.text_encoder(_cut(_tokens_of(data_samples)))
        features = self._features(videos)
        return self.head(texts, features, _mask_of(videos, data_samples))

    def _features(self, videos: Tensor) -> Tensor:
        features = self.backbone(videos)
        if isinstance(features, tuple):
            features = features[-1]
        return features.unsqueeze(1) if features.dim() == 2 else features

    def forward(
        self,
        inputs: Tensor,
        data_samples: Optional[list[BaseDataElement]] = None,
        mode: str = 'tensor',
    ) -> Any:
        """Runs the model.

        Args:
            inputs (Tensor): Videos (B, 3, T, H, W), preprocessed.
            data_samples (list[BaseDataElement], optional): See
                :meth:`embed`. Only ``'tensor'`` goes without, and
                ``'predict'`` without their ``tokens``.
            mode (str): ``'loss'``, ``'predict'`` or ``'tensor'``. Defaults
                to ``'tensor'``.

        Returns:
            dict | list | Embeddings | tuple: Of ``'loss'`` the loss; of
            ``'predict'`` the data samples with ``video_embedding`` (D,),
            ``text_embeddings`` (n, D) where there are texts and
            ``frame_embeddings`` (T, D) where there are any; of ``'tensor'``
            the embeddings, without data samples those of
            :meth:`encode_videos`.

        Raises:
            ValueError: If a video has not exactly one text for the loss, or
                no frame.
            RuntimeError: If there is no such mode.
        """
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        if mode != 'tensor':
            raise RuntimeError(f'Invalid mode "{mode}".')
        if data_samples is None:
            return self.encode_videos(inputs)
        return self.embed(inputs, data_samples)

    def loss(
        self, inputs: Tensor, data_samples: Sequence[BaseDataElement]
    ) -> dict[str, Tensor]:
        """Contrastive loss over the batches of all processes."""
        counts = {len(sample.tokens) for sample in data_samples}
        if counts != {1}:
            raise ValueError(
                f'in training each video comes with one text, here some have '
                f"{sorted(counts)}: set captions='random' of the dataset, "
                f"or 'each'"
            )
        found = self.embed(inputs, data_samples)
        loss = contrastive_loss(found.texts, found.videos, found.scale)
        return dict(loss=loss)

    def predict(
        self, inputs: Tensor, data_samples: Sequence[BaseDataElement]
    ) -> Sequence[BaseDataElement]:
        """Sets the embeddings of each data sample; see :meth:`forward`."""
        mask = _mask_of(inputs, data_samples)
        videos, frames = self.encode_videos(inputs, mask)
        texts = None
        if all('tokens' in sample for sample in data_samples):
            counts = [len(sample.tokens) for sample in data_samples]
            texts = self.encode_texts(_tokens_of(data_samples)).split(counts)
        for i, sample in enumerate(data_samples):
            sample.video_embedding = videos[i]
            if frames is not None:
                sample.frame_embeddings = frames[i]
            if texts is not None:
                sample.text_embeddings = texts[i]
        return data_samples


def _tokens_of(samples: Sequence[BaseDataElement]) -> Tensor:
    """Tokens (N, L) of all texts, padded with 0."""
    rows = [row for sample in samples for row in sample.tokens]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _cut(tokens: Tensor) -> Tensor:
    """Tokens without what is padding in all texts."""
    used = tokens.ne(0).any(0).nonzero()
    return tokens[:, : int(used.max()) + 1] if len(used) else tokens[:, :1]


def _mask_of(videos: Tensor, samples: Sequence[BaseDataElement]) -> Tensor:
    """Bool (B, T), True for frames that are no padding."""
    frames = videos.shape[2]
    counts = [sample.get('num_frames', frames) for sample in samples]
    if not all(1 <= count <= frames for count in counts):
        raise ValueError(
            f'videos of {frames} frames say that num_frames={counts} of them '
            f'are no padding'
        )
    counts = torch.tensor(counts, device=videos.device)
    return torch.arange(frames, device=videos.device) < counts[:, None]
