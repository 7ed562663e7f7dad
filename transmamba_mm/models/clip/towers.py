# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""CLIP's two towers under OpenAI's names.

Paper: CLIP (arXiv 2103.00020). Official code: openai/CLIP (MIT), whose names
and shapes the parameters have, so that its checkpoints, open_clip's and
CLIP4Clip's load, see :mod:`transmamba_mm.checkpoints.clip`.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Optional, Union

import torch
from torch import Tensor, nn

from transmamba_mm.checkpoints.clip import load_tower
from transmamba_mm.checks import check_int
from transmamba_mm.contract.start_values import FreshStart, StrictPretrained
from transmamba_mm.registry import MODELS

from .layers import CLIPTransformer


class CLIPTower(StrictPretrained, FreshStart):
    """What both towers have in common.

    Attributes:
        ARCHS (dict[str, dict]): Presets by OpenAI's names.
        PART (str): Name of the tower in a whole CLIP, empty for the text
            tower, whose parameters are those of CLIP itself.
        embed_dims (int): Channels of the layers.
        out_channels (int): Width of the common space.

    Args:
        arch (str | dict): A preset, or a dict of the same keys.
        act (str): ``'quick_gelu'`` as OpenAI's, or ``'gelu'`` as most of
            open_clip's; the weights do not tell.
        frozen_stages (int): Number of first layers to freeze together with
            the embeddings; all of them freeze the whole tower, -1 nothing.
        with_cp (bool): Whether to keep only the inputs of the layers for
            the backward pass and compute the rest again there.
        init_cfg (dict | list[dict], optional): mmengine initialisation. A
            ``Pretrained`` checkpoint is loaded strictly, from any file that
            :mod:`transmamba_mm.checkpoints.clip` knows.

    Raises:
        ValueError: If a setting is not supported.
    """

    ARCHS: ClassVar[Mapping[str, Mapping[str, int]]]
    PART: ClassVar[str]

    def __init__(
        self,
        arch: Union[str, Mapping],
        act: str,
        frozen_stages: int,
        with_cp: bool,
        init_cfg: Any,
    ) -> None:
        super().__init__(init_cfg)
        self.arch = self._resolve(arch)
        self.embed_dims = self.arch['embed_dims']
        self.out_channels = self.arch['out_channels']
        self.frozen_stages = frozen_stages
        depth = self.arch['num_layers']
        if not -1 <= frozen_stages <= depth:
            raise ValueError(
                f'frozen_stages is {frozen_stages}, but this '
                f'{type(self).__name__} has {depth} layers'
            )
        self.transformer = CLIPTransformer(
            self.embed_dims, depth, self.arch['num_heads'], act, with_cp
        )

    def _resolve(self, arch: Union[str, Mapping]) -> dict[str, int]:
        keys = set(next(iter(self.ARCHS.values())))
        if isinstance(arch, str) and arch in self.ARCHS:
            arch = self.ARCHS[arch]
        if not isinstance(arch, Mapping) or set(arch) != keys:
            raise ValueError(
                f'{type(self).__name__} has no arch {arch!r}: choose from '
                f'{", ".join(self.ARCHS)}, or pass a dict with '
                f'{", ".join(sorted(keys))}'
            )
        return {key: check_int(key, value) for key, value in arch.items()}

    @abstractmethod
    def _embeddings(self) -> list[Union[nn.Module, nn.Parameter]]:
        """What precedes the first layer."""

    def _freeze(self) -> None:
        count, blocks = self.frozen_stages, self.transformer.resblocks
        if count < 0:
            return
        frozen = [*self._embeddings(), *blocks[:count]]
        if count == len(blocks):
            frozen = [self]
        for part in frozen:
            part.requires_grad_(False)

    def load_pretrained(self, path: str, prefix: Optional[str]) -> None:
        """See :meth:`StrictPretrained.load_pretrained`."""
        load_tower(self, path, self.PART, prefix)


