# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Student backbones in mmpretrain's conventions.

What transfer and distillation know of them is
:class:`~transmamba_mm.contract.GridStudent`; this adds presets, checkpoints,
``out_indices``, frozen stages and the like.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Optional, Union

import torch
from mmengine.logging import print_log
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from transmamba_mm.checkpoints import (
    NOTE,
    CheckpointFormat,
    check_layout,
    note_layout,
)
from transmamba_mm.checkpoints.evidence import check_class_token
from transmamba_mm.checkpoints.load import (
    filter_classifier_state,
    load_backbone,
)
from transmamba_mm.checks import check_int, check_number, is_int
from transmamba_mm.contract import GridStudent, MixerBlock
from transmamba_mm.contract.class_tokens import (
    join_class_tokens,
    split_class_tokens,
)
from transmamba_mm.contract.start_values import FreshStart, StrictPretrained
from transmamba_mm.contract.taps import (
    Grid,
    active_taps,
    recomputation_contexts,
)

#: The start that Transformers have from timm, as an ``init_cfg``.
TRUNC_NORMAL_INIT = [
    dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
]


class MambaBackbone(GridStudent, StrictPretrained, FreshStart):
    r"""Base class of student backbones, in mmpretrain's conventions.

    A subclass registers ``patch_embed`` (with ``init_out_size``), ``layers``
    of :class:`~transmamba_mm.contract.MixerBlock`, the norm called
    :attr:`FINAL_NORM` (None for none) and, if it has one, ``pos_embed``, and
    sets ``directions``, ``layer_dims`` and the class attributes of
    :class:`~transmamba_mm.contract.GridStudent` and below. Its constructor
    calls, in this order, this class's, :meth:`_resolve_arch`,
    :meth:`_add_outputs` once ``layer_dims`` is known, and, at its end,
    ``reset_parameters``, if it has one, for start values other than those of
    its parts, and :meth:`_freeze_stages`; its ``forward`` ends with
    :meth:`_run_layers`.

    Attributes:
        OUT_NORM (str): How the norms of outputs before the last layer are
            called, less their index.
        OUT_TYPES (tuple[str, ...]): Supported ``out_type`` values.
        EMBEDDINGS (tuple[str, ...]): How names of the backbone's own
            parameters start that precede the first layer.
        ARCHS (dict[str, dict]): Presets by name.
        ARCH_OPTIONS (dict[str, Any]): Keys that an ``arch`` may leave out,
            with their defaults. The keys it must have are
            :attr:`ARCH_KEYS`.
        ARCH_CHECKS (dict[str, Callable]): By key of an ``arch``, what gets
            the key and its value, and returns the value or complains.
        FORMAT (CheckpointFormat): What its checkpoints are like, those
            that the authors released above all.

    Args:
        out_indices (Sequence[int] | int): Layers, or stages of a
            hierarchical backbone, whose output is returned, ascending;
            negative counts from the end. Defaults to -1.
        out_type (str): ``'raw'`` (B, L, C), ``'featmap'`` (B, C, h, w),
            ``'avg_featmap'`` (B, C), or ``'cls_token'`` (B, C). Defaults to
            ``'avg_featmap'``.
        frozen_stages (int): Number of first layers to freeze together with
            the embeddings; -1 freezes nothing. Defaults to -1.
        norm_eval (bool): Keep BatchNorm statistics fixed while training.
            Defaults to False.
        with_cp (bool): Whether to keep only the inputs of the blocks for
            the backward pass and compute the rest again there. Saves memory
            for time. As elsewhere, the statistics of a BatchNorm in a block
            move twice a step then. Defaults to False.
        init_cfg (dict | list[dict], optional): mmengine initialisation.

    Raises:
        ValueError: If a setting is not supported.
    """

    OUT_NORM: ClassVar[str] = 'norm_layer'
    OUT_TYPES: ClassVar[tuple[str, ...]] = ('raw', 'featmap', 'avg_featmap')
    EMBEDDINGS: ClassVar[tuple[str, ...]] = ('pos_embed', 'cls_token')
    ARCHS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    ARCH_KEYS: ClassVar[tuple[str, ...]] = ('embed_dims', 'num_layers')
    ARCH_OPTIONS: ClassVar[Mapping[str, Any]] = {}
    ARCH_CHECKS: ClassVar[Mapping[str, Callable[[str, Any], Any]]] = dict(
        embed_dims=check_int, num_layers=check_int
    )
    FORMAT: ClassVar[CheckpointFormat] = CheckpointFormat()

    def __init__(
        self,
        out_indices: Union[int, Sequence[int]] = -1,
        out_type: str = 'avg_featmap',
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: Union[dict, list[dict], None] = None,
    ) -> None:
        super().__init__(init_cfg)
        if out_type not in self.OUT_TYPES:
            raise ValueError(
                f'{type(self).__name__} has no out_type {out_type!r}; '
                f'choose from {", ".join(self.OUT_TYPES)}'
            )
        self._asked_out_indices = out_indices
        self.out_type = out_type
        self.frozen_stages = check_int('frozen_stages', frozen_stages, -1)
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self._register_state_dict_hook(note_layout)
        self._register_load_state_dict_pre_hook(self._fit_loaded)

    # ------------------------------------------------------ the contract

    def blocks(self) -> list[MixerBlock]:
        """See :meth:`MambaStudent.blocks`."""
        return list(self.layers)

    # -------------------------------------------------------- checkpoints

    @property
    def layout(self) -> dict[str, Any]:
        """dict: What the names and shapes of the tensors cannot tell.

        Plain values only. They are stored with a state dict, and one with
        other values is refused. A subclass adds its own.
        """
        family = self.FORMAT.family
        family = {'family': family} if family else {}
        return {**family, 'directions': self.directions}

    @staticmethod
    def families() -> dict[str, type['MambaBackbone']]:
        """The backbone of each family of checkpoints."""
        found, todo = {}, [MambaBackbone]
        while todo:
            todo += (kind := todo.pop()).__subclasses__()
            if 'FORMAT' in vars(kind) and kind.FORMAT.family:
                found[kind.FORMAT.family] = kind
        return found

    def load_pretrained(self, path: str, prefix: Optional[str]) -> None:
        """See :meth:`StrictPretrained.load_pretrained`; official ones too."""
        load_backbone(self, path, prefix)

    def _checkpoint_filter(self, state_dict: dict, prefix: str, *args) -> None:
        """Run by mmpretrain's classifiers before they load anything."""
        filter_classifier_state(self, state_dict, prefix)

    def fitted(
        self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Makes tensors of another patch grid fit; see :class:`Stored`.

        A position embedding is resized. A subclass that makes more fit
        extends this.
        """
        tensors = dict(tensors)
        own = getattr(self, 'pos_embed', None)
        loaded = tensors.get('pos_embed')
        if own is None or loaded is None:
            return tensors
        grid = tuple(self.patch_embed.init_out_size)
        source = note.get('grid')
        if source is None:
            side = int((loaded.shape[1] - self.num_extra_tokens) ** 0.5)
            source = grid if own.shape == loaded.shape else (side, side)
        if (
            tuple(source) == grid
            or math.prod(source) + self.num_extra_tokens != loaded.shape[1]
        ):
            return tensors  # a strict load reports shapes that differ
        print_log(
            f'resize pos_embed from {"x".join(map(str, source))} to '
            f'{"x".join(map(str, grid))} tokens',
            logger='current',
        )
        tensors['pos_embed'] = self._resize_positions(loaded, source, grid)
        return tensors

    def _fit_loaded(
        self, state_dict: dict, prefix: str, local_metadata: dict, *args
    ) -> None:
        """Run by PyTorch before it loads: refuses lookalikes, and fits."""
        own = {
            key[len(prefix) :]: state_dict[key]
            for key in state_dict
            if key.startswith(prefix)
        }
        if not own:
            return
        note = local_metadata.get(NOTE, {})
        check_layout(self, note)
        if not note:
            # Of a part of a model, the whole has been checked.
            check_class_token(self, own, warn=not prefix)
        fitted = self.fitted(own, note)
        state_dict.update((prefix + key, x) for key, x in fitted.items())

    # ------------------------------------------------ for the subclasses

    def _resolve_arch(self, arch: Union[str, Mapping]) -> dict[str, Any]:
        """Looks a preset up and fills in a dict's optional keys.

        Raises:
            ValueError: If there is no such preset, or a key is missing,
                unknown, or has a wrong value.
        """
        name = type(self).__name__
        if not isinstance(arch, Mapping):
            if not isinstance(arch, str) or arch not in self.ARCHS:
                raise ValueError(
                    f'unknown {name} arch {arch!r}; choose from '
                    f'{", ".join(self.ARCHS)}, or pass a dict with '
                    f'{", ".join(self.ARCH_KEYS)}'
                )
            arch = self.ARCHS[arch]
        required, optional = set(self.ARCH_KEYS), set(self.ARCH_OPTIONS)
        if not required <= set(arch) <= required | optional:
            raise ValueError(
                f'a custom {name} arch needs the keys {sorted(required)} and '
                f'may have {sorted(optional)}, got {sorted(arch)}'
            )
        arch = copy.deepcopy({**self.ARCH_OPTIONS, **arch})
        for key, check in self.ARCH_CHECKS.items():
            if key in arch:
                arch[key] = check(key, arch[key])
        return arch

    def _drop_path_rates(self, last: float) -> list[float]:
        """Stochastic depth of each layer, growing linearly from 0."""
        if not 0 <= check_number('drop_path_rate', last, 0) < 1:
            raise ValueError(
                f'drop_path_rate must be at least 0 and below 1, got {last}'
            )
        steps = self.num_layers
        return torch.linspace(0, last, steps, device='cpu').tolist()

    def _run_block(self, block: nn.Module, x: Tensor, *args: Any) -> Tensor:
        """Runs a block, with its activations kept or computed again."""
        if not (self.with_cp and torch.is_grad_enabled()):
            return block(x, *args)
        # Only where it is needed, as torch.compile knows no such contexts.
        taps = active_taps(block)
        contexts = partial(recomputation_contexts, taps)
        kwargs = dict(context_fn=contexts) if taps else {}
        return checkpoint(block, x, *args, use_reentrant=False, **kwargs)

    def _run_layers(self, x: Tensor, grid: Grid) -> tuple[Tensor, ...]:
        """Runs all layers on tokens (B, L, C); returns what is asked for."""
        outs = []
        for index, block in enumerate(self.layers):
            x = self._run_block(block, x, grid)
            if index in self.out_indices:
                outs.append(self._output(index, x, grid))
        return tuple(outs)

    # -------------------------------------------- mmpretrain's conventions

    @property
    def num_outputs(self) -> int:
        """int: What ``out_indices`` can choose from: layers, or stages."""
        return self.num_layers

    def _add_outputs(self, make_norm: Callable[[int], nn.Module]) -> None:
        """Sets ``out_indices``, and registers the norms of earlier outputs.

        The norm of the last layer is :attr:`FINAL_NORM`.

        Args:
            make_norm (Callable): Makes the norm of an index.
        """
        self.out_indices = self._resolve_out_indices()
        for index in self.out_indices:
            if index != self.num_outputs - 1:
                self.add_module(f'{self.OUT_NORM}{index}', make_norm(index))

    def _resolve_out_indices(self) -> tuple[int, ...]:
        """Turns the asked ``out_indices`` into non-negative ones."""
        asked = self._asked_out_indices
        asked = [asked] if is_int(asked) else asked
        if (
            not isinstance(asked, Sequence)
            or not asked
            or not all(map(is_int, asked))
        ):
            raise ValueError(
                f'out_indices must be an integer or several, got {asked!r}'
            )
        resolved = []
        for index in asked:
            positive = index + self.num_outputs if index < 0 else index
            if not 0 <= positive < self.num_outputs:
                levels = 'stages' if self.hierarchical else 'layers'
                raise ValueError(
                    f'out_indices holds {index}, but '
                    f'{type(self).__name__} has {self.num_outputs} {levels}'
                )
            resolved.append(positive)
        if resolved != sorted(set(resolved)):
            raise ValueError(
                f'out_indices must ascend without repeats, as the outputs '
                f'do, got {asked}'
            )
        return tuple(resolved)

    def _output(self, index: int, x: Tensor, grid: Grid) -> Tensor:
        """What a layer's, or stage's, residual stream (B, L, C) shows."""
        last = index == self.num_outputs - 1
        name = self.FINAL_NORM if last else f'{self.OUT_NORM}{index}'
        return self._format_output(
            self._normalise(x, getattr(self, name)), grid
        )

    def _normalise(self, x: Tensor, norm: Optional[nn.Module]) -> Tensor:
        """Normalises the residual stream, if there is a norm."""
        return x if norm is None else norm(x)

    def _format_output(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Shapes tokens (B, L, C), class tokens included, by ``out_type``."""
        if self.out_type == 'raw':
            return tokens
        classes, patches = self.split(tokens, grid)
        if self.out_type == 'cls_token':
            return classes.mean(dim=1)
        if self.out_type == 'featmap':
            return patches.mT.unflatten(2, grid)
        return patches.mean(dim=1)

    def _resize_positions(
        self, positions: Tensor, source: Grid, target: Grid
    ) -> Tensor:
        """Stretches a position embedding; class tokens keep theirs."""
        if tuple(source) == tuple(target):
            return positions
        classes, patches = split_class_tokens(
            positions, self.class_token_slots(*source)
        )
        patches = resize_pos_embed(patches, source, target, 'bicubic', 0)
        return join_class_tokens(
            classes, patches, self.class_token_slots(*target)
        )

    def _freeze_stages(self) -> None:
        """Freezes the embeddings and the first ``frozen_stages`` layers."""
        if self.frozen_stages < 0:
            return
        if self.frozen_stages > len(self.layers):
            levels = 'stages' if self.hierarchical else 'layers'
            raise ValueError(
                f'frozen_stages is {self.frozen_stages}, but '
                f'{type(self).__name__} has {len(self.layers)} {levels}'
            )
        frozen = [self.patch_embed, *self.layers[: self.frozen_stages]]
        # Dropout in front of frozen layers stops, too, as in mmpretrain.
        frozen.append(getattr(self, 'drop_after_pos', None))
        if self.frozen_stages >= len(self.layers):
            frozen.append(getattr(self, self.FINAL_NORM))
        for module in frozen:
            if module is not None:
                module.eval()
                module.requires_grad_(False)
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith(self.EMBEDDINGS):
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> 'MambaBackbone':
        """Sets the mode; frozen parts and frozen norms stay in eval mode."""
        super().train(mode)
        if mode:
            self._freeze_stages()
            if self.norm_eval:
                for module in self.modules():
                    if isinstance(module, _BatchNorm):
                        module.eval()
        return self

    def get_layer_depth(
        self, param_name: str, prefix: str = ''
    ) -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay.

        Args:
            param_name (str): Full parameter name.
            prefix (str): Prefix of this backbone's parameters. Defaults
                to ``''``.

        Returns:
            tuple[int, int]: The depth, 0 for the stem and ``n - 1`` for what
            follows the layers, and the number of depths ``n``.
        """
        depths = len(self.layers) + 2
        if not param_name.startswith(prefix):
            return depths - 1, depths
        name = param_name[len(prefix) :]
        if name.startswith((*self.EMBEDDINGS, 'patch_embed')):
            return 0, depths
        if name.startswith('layers.'):
            return int(name.split('.')[1]) + 1, depths
        return depths - 1, depths
