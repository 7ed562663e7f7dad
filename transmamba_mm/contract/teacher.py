# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What distillation may know of a teacher, a live model.

Its sizes, and the places, called sites, that can be read while it runs. Its
tensors by role are those of :mod:`.weights`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from mmpretrain.models import ImageClassifier, TimmClassifier
from torch import Tensor, nn

from .families import TeacherError, find_transformer
from .frames import PerFrame, joined_frames
from .records import Grid, TokenRecord
from .scoring import LACKS, scores_of, scoring_part
from .sequences import flat_logits
from .sites import (
    LAYERS,
    LOGITS,
    MIXER_INPUTS,
    MIXERS,
    QKV,
    SCORES,
    STREAMS,
    TEACHER_SITES,
    TOKENS,
    Captured,
    check_site,
)
from .teachers import Teachers, teacher_at, teachers_of

#: Under which the module is watched that gets the padding of sequences.
_SEQUENCE = 'sequence'


def _is_sequence_first(layer: nn.Module) -> bool:
    """Whether a layer's tokens are (L, B, C), as PyTorch's attention may."""
    return any(
        isinstance(module, nn.MultiheadAttention) and not module.batch_first
        for module in layer.children()
    )


class Teacher:
    """A live Transformer inside a model, as methods may see it.

    Args:
        model (nn.Module): The model.
        backbone (str, optional): Name of the Transformer's module, for
            models that hold several. Defaults to None, the only one.

    Attributes:
        layer_dims (tuple[int, ...]): Width of the residual stream at each
            layer.
        embed_dims (int): Width after the last layer.
        in_channels (int): Channels of an image.
        num_layers (int): Number of layers.
        num_heads (tuple[int, ...]): Attention heads of each layer.
        num_extra_tokens (int): Class and similar tokens in front.
        grid (tuple[int, int], optional): Patch grid (h, w) that its position
            embedding is made for, if it tells.
        patch_size (int): Side of a patch, pixels.
        stride (int): Pixels between patches.

    Raises:
        TeacherError: If no known family fits.
    """

    def __init__(
        self, model: nn.Module, backbone: Optional[str] = None
    ) -> None:
        if backbone is None and isinstance(model, Teachers):
            raise TeacherError(
                f'there are the teachers {list(teachers_of(model))}: say by '
                f'teacher=... of a method, or teacher_backbone=... of another '
                f'part, which one it reads'
            )
        # Not `state_dict`, whose names are not always those of the modules.
        self._parameters = dict(model.named_parameters())
        self._modules = dict(model.named_modules())
        self._type = type(model).__name__
        found = find_transformer(
            {**self._parameters, **dict(model.named_buffers())},
            backbone,
            self._type,
            self._modules,
            to_copy=False,
        )
        self.family, self._prefix = found.family, found.prefix
        self.layers = found.layers
        self._names = found.roles(self._parameters, self._modules)
        self.num_layers = len(self.layers)
        self.layer_dims = tuple(
            self.parameter(f'layers.{i}.mixer_norm.weight').numel()
            for i in range(self.num_layers)
        )
        self.embed_dims = self.layer_dims[-1]
        self.grid = found.grid(self._parameters, self._modules)
        one, _ = teacher_at(model, backbone)
        self._scores = {site: scoring_part(one, site) for site in SCORES}
        self._frames = self._find_frames()
        self.num_extra_tokens = found.num_extra_tokens(self._parameters)

    def _find_frames(self) -> Optional[PerFrame]:
        """What runs the Transformer on each frame of a video, if anything."""
        for name, module in self._modules.items():
            inside = f'{self._prefix}'.startswith(f'{name}.')
            if isinstance(module, PerFrame) and inside:
                return module
        return None

    # ---------------------------------------------------------- its parts

    @property
    def roles(self) -> tuple[str, ...]:
        """tuple[str, ...]: The roles that its parameters play."""
        return tuple(self._names)

    def parameter(self, role: str) -> Tensor:
        """The parameter of a role.

        Args:
            role (str): The role, e.g. ``'layers.0.mixer_out.weight'``.

        Returns:
            Tensor: The parameter.

        Raises:
            TeacherError: If the teacher has none.
        """
        if role not in self._names:
            raise TeacherError(
                f'the teacher ({self.family.name}) has no {role}'
            )
        return self._parameters[self._names[role]]

    def module(self, role: str) -> nn.Module:
        """The module that a role's parameter belongs to."""
        self.parameter(role)
        return self._modules[self._names[role].rpartition('.')[0]]

    def mixer_out(self, layer: int) -> Tensor:
        """Weight (C, C) that projects attention onto the residual stream."""
        weight = self.parameter(f'layers.{layer}.mixer_out.weight')
        scale = f'layers.{layer}.mixer_scale'
        if scale not in self._names:
            return weight
        return self.parameter(scale).unsqueeze(1) * weight

    def attention_extras(self) -> list[str]:
        """What its attention has beside queries, keys and values."""
        known, extras = set(self._names.values()), set()
        extras.update(self.family.attention_extras)
        if self._frames is not None:
            extras.add('attention within each frame alone')
        for layer in range(self.num_layers):
            name = self._names[f'layers.{layer}.qkv.weight']
            # The module with the projection, `attn.qkv`, or its parameter.
            inside = name.removeprefix(f'{self.layers[layer]}.')
            attention = f'{self.layers[layer]}.{inside.split(".")[0]}.'
            extras |= {
                key.removeprefix(attention)
                for key in self._parameters
                if key.startswith(attention) and key not in known
            }
        return sorted(extras)

    @property
    def num_heads(self) -> tuple[int, ...]:
        """tuple[int, ...]: See the class."""
        if not self.family.num_heads:
            raise TeacherError(
                f'the heads of the teacher ({self.family.name}) are not known'
            )
        path, _, attribute = self.family.num_heads.rpartition('.')
        return tuple(
            getattr(self._modules[f'{layer}.{path}'], attribute)
            for layer in self.layers
        )

    @property
    def patch_size(self) -> int:
        """int: See the class."""
        return self.parameter('patch_embed.weight').shape[-1]

    @property
    def in_channels(self) -> int:
        """int: See the class."""
        return self.parameter('patch_embed.weight').shape[1]

    @property
    def stride(self) -> int:
        """int: See the class."""
        return self.module('patch_embed.weight').stride[-1]

    # ---------------------------------------------------------- its sites

    def modules_of(self, site: str) -> dict[str, nn.Module]:
        """The modules that must be watched to read a site.

        Args:
            site (str): One of
                :data:`~transmamba_mm.contract.sites.TEACHER_SITES`.

        Returns:
            dict[str, nn.Module]: The modules, by the names that
            :meth:`record` knows them by.

        Raises:
            TeacherError: If the teacher has no such site.
        """
        check_site(site, TEACHER_SITES, 'teacher')
        if site in SCORES:
            found = self._scores[site]
            if found is not None:
                return {site: found}
            return {site: self._scoring_module(site), **self._sequence()}
        if site == QKV:
            self.parameter('layers.0.qkv.weight')  # or it has no such site
        family, watched = self.family, self._sequence()
        if 'patch_embed.weight' in self._names:
            watched['grid'] = self.module('patch_embed.weight')
        if self._frames is not None:
            watched['frames'] = self._frames
        layers = self.layers[-1:] if site == TOKENS else self.layers
        for i, layer in enumerate(layers):
            # The layer tells the grid where it has one of its own.
            watched[f'{i}.layer'] = self._modules[layer]
            watched[f'{i}.norm'] = self._modules[
                f'{layer}.{family.mixer_norm}'
            ]
            watched[f'{i}.mixer'] = self._modules[f'{layer}.{family.mixer}']
        wanted = {
            TOKENS: 'layer',
            LAYERS: 'layer',
            STREAMS: 'norm',
            MIXER_INPUTS: 'norm',
            QKV: 'norm',
            MIXERS: 'mixer',
        }[site]
        return {
            key: module
            for key, module in watched.items()
            if '.' not in key or key.endswith(('.layer', f'.{wanted}'))
        }

    def _scoring_module(self, site: str) -> nn.Module:
        if site != LOGITS:
            raise TeacherError(LACKS[site].format(self._type))
        family = self.family
        for name in family.places(family.logits, self._prefix):
            if name in self._modules:
                return self._modules[name]
        raise TeacherError(
            f'{self._type} gives no logits that the row of '
            f'{family.name} knows of: it has none of '
            f'{family.places(family.logits, self._prefix) or family.logits}'
        )

    @torch.no_grad()
    def record(self, site: str, seen: Mapping[str, Captured]) -> Any:
        """Makes a site's record of what was seen.

        Args:
            site (str): The site.
            seen (Mapping[str, Captured]): Inputs and output of each of
                :meth:`modules_of`.

        Returns:
            Tensor | Embeddings | Answers | list[TokenRecord]: Logits (B, K),
            embeddings, answers, or a record for each layer; one for
            ``'tokens'``. Of
            a teacher that runs on each frame of a video for itself the
            records are those of the whole video, see
            :func:`~transmamba_mm.contract.frames.joined_frames`.
        """
        valid = self._valid(seen)
        if site in SCORES:
            found = scores_of(site, seen[site].output)
            return flat_logits(found, valid) if _SEQUENCE in seen else found
        first = None  # a sequence: the grid is its length
        if 'grid' in seen:
            first = tuple(seen['grid'].output.shape[2:])
        layers = [self.num_layers - 1]
        if site != TOKENS:
            layers = range(self.num_layers)
        records = [
            self._record_layer(site, layer, f'{place}.', first, seen)
            for place, layer in enumerate(layers)
        ]
        records = [record.without_padding(valid) for record in records]
        if self._frames is None:
            return records
        frames = PerFrame.frames_of(*seen['frames'].inputs)
        return [joined_frames(record, frames) for record in records]

    def _sequence(self) -> dict[str, nn.Module]:
        """What is told of padding, if this is a language model."""
        if 'embed.weight' not in self._names:
            return {}
        return {_SEQUENCE: self._modules[self._prefix.rstrip('.')]}

    @staticmethod
    def _valid(seen: Mapping[str, Captured]) -> Optional[Tensor]:
        """Bool (B, L), False on padding; None if there is none."""
        if _SEQUENCE not in seen:
            return None
        mask = (seen[_SEQUENCE].kwargs or {}).get('attention_mask')
        return None if mask is None else mask.bool()

    def _record_layer(
        self,
        site: str,
        layer: int,
        place: str,
        grid: Optional[Grid],
        seen: Mapping[str, Captured],
    ) -> TokenRecord:
        inputs = seen[f'{place}layer'].inputs
        if len(inputs) > 1 and isinstance(inputs[1], tuple):
            grid = inputs[1]
        if site in (TOKENS, LAYERS):
            tokens = seen[f'{place}layer'].output
        elif site == STREAMS:
            tokens = seen[f'{place}norm'].inputs[0]
        elif site == MIXERS:
            tokens = seen[f'{place}mixer'].output
        else:
            tokens = seen[f'{place}norm'].output
        if isinstance(tokens, tuple):
            tokens = tokens[0]  # nn.MultiheadAttention adds its weights
        if _is_sequence_first(self._modules[self.layers[layer]]):
            tokens = tokens.transpose(0, 1)
        if site == MIXERS:
            tokens = tokens * self._scale_outside(layer)
        elif site == QKV:
            weight = self.parameter(f'layers.{layer}.qkv.weight')
            tokens = F.linear(tokens, weight, self._qkv_bias(layer))
        extra = self.num_extra_tokens
        grid = grid or (tokens.shape[1] - extra,)
        record = TokenRecord(layer, tokens[:, extra:], grid, tokens[:, :extra])
        return self.normalise(record) if site == TOKENS else record

    def _scale_outside(self, layer: int) -> Union[Tensor, float]:
        """The LayerScale that the layer itself applies to its mixer."""
        name = self._names.get(f'layers.{layer}.mixer_scale', '')
        inside = f'{self.layers[layer]}.{self.family.mixer}.'
        if not name or name.startswith(inside):
            return 1.0
        return self._parameters[name]

    def _qkv_bias(self, layer: int) -> Optional[Tensor]:
        role = f'layers.{layer}'
        if f'{role}.q_bias' in self._names:
            query = self.parameter(f'{role}.q_bias')
            value = self.parameter(f'{role}.v_bias')
            return torch.cat([query, torch.zeros_like(query), value])
        name = self._names.get(f'{role}.qkv.bias')
        return None if name is None else self._parameters[name]

    @torch.no_grad()
    def normalise(self, record: TokenRecord) -> TokenRecord:
        """The residual stream after the last layer, by the final norm."""
        if 'final_norm.weight' not in self._names:
            return record
        norm = self.module('final_norm.weight')
        return replace(
            record, tokens=norm(record.tokens), classes=norm(record.classes)
        )


