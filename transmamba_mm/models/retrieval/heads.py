# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""From frames to a video: CLIP4Clip's similarity heads (arXiv 2104.08860).

``MeanPooling`` is its ``meanP``, ``SequenceTransformer`` its ``seqTransf``.
The projections in front, for towers of other widths than CLIP's, are ours.
"""

import math
from typing import Any, ClassVar, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transmamba_mm.checks import check_int
from transmamba_mm.contract import EmbeddingHead, Embeddings
from transmamba_mm.registry import MODELS

from ..clip import CLIPTextTower, CLIPTransformer

#: Of the learned inverse temperature: ln 100, as in CLIP.
MAX_LOGIT_SCALE = math.log(100)


@MODELS.register_module()
class MeanPooling(EmbeddingHead):
    """A video is the mean of its frames, padding left out.

    Frames are brought to length 1 before the mean, and the mean is again.

    Attributes:
        INHERITED (tuple[str, ...]): Parts that a CLIP without such a head
            has a start for, see :meth:`inherit`.

    Args:
        embed_dims (int): Width of the common space. Defaults to 512.
        video_channels (int, optional): Width of what the video encoder
            gives, which is then projected linearly. Defaults to None, no
            projection.
        text_channels (int, optional): Likewise of the text encoder.
        logit_scale (float): Start value of the logarithm of the inverse
            temperature, which is learned up to ln 100. Defaults to that of
            CLIP, ln (1 / 0.07).
        init_cfg (dict, optional): mmengine initialisation.
    """

    INHERITED: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        embed_dims: int = 512,
        video_channels: Optional[int] = None,
        text_channels: Optional[int] = None,
        logit_scale: float = math.log(1 / 0.07),
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        self.embed_dims = check_int('embed_dims', embed_dims)
        self.initial_scale = logit_scale
        self.video_proj, self.text_proj = (
            nn.Identity()
            if channels is None
            else nn.Linear(channels, embed_dims, bias=False)
            for channels in (video_channels, text_channels)
        )
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """CLIP's start values."""
        nn.init.constant_(self.logit_scale, self.initial_scale)
        for each in (self.video_proj, self.text_proj):
            if isinstance(each, nn.Linear):
                nn.init.normal_(each.weight, std=each.in_features**-0.5)

    def inherit(self, text: nn.Module) -> None:
        """Takes :attr:`INHERITED` from CLIP's text tower."""

    @property
    def scale(self) -> Tensor:
        """Tensor: Scalar, the inverse temperature, at most 100."""
        if self.training:
            # Not only of what it returns, lest the parameter grows on; by
            # `data`, since graphs of earlier passes may still need it.
            self.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)
            return self.logit_scale.exp()
        return self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()

    def embed_texts(self, texts: Tensor) -> Tensor:
        """Embeddings (N, D) of what the text encoder gives (N, C)."""
        return F.normalize(self.text_proj(texts).float(), dim=-1)

    def embed_videos(
        self, features: Tensor, mask: Tensor
    ) -> tuple[Tensor, Optional[Tensor]]:
        """Embeddings of what the video encoder gives.

        Args:
            features (Tensor): (B, T, C), or (B, 1, C) of whole videos.
            mask (Tensor): Bool (B, T), True for frames that are no padding.

        Returns:
            tuple[Tensor, Tensor | None]: Of videos (B, D), and of frames
            (B, T, D) where there are any.

        Raises:
            ValueError: If there are neither T features nor one.
        """
        projected = self.video_proj(features)
        if projected.shape[1] == mask.shape[1]:
            frames = self._related(projected, mask)
            frames = F.normalize(frames.float(), dim=-1)
            weights = mask.unsqueeze(-1).to(frames.dtype)
            mean = (frames * weights).sum(1) / weights.sum(1)
            return F.normalize(mean, dim=-1), frames
        if projected.shape[1] != 1:
            raise ValueError(
                f'the video encoder gives {projected.shape[1]} features of '
                f'videos of {mask.shape[1]} frames: one for each frame or '
                f'one for all are wanted'
            )
        return F.normalize(projected[:, 0].float(), dim=-1), None

    def _related(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Frames (B, T, D) that know of each other."""
        return frames

    def forward(
        self, texts: Tensor, features: Tensor, mask: Tensor
    ) -> Embeddings:
        """See :meth:`EmbeddingHead.forward`."""
        videos, frames = self.embed_videos(features, mask)
        return Embeddings(
            self.embed_texts(texts), videos, frames, mask, self.scale
        )


@MODELS.register_module()
class SequenceTransformer(MeanPooling):
    """A Transformer over the frames, added to them, before the mean.

    Args:
        num_layers (int): Layers. Defaults to 4.
        num_heads (int): Attention heads. Defaults to 8.
        max_frames (int): Frames that have a position. Defaults to 77.
        **kwargs: See :class:`MeanPooling`.
    """

    INHERITED = ('frame_position_embeddings.', 'transformer.')

    def __init__(
        self,
        num_layers: int = 4,
        num_heads: int = 8,
        max_frames: int = 77,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        dims = self.embed_dims
        self.frame_position_embeddings = nn.Embedding(max_frames, dims)
        self.transformer = CLIPTransformer(dims, num_layers, num_heads)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """CLIP's start values, of positions as well."""
        super().reset_parameters()
        # Not yet there when the parent draws.
        if 'frame_position_embeddings' in self._modules:
            nn.init.normal_(self.frame_position_embeddings.weight, std=0.01)

    @torch.no_grad()
    def inherit(self, text: nn.Module) -> None:
        """See :meth:`MeanPooling.inherit`; as CLIP4Clip does.

        Raises:
            ValueError: If ``text`` is no text tower of CLIP, or smaller.
        """
        ours = self.frame_position_embeddings.weight
        depth = len(self.transformer.resblocks)
        if (
            not isinstance(text, CLIPTextTower)
            or len(text.positional_embedding) < len(ours)
            or text.embed_dims != self.embed_dims
            or len(text.transformer.resblocks) < depth
        ):
            raise ValueError(
                f'a SequenceTransformer of {depth} layers, {len(ours)} '
                f'positions and {self.embed_dims} channels starts from the '
                f'first of a CLIPTextTower, and this text encoder has fewer '
                f'or others'
            )
        ours.copy_(text.positional_embedding[: len(ours)])
        for mine, theirs in zip(
            self.transformer.resblocks, text.transformer.resblocks
        ):
            mine.load_state_dict(theirs.state_dict())

    def embed_videos(
        self, features: Tensor, mask: Tensor
    ) -> tuple[Tensor, Optional[Tensor]]:
        """See :meth:`MeanPooling.embed_videos`; of frames alone."""
        if features.shape[1] != mask.shape[1]:
            raise ValueError(
                f'a SequenceTransformer relates frames, and the video encoder '
                f'gives {features.shape[1]} features of {mask.shape[1]} '
                f'frames: set keep_temporal=True of a VideoMamba, or use '
                f'transmamba.MeanPooling'
            )
        return super().embed_videos(features, mask)

    def _related(self, frames: Tensor, mask: Tensor) -> Tensor:
        count, most = (
            frames.shape[1],
            len(self.frame_position_embeddings.weight),
        )
        if count > most:
            raise ValueError(
                f'videos of {count} frames are too long for a '
                f'SequenceTransformer of max_frames={most}'
            )
        positions = self.frame_position_embeddings.weight[:count]
        related = self.transformer(
            frames + positions.to(frames.dtype), padding=~mask
        )
        return frames + related