@MODELS.register_module()
class CLIPVisionTower(CLIPTower):
    """CLIP's vision Transformer, from pixels to the common space.

    Args:
        arch (str | dict): ``'ViT-B/32'``, ``'ViT-B/16'``, ``'ViT-L/14'``, or
            a dict with ``embed_dims``, ``num_layers``, ``num_heads``,
            ``patch_size`` and ``out_channels``. Defaults to ``'ViT-B/32'``.
        img_size (int): Side of the images, pixels. Defaults to 224.
        act (str): See :class:`CLIPTower`. Defaults to ``'quick_gelu'``.
        frozen_stages (int): See :class:`CLIPTower`. Defaults to -1.
        with_cp (bool): See :class:`CLIPTower`. Defaults to False.
        init_cfg (dict | list[dict], optional): See :class:`CLIPTower`.
        out_layer (int, optional): The layer whose tokens are the output,
            counted from the end if negative, such as LLaVA's -2. Defaults to
            None: the output is the embedding.

    Raises:
        ValueError: If a setting is not supported.
    """

    ARCHS = {
        f'ViT-{name}': dict(
            embed_dims=dims,
            num_layers=layers,
            num_heads=dims // 64,
            patch_size=patch,
            out_channels=out,
        )
        for name, dims, layers, patch, out in (
            ('B/32', 768, 12, 32, 512),
            ('B/16', 768, 12, 16, 512),
            ('L/14', 1024, 24, 14, 768),
        )
    }
    PART = 'visual.'

    def __init__(
        self,
        arch: Union[str, Mapping] = 'ViT-B/32',
        img_size: int = 224,
        act: str = 'quick_gelu',
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: Any = None,
        out_layer: Optional[int] = None,
    ) -> None:
        super().__init__(arch, act, frozen_stages, with_cp, init_cfg)
        depth = self.arch['num_layers']
        if out_layer is not None and not -depth <= out_layer < depth:
            raise ValueError(
                f'out_layer is {out_layer}, but this CLIPVisionTower has '
                f'{depth} layers'
            )
        self.out_layer = out_layer
        dims, patch = self.embed_dims, self.arch['patch_size']
        self.img_size = check_int('img_size', img_size)
        tokens = (img_size // patch) ** 2 + 1
        self.conv1 = nn.Conv2d(3, dims, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(dims))
        self.positional_embedding = nn.Parameter(torch.empty(tokens, dims))
        self.ln_pre = nn.LayerNorm(dims)
        self.ln_post = nn.LayerNorm(dims)
        self.proj = nn.Parameter(torch.empty(dims, self.out_channels))
        self.reset_parameters()
        self._freeze()

    def reset_parameters(self) -> None:
        """OpenAI's start values."""
        for each in (
            self.class_embedding,
            self.positional_embedding,
            self.proj,
        ):
            nn.init.normal_(each, std=self.embed_dims**-0.5)

    def _embeddings(self) -> list[Union[nn.Module, nn.Parameter]]:
        return [
            self.conv1,
            self.class_embedding,
            self.positional_embedding,
            self.ln_pre,
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Embeds images.

        Args:
            x (Tensor): (B, 3, H, W), H and W being ``img_size``.

        Returns:
            Tensor: (B, out_channels), not normalised; with ``out_layer``
            tokens (B, 1 + N, embed_dims), the class token first.

        Raises:
            ValueError: If the images are of another size.
        """
        if x.dim() != 4 or x.shape[2:] != (self.img_size, self.img_size):
            raise ValueError(
                f'this CLIPVisionTower takes images (B, 3, {self.img_size}, '
                f'{self.img_size}), got {tuple(x.shape)}: resize them, or, '
                f'for videos, put it into transmamba.PerFrame'
            )
        x = self.conv1(x).flatten(2).mT
        classes = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([classes, x], dim=1)
        x = self.ln_pre(x + self.positional_embedding.to(x.dtype))
        if self.out_layer is not None:
            return self.transformer(x, last=self.out_layer)
        x = self.transformer(x)
        return self.ln_post(x[:, 0]) @ self.proj


@MODELS.register_module()
class CLIPTextTower(CLIPTower):
    """CLIP's text Transformer, from tokens to the common space.

    Args:
        arch (str | dict): Name of the vision tower that it belongs to, or a
            dict with ``embed_dims``, ``num_layers``, ``num_heads`` and
            ``out_channels``. Defaults to ``'ViT-B/32'``.
        vocab_size (int): Tokens that there are; the last ends a text.
            Defaults to 49408.
        context_length (int): Tokens of the longest text. Defaults to 77.
        act (str): See :class:`CLIPTower`. Defaults to ``'quick_gelu'``.
        frozen_stages (int): See :class:`CLIPTower`. Defaults to -1.
        with_cp (bool): See :class:`CLIPTower`. Defaults to False.
        init_cfg (dict | list[dict], optional): See :class:`CLIPTower`.

    Raises:
        ValueError: If a setting is not supported.
    """

    ARCHS = {
        name: dict(
            embed_dims=dims,
            num_layers=12,
            num_heads=dims // 64,
            out_channels=dims,
        )
        for name, dims in (
            ('ViT-B/32', 512),
            ('ViT-B/16', 512),
            ('ViT-L/14', 768),
        )
    }
    PART = ''

    def __init__(
        self,
        arch: Union[str, Mapping] = 'ViT-B/32',
        vocab_size: int = 49408,
        context_length: int = 77,
        act: str = 'quick_gelu',
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(arch, act, frozen_stages, with_cp, init_cfg)
        dims = self.embed_dims
        self.vocab_size = check_int('vocab_size', vocab_size)
        self.token_embedding = nn.Embedding(vocab_size, dims)
        self.positional_embedding = nn.Parameter(
            torch.empty(check_int('context_length', context_length), dims)
        )
        self.ln_final = nn.LayerNorm(dims)
        self.text_projection = nn.Parameter(
            torch.empty(dims, self.out_channels)
        )
        self.reset_parameters()
        self._freeze()

    def reset_parameters(self) -> None:
        """OpenAI's start values."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=self.embed_dims**-0.5)

    def _embeddings(self) -> list[Union[nn.Module, nn.Parameter]]:
        return [self.token_embedding, self.positional_embedding]

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeds texts.

        Args:
            tokens (Tensor): LongTensor (N, L). What follows the last token
                of a text, the highest number, makes no difference.

        Returns:
            Tensor: (N, out_channels), not normalised.

        Raises:
            ValueError: If a text is longer than ``context_length``.
        """
        length, most = tokens.shape[1], len(self.positional_embedding)
        if length > most:
            raise ValueError(
                f'texts of {length} tokens are too long for a CLIPTextTower '
                f'of context_length={most}: lower max_words of the data'
            )
        x = self.token_embedding(tokens)
        x = x + self.positional_embedding[:length].to(x.dtype)
        unseen = torch.ones(length, length, dtype=torch.bool, device=x.device)
        x = self.transformer(x, causal=unseen.triu(1))
        ends = tokens.argmax(dim=1)
        x = x[torch.arange(len(x), device=x.device), ends]
        return self.ln_final(x) @ self.text_projection
