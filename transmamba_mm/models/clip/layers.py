# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""CLIP's Transformer layers under OpenAI's names (arXiv 2103.00020)."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Optional

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class QuickGELU(nn.Module):
    """OpenAI's approximation of GELU, ``x * sigmoid(1.702 x)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Applies it to each value."""
        return x * torch.sigmoid(1.702 * x)


#: By name. Names and shapes of weights do not tell which they were trained
#: with.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = dict(
    quick_gelu=QuickGELU, gelu=nn.GELU
)


class ResidualAttentionBlock(nn.Module):
    """Attention and FFN, each behind a LayerNorm.

    Args:
        dims (int): Channels.
        heads (int): Attention heads.
        depth (int): Layers of the whole, for start values.
        act (str): A name of :data:`ACTIVATIONS`.
    """

    def __init__(self, dims: int, heads: int, depth: int, act: str) -> None:
        super().__init__()
        self.depth = depth
        self.attn = nn.MultiheadAttention(dims, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(dims)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(dims, 4 * dims),
                gelu=ACTIVATIONS[act](),
                c_proj=nn.Linear(4 * dims, dims),
            )
        )
        self.ln_2 = nn.LayerNorm(dims)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """OpenAI's start values."""
        dims = self.attn.embed_dim
        out = (2 * self.depth * dims) ** -0.5
        nn.init.normal_(self.attn.in_proj_weight, std=dims**-0.5)
        nn.init.normal_(self.attn.out_proj.weight, std=out)
        nn.init.normal_(self.mlp.c_fc.weight, std=(2 * dims) ** -0.5)
        nn.init.normal_(self.mlp.c_proj.weight, std=out)
        nn.init.zeros_(self.attn.in_proj_bias)
        nn.init.zeros_(self.attn.out_proj.bias)

    def forward(
        self,
        x: Tensor,
        causal: Optional[Tensor] = None,
        padding: Optional[Tensor] = None,
    ) -> Tensor:
        """Runs the layer.

        Args:
            x (Tensor): Tokens (B, L, C).
            causal (Tensor, optional): Bool (L, L), True where a token does
                not see another. Defaults to None.
            padding (Tensor, optional): Bool (B, L), True for tokens that no
                token sees. Defaults to None.

        Returns:
            Tensor: (B, L, C).
        """
        read = self.ln_1(x)
        x = (
            x
            + self.attn(
                *(read, read, read),
                key_padding_mask=padding,
                need_weights=False,
                attn_mask=causal,
            )[0]
        )
        return x + self.mlp(self.ln_2(x))


class CLIPTransformer(nn.Module):
    """A stack of :class:`ResidualAttentionBlock`.

    Args:
        dims (int): Channels.
        depth (int): Layers.
        heads (int): Attention heads.
        act (str): A name of :data:`ACTIVATIONS`. Defaults to
            ``'quick_gelu'``.
        with_cp (bool): Whether to keep only the inputs of the layers for the
            backward pass. Defaults to False.

    Raises:
        ValueError: If the heads do not divide the channels, or ``act`` is
            not known.
    """

    def __init__(
        self,
        dims: int,
        depth: int,
        heads: int,
        act: str = 'quick_gelu',
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        if act not in ACTIVATIONS:
            raise ValueError(
                f'unknown act {act!r}; choose from {", ".join(ACTIVATIONS)}'
            )
        if dims % heads:
            raise ValueError(f'{dims} channels are no multiple of {heads=}')
        self.with_cp = with_cp
        self.resblocks = nn.ModuleList(
            ResidualAttentionBlock(dims, heads, depth, act)
            for _ in range(depth)
        )

    def forward(
        self,
        x: Tensor,
        causal: Optional[Tensor] = None,
        padding: Optional[Tensor] = None,
        last: int = -1,
    ) -> Tensor:
        """Runs the layers; see :meth:`ResidualAttentionBlock.forward`.

        Args:
            x (Tensor): See there.
            causal (Tensor, optional): See there.
            padding (Tensor, optional): See there.
            last (int): The last that is run, counted from the end if
                negative. Defaults to -1, all.

        Returns:
            Tensor: (B, L, C).
        """
        for block in self.resblocks[: last % len(self.resblocks) + 1]:
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint(block, x, causal, padding, use_reentrant=False)
            else:
                x = block(x, causal, padding)
        return x
