# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A Mamba language model in LLaMA's layout, with Cross-Mamba layers."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Optional, Union

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from transmamba_mm.checks import check_bool, check_int, check_ints
from transmamba_mm.contract import MambaStudent, MixerBlock
from transmamba_mm.contract.sequences import TokenMasks
from transmamba_mm.contract.start_values import FreshStart
from transmamba_mm.contract.taps import (
    Grid,
    active_taps,
    recomputation_contexts,
)
from transmamba_mm.ops import linear
from transmamba_mm.registry import MODELS

from ..layers import CrossMamba, GatedFFN, MambaMixer, MixerState
from ..layers.norm import build_token_norm
from .generation import generate

_ARCH_KEYS = dict(
    embed_dims=check_int, num_layers=check_int, vocab_size=check_int
)
_ARCH_OPTIONS = dict(expand=1, ffn_dims=0, tie_embeddings=True)


class MambaBlock(MixerBlock, nn.Module):
    """A mixer, then maybe a gated FFN, each after a norm, with residuals.

    Args:
        mixer (MambaMixer): The mixer.
        norm_cfg (dict): Norm before the mixer and before the FFN.
        ffn_dims (int): Hidden width of the FFN; 0 for none.
    """

    PASSES = (*MixerBlock.PASSES, 'step')

    def __init__(
        self, mixer: MambaMixer, norm_cfg: dict, ffn_dims: int
    ) -> None:
        super().__init__()
        dims = mixer.embed_dims
        self.norm = build_token_norm(norm_cfg, dims)
        self.mixer = mixer
        self.norm2 = self.ffn = None
        if ffn_dims:
            self.norm2 = build_token_norm(norm_cfg, dims)
            self.ffn = GatedFFN(dims, ffn_dims)

    def forward(
        self,
        x: Tensor,
        grid: Grid,
        masks: Optional[TokenMasks] = None,
        state: Optional[MixerState] = None,
    ) -> Tensor:
        """Runs the block on a residual stream.

        Args:
            x (Tensor): (B, L, C).
            grid (tuple[int, ...]): (L,).
            masks (TokenMasks, optional): What the tokens are.
            state (MixerState, optional): See :meth:`MambaMixer.mix`.

        Returns:
            Tensor: (B, L, C).
        """
        return self._mlp(x + self.mixer(self.norm(x), grid, masks, state))

    def step(self, x: Tensor, state: MixerState) -> Tensor:
        """Runs the block on one more token (B, C); see the mixer."""
        return self._mlp(x + self.mixer.step(self.norm(x), state))

    def _mlp(self, x: Tensor) -> Tensor:
        return x if self.ffn is None else x + self.ffn(self.norm2(x))