class Scorer:
    """A model of any kind, of which nothing but its scores is known.

    Args:
        model (nn.Module): mmpretrain's ``ImageClassifier`` or
            ``TimmClassifier``, or a retrieval model with an
            :class:`~transmamba_mm.contract.EmbeddingHead`.

    Raises:
        TeacherError: If it is another model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._special = {site: scoring_part(model, site) for site in SCORES}
        if self._special[LOGITS] is not None:
            self._scores = self._special[LOGITS]
        elif isinstance(model, ImageClassifier) and model.with_head:
            self._scores = model.head
        elif isinstance(model, TimmClassifier):
            self._scores = model.model
        else:
            raise TeacherError(
                f'{type(model).__name__} gives no scores that are known: use '
                f"mmpretrain's ImageClassifier or TimmClassifier, or "
                f'transmamba.VideoTextRetriever'
            )
        self._type = type(model).__name__

    def modules_of(self, site: str) -> dict[str, nn.Module]:
        """See :meth:`Teacher.modules_of`; scores alone."""
        if site != LOGITS and self._special[site] is None:
            raise TeacherError(LACKS[site].format(self._type))
        return {site: self._scores}

    def record(self, site: str, seen: Mapping[str, Captured]) -> Any:
        """See :meth:`Teacher.record`."""
        return scores_of(site, seen[site].output)