class TiedHead(nn.Module):
    """Scores tokens by the embedding, which stays the only parameter.

    Args:
        embedding (nn.Embedding): Its weight is (V, C).
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self._embedding = (embedding,)  # in a tuple: no part of this module

    def forward(self, x: Tensor) -> Tensor:
        """Logits (..., V) of tokens (..., C)."""
        return linear(x, self._embedding[0].weight)


@MODELS.register_module()
class TransMambaLM(MambaStudent, FreshStart):
    r"""A causal Mamba language model, the student of a LLaMA.

    Embedding, blocks of mixer and SwiGLU, norm, head: LLaMA with Mamba in
    place of attention, so that all but queries, keys and values can be
    copied from one. Some layers may be Cross-Mamba, which read what the
    image tokens of the sequence have written.

    Args:
        arch (str | dict): A preset of :attr:`ARCHS`, or a dict with
            ``embed_dims``, ``num_layers`` and ``vocab_size`` and, optionally,
            ``expand`` (1), ``ffn_dims`` (0, no FFN) and ``tie_embeddings``
            (True). Defaults to ``'600m'``.
        norm_cfg (dict): The norms; they should be the teacher's. Defaults to
            LLaMA's RMSNorm.
        mixer_cfg (dict, optional): Further arguments of every
            :class:`~transmamba_mm.models.layers.MambaMixer`:
            ``norm_bc_dt=1e-6`` for the weights of a Falcon Mamba,
            ``conv_std=1.0`` for the paper's convolutions. Defaults to None.
        cross_layers (Sequence[int]): Layers that are
            :class:`~transmamba_mm.models.layers.CrossMamba`, e.g. every
            fourth, ``(3, 7, 11, 15)``. Defaults to ``()``.
        cross_cfg (dict, optional): Further arguments of those: ``kv``,
            ``bidirectional_kv``, ``dt_min``, ``dt_max``. Defaults to None.
        with_cp (bool): Whether to keep only the inputs of the blocks for the
            backward pass and compute the rest again there. Defaults to
            False.
        init_cfg (dict | list[dict], optional): mmengine initialisation.

    Attributes:
        embed_tokens (nn.Embedding): The embedding.
        head (nn.Module): Gives the logits.
        vocab_size (int): Size of the vocabulary V.

    Raises:
        ValueError: If a setting is not supported.
    """

    #: ``'600m'`` keeps the width of LLaMA-3.2-1B and the shape of all that is
    #: copied from it but the FFN; ``'600m-no-ffn'`` has the shapes of
    #: mamba-1.4b's mixers; ``'600m-narrow'`` keeps LLaMA-3.2-1B's FFN whole.
    ARCHS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        '600m': dict(
            embed_dims=2048,
            num_layers=16,
            vocab_size=128256,
            ffn_dims=1280,
        ),
        '600m-no-ffn': dict(
            embed_dims=2048, num_layers=16, vocab_size=128256, expand=2
        ),
        '600m-narrow': dict(
            embed_dims=1024,
            num_layers=16,
            vocab_size=128256,
            expand=2,
            ffn_dims=8192,
        ),
    }

    #: The order of a sequence; of a line of tokens it is the first to last.
    directions = ('raster',)
    FINAL_NORM = 'norm_f'
    PARAM_ROLES = (
        (r'embed_tokens\.weight', r'embed.weight'),
        (r'layers\.(\d+)\.norm\.(weight|bias)', r'layers.\1.mixer_norm.\2'),
        (
            r'layers\.(\d+)\.mixer\.out_proj\.(weight|bias)',
            r'layers.\1.mixer_out.\2',
        ),
        (r'layers\.(\d+)\.mixer\.conv1d\.(\w+)', r'layers.\1.ssm.conv.\2'),
        (
            r'layers\.(\d+)\.mixer\.(x_proj|dt_proj)(?:_b)?\.(\w+)',
            r'layers.\1.ssm.\2.\3',
        ),
        (r'layers\.(\d+)\.mixer\.A(?:_b)?_log', r'layers.\1.ssm.A'),
        (r'layers\.(\d+)\.mixer\.(.+)', r'layers.\1.ssm.\2'),
        (r'layers\.(\d+)\.norm2\.(weight|bias)', r'layers.\1.ffn_norm.\2'),
        (r'layers\.(\d+)\.ffn\.gate\.weight', r'layers.\1.ffn_gate.weight'),
        (r'layers\.(\d+)\.ffn\.up\.weight', r'layers.\1.ffn_in.weight'),
        (r'layers\.(\d+)\.ffn\.down\.weight', r'layers.\1.ffn_out.weight'),
        (r'norm_f\.(weight|bias)', r'final_norm.\1'),
    )

    def __init__(
        self,
        arch: Union[str, dict] = '600m',
        norm_cfg: Optional[dict] = None,
        mixer_cfg: Optional[dict] = None,
        cross_layers: Sequence[int] = (),
        cross_cfg: Optional[dict] = None,
        with_cp: bool = False,
        init_cfg: Union[dict, list[dict], None] = None,
    ) -> None:
        super().__init__(init_cfg)
        arch = self._resolve_arch(arch)
        dims, depth = arch['embed_dims'], arch['num_layers']
        self.vocab_size = arch['vocab_size']
        self.layer_dims = (dims,) * depth
        self.with_cp = check_bool('with_cp', with_cp)
        self.cross_layers = check_ints(
            'cross_layers', cross_layers, 0, depth - 1
        )
        norm_cfg = norm_cfg or dict(type='transmamba.RMSNorm', eps=1e-5)
        mixer_cfg = {'expand': arch['expand'], **(mixer_cfg or {})}
        cross_cfg = {**mixer_cfg, **(cross_cfg or {})}
        self.embed_tokens = nn.Embedding(self.vocab_size, dims)
        self.layers = nn.ModuleList(
            MambaBlock(
                CrossMamba(dims, **cross_cfg)
                if layer in self.cross_layers
                else MambaMixer(dims, **mixer_cfg),
                norm_cfg,
                arch['ffn_dims'],
            )
            for layer in range(depth)
        )
        self.norm_f = build_token_norm(norm_cfg, dims)
        if arch['tie_embeddings']:
            self.head = TiedHead(self.embed_tokens)
        else:
            self.head = nn.Linear(dims, self.vocab_size, bias=False)
        self.reset_parameters()

    def _resolve_arch(self, arch: Union[str, Mapping]) -> dict[str, Any]:
        if isinstance(arch, str):
            if arch not in self.ARCHS:
                raise ValueError(
                    f'unknown TransMambaLM arch {arch!r}; choose from '
                    f'{", ".join(self.ARCHS)}, or pass a dict with '
                    f'{", ".join(_ARCH_KEYS)}'
                )
            arch = self.ARCHS[arch]
        required, optional = set(_ARCH_KEYS), set(_ARCH_OPTIONS)
        if not required <= set(arch) <= required | optional:
            raise ValueError(
                f'a custom TransMambaLM arch needs the keys '
                f'{sorted(required)} and may have {sorted(optional)}, got '
                f'{sorted(arch)}'
            )
        arch = {**_ARCH_OPTIONS, **arch}
        for key, check in _ARCH_KEYS.items():
            arch[key] = check(key, arch[key])
        arch['ffn_dims'] = check_int('ffn_dims', arch['ffn_dims'], 0)
        check_bool('tie_embeddings', arch['tie_embeddings'])
        return arch

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start values other than those of the parts, as mamba-ssm's."""
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        for block in self.layers:
            outputs = [block.mixer.out_proj]
            if block.ffn is not None:
                outputs.append(block.ffn.down)
            for module in outputs:
                # As many summands enter the residual stream.
                module.weight.div_((len(outputs) * len(self.layers)) ** 0.5)

    # ------------------------------------------------------- the contract

    def blocks(self) -> list[MambaBlock]:
        """See :meth:`MambaStudent.blocks`."""
        return list(self.layers)

    def mix(
        self, layer: int, stream: Tensor, grid: Grid, *context: Any
    ) -> Tensor:
        """See :meth:`MambaStudent.mix`; not of Cross-Mamba layers."""
        if layer in self.cross_layers:
            raise ValueError(
                f'layer {layer} is Cross-Mamba, which needs to know the image '
                f"tokens beside the teacher's stream: leave it out of "
                f'layer_map (None), or set teacher_forced=False'
            )
        return super().mix(layer, stream, grid, *context)

    # ------------------------------------------------------- computation

    def forward(
        self,
        input_ids: Optional[Tensor] = None,
        attention_mask: Optional[Tensor] = None,
        inputs_embeds: Optional[Tensor] = None,
        image_mask: Optional[Tensor] = None,
        question_mask: Optional[Tensor] = None,
        states: Optional[Sequence[MixerState]] = None,
        last_only: bool = False,
    ) -> Tensor:
        """Scores the next token at each place.

        Args:
            input_ids (Tensor, optional): Token ids (B, L); these or
                ``inputs_embeds``.
            attention_mask (Tensor, optional): (B, L), 0 on padding. Defaults
                to None: there is none.
            inputs_embeds (Tensor, optional): Embedded tokens (B, L, C), with
                those of images among them.
            image_mask (Tensor, optional): (B, L), 1 on image tokens. Defaults
                to None: there is none.
            question_mask (Tensor, optional): (B, L), 1 on the tokens of the
                question, for layers with ``kv='text'``.
            states (Sequence[MixerState], optional): Of :meth:`new_states`;
                they are moved behind the last token, for :meth:`step`.
            last_only (bool): Whether to score the last place alone. Defaults
                to False.

        Returns:
            Tensor: Logits (B, L, V), or (B, 1, V).

        Raises:
            ValueError: If not exactly one of ids and embedded tokens is
                given, or a mask has another shape.
        """
        x = self.features(
            input_ids,
            attention_mask,
            inputs_embeds,
            image_mask,
            question_mask,
            states,
        )
        return self.head(x[:, -1:] if last_only else x)

    def features(
        self,
        input_ids: Optional[Tensor] = None,
        attention_mask: Optional[Tensor] = None,
        inputs_embeds: Optional[Tensor] = None,
        image_mask: Optional[Tensor] = None,
        question_mask: Optional[Tensor] = None,
        states: Optional[Sequence[MixerState]] = None,
    ) -> Tensor:
        """What the head reads, (B, L, C); see :meth:`forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError('give exactly one of input_ids and inputs_embeds')
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        x = inputs_embeds
        named = dict(
            attention_mask=attention_mask,
            image_mask=image_mask,
            question_mask=question_mask,
        )
        for name, mask in named.items():
            if mask is not None and mask.shape != x.shape[:2]:
                raise ValueError(
                    f'{name} must be of shape (B, L) = {tuple(x.shape[:2])}, '
                    f'got {tuple(mask.shape)}'
                )
        masks = TokenMasks(
            *(None if mask is None else mask.bool() for mask in named.values())
        )
        grid = (x.shape[1],)
        for i, block in enumerate(self.layers):
            state = None if states is None else states[i]
            x = self._run_block(block, x, grid, masks, state)
        return self.normalise(x)

    def _run_block(self, block: nn.Module, x: Tensor, *args: Any) -> Tensor:
        if not (self.with_cp and torch.is_grad_enabled()):
            return block(x, *args)
        taps = active_taps(block)
        return checkpoint(
            block,
            x,
            *args,
            use_reentrant=False,
            context_fn=lambda: recomputation_contexts(taps),
        )

    # ----------------------------------------------------------- decoding

    def new_states(self, batch: int) -> list[MixerState]:
        """The states of all layers before the first token.

        Their size does not depend on how many tokens will follow.

        Args:
            batch (int): Number of sequences B.

        Returns:
            list[MixerState]: One for each layer.
        """
        return [mixer.new_state(batch) for mixer in self.mixers()]

    @torch.no_grad()
    def step(self, tokens: Tensor, states: Sequence[MixerState]) -> Tensor:
        """Reads one more token of each sequence.

        To Cross-Mamba layers it is a token that does not write, as are those
        of an answer.

        Args:
            tokens (Tensor): Ids (B,).
            states (Sequence[MixerState]): Those behind the tokens before;
                they are moved on.

        Returns:
            Tensor: Logits (B, V) of the next token.
        """
        x = self.embed_tokens(tokens)
        for block, state in zip(self.layers, states):
            x = block.step(x, state)
        return self.head(self.normalise(x))

    def generate(self, **options: Any) -> Tensor:
        """Generates the continuation of prompts.

        Args:
            **options: See :func:`~transmamba_mm.models.language.generate`.

        Returns:
            Tensor: New tokens (B, T), without the prompt.
        """
        return generate(self, **options)
