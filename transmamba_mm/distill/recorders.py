# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""mmrazor recorders that gather many modules into one record.

Stock recorders hold one module each, and mmrazor's loss mappings take one
record per loss argument. These gather all layers, and for students all scan
directions, in one record. They attach their hooks for the recorded pass only.
"""

import re
from abc import abstractmethod
from typing import Any, Optional, Union

import torch
from mmrazor.models.task_modules.recorder.base_recorder import BaseRecorder
from torch import Tensor, nn

from transmamba_mm.contract import (
    GridStudent,
    MambaStudent,
    Student,
    TapRecord,
    Teacher,
    TeacherError,
    Teachers,
    find_student,
    teacher_at,
)
from transmamba_mm.contract.sequences import valid_of
from transmamba_mm.contract.sites import SCORES, Captured
from transmamba_mm.contract.teacher import Scorer
from transmamba_mm.registry import TASK_UTILS


class ModulesRecorder(BaseRecorder):
    """Watches several modules during one forward pass.

    Args:
        source (str): What is recorded, for messages.

    Raises:
        ValueError: If a module did not run exactly once.
    """

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self._modules: dict[str, nn.Module] = {}
        self._seen: dict[str, list[Captured]] = {}
        self._handles: list[Any] = []

    @abstractmethod
    def _collect(self, seen: dict[str, Captured]) -> Any:
        """Makes the record of what was seen."""

    def _keep(self, name: str, *seen: Any) -> None:
        self._seen.setdefault(name, []).append(Captured(*seen))

    def __enter__(self) -> None:
        super().__enter__()
        self._seen = {}
        for name, module in self._modules.items():
            self._handles.append(
                module.register_forward_hook(
                    lambda _, inputs, kwargs, output, name=name: self._keep(
                        name, inputs, output, kwargs
                    ),
                    with_kwargs=True,
                )
            )

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if exc_type is not None:
            return
        for name in self._modules:
            runs = len(self._seen.get(name, ()))
            if runs != 1:
                raise ValueError(
                    f'recorded module {name!r} ran {runs} times in one '
                    f'forward pass instead of once (for {self.source!r})'
                )
        once = {name: self._seen[name][0] for name in self._modules}
        self._seen = {}
        self._data_buffer.append(self._collect(once))

    def reset_data_buffer(self) -> None:
        """Forgets all records, and with them the graph they hold."""
        super().reset_data_buffer()
        self._seen = {}


@TASK_UTILS.register_module()
class LayerwiseOutputsRecorder(ModulesRecorder):
    r"""Records the outputs of all modules that match a pattern.

    The record is a list of outputs in module order. Written in configs
    without the suffix, ``type='transmamba.LayerwiseOutputs'``.

    Args:
        source (str): Regular expression that must match a module's name in
            full, e.g. ``r'backbone\\.layers\\.\d+'``.

    Raises:
        ValueError: If no module matches (when the recorder is initialised),
            or if a module did not run exactly once (when it is read).
    """

    def prepare_from_model(self, model: Optional[nn.Module] = None) -> None:
        """Finds the modules."""
        try:
            re.compile(self.source)
        except (re.error, TypeError) as error:
            raise ValueError(
                f'recorder source {self.source!r} is no regular expression: '
                f'{error}'
            ) from error
        self._modules = {
            name: module
            for name, module in model.named_modules()
            if re.fullmatch(self.source, name)
        }
        if not self._modules:
            last = self.source.rsplit('.', 1)[-1].rstrip('+*$')
            near = [n for n, _ in model.named_modules() if last in n][:3]
            hint = f'; names like {near}' if near and last else ''
            raise ValueError(
                f'recorder source {self.source!r} matches no module of '
                f'{type(model).__name__}{hint}. It is a regular expression '
                f'for the whole module name; print(model) shows the names'
            )

    def _collect(self, seen: dict[str, Captured]) -> list[Any]:
        return [captured.output for captured in seen.values()]


class SiteRecorder(ModulesRecorder):
    """Records a site of one side of the pair; see :mod:`.contract.sites`.

    Args:
        site (str): The site, e.g. ``'layers'``.
        backbone (str, optional): Name of the student's or teacher's module,
            for models that hold several. Defaults to None, the only one.

    Raises:
        ValueError: If there is no such site.
    """

    def __init__(self, site: str, backbone: Optional[str] = None) -> None:
        super().__init__(source=site)
        self.backbone = backbone
        self._side: Union[Student, Teacher, None] = None

    @abstractmethod
    def _look_at(self, model: nn.Module) -> Union[Student, Teacher]:
        """The recorded side of the pair inside a model."""

    def prepare_from_model(self, model: Optional[nn.Module] = None) -> None:
        """Finds the modules of the site."""
        self._side = self._look_at(model)
        self._modules = self._side.modules_of(self.source)

    def _collect(self, seen: dict[str, Captured]) -> Any:
        return self._side.record(self.source, seen)


@TASK_UTILS.register_module()
class StudentSiteRecorder(SiteRecorder):
    """:class:`SiteRecorder` of a student: ``type='transmamba.StudentSite'``.

    Args:
        site (str): See :class:`SiteRecorder`.
        backbone (str, optional): See :class:`SiteRecorder`.
    """

    def _look_at(self, model: nn.Module) -> Student:
        return Student(model, self.backbone)


@TASK_UTILS.register_module()
class TeacherSiteRecorder(SiteRecorder):
    """:class:`SiteRecorder` of a teacher: ``type='transmamba.TeacherSite'``.

    Args:
        site (str): See :class:`SiteRecorder`.
        backbone (str, optional): See :class:`SiteRecorder`.
    """

    def _look_at(self, model: nn.Module) -> Union[Teacher, Scorer]:
        try:
            return Teacher(model, self.backbone)
        except TeacherError:
            named = self.backbone is not None or isinstance(model, Teachers)
            one, _ = teacher_at(model, self.backbone)
            # Its scores are enough, be it a convolutional network.
            scored = self.source in SCORES
            if not scored or (named and one is model):
                raise
            return Scorer(one)


@TASK_UTILS.register_module()
class DirectionTapsRecorder(BaseRecorder):
    """Records every layer and scan direction of a student.

    The record is a list of
    :class:`~transmamba_mm.contract.TapRecord`, layer by layer. What
    there is to record is read from the student's
    :class:`~transmamba_mm.contract.GridStudent`, so the same config serves
    every student. In configs ``type='transmamba.DirectionTaps'``.

    Args:
        tap (str): ``'out'``, each direction after ``out_proj``, width
            d_model; ``'inner'``, before it, width d_inner; ``'residual'``,
            the block's input plus the direction's output. Defaults to
            ``'out'``.
        directions (list[str], optional): Directions to record. Defaults to
            None, all of the student's. Give a subset to
            ``FeatureCalibration`` as well, lest it builds MLPs that are
            never used.
        backbone (str, optional): Name of the student's module, for models
            that hold several. Defaults to None, the only one.

    Raises:
        ValueError: If ``tap`` or a direction does not exist.
        RuntimeError: If a layer is recorded inside reentrant activation
            checkpointing, which would cut the taps off the graph. The
            backbones' own ``with_cp=True`` is supported.
        TypeError: If the model holds no student backbone.
    """

    TAPS = ('out', 'inner', 'residual')

    def __init__(
        self,
        tap: str = 'out',
        directions: Optional[list[str]] = None,
        backbone: Optional[str] = None,
    ) -> None:
        super().__init__(source='student taps')
        if tap not in self.TAPS:
            raise ValueError(
                f'tap must be one of {", ".join(self.TAPS)}, got {tap!r}'
            )
        self.tap = tap
        self.directions = directions
        self.backbone = backbone
        self._backbone: Optional[MambaStudent] = None
        self._handles: list[Any] = []
        self._seen: list[tuple[int, str, Tensor, tuple]] = []
        self._with_grad = False
        self._block_inputs: dict[int, tuple] = {}

    def prepare_from_model(self, model: Optional[nn.Module] = None) -> None:
        """Finds the student backbone and checks the directions."""
        self._backbone = find_student(model, self.backbone)
        known = self._backbone.directions
        unknown = set(self.directions or ()) - set(known)
        if unknown:
            raise ValueError(
                f'the student has no scan direction '
                f'{", ".join(sorted(unknown))}; it has {", ".join(known)}'
            )

    def __enter__(self) -> None:
        super().__enter__()
        self._seen = []
        backbone = self._backbone
        # A language model may run without its head, and its `forward`.
        self._with_grad = torch.is_grad_enabled()
        self._handles.append(
            backbone.register_forward_pre_hook(self._note_grad_mode)
        )
        for layer, taps in enumerate(backbone.taps()):
            kind = taps.inner if self.tap == 'inner' else taps.out
            for direction in self.directions or backbone.directions:
                self._handles.append(
                    kind[direction].register_forward_hook(
                        self._hook(layer, direction)
                    )
                )
        if self.tap == 'residual' or not isinstance(backbone, GridStudent):
            for layer, block in enumerate(backbone.blocks()):
                self._handles.append(
                    block.register_forward_pre_hook(self._input_hook(layer))
                )

    def _note_grad_mode(self, module: nn.Module, inputs: tuple) -> None:
        self._with_grad = torch.is_grad_enabled()

    def _input_hook(self, layer: int):
        def hook(module: nn.Module, inputs: tuple) -> None:
            self._block_inputs[layer] = inputs

        return hook

    def _hook(self, layer: int, direction: str):
        def hook(module: nn.Module, inputs: tuple, tokens: Tensor) -> None:
            if torch.is_grad_enabled() != self._with_grad:
                raise RuntimeError(
                    f'layer {layer} runs without gradient while its taps are '
                    f'recorded: reentrant activation checkpointing cuts them '
                    f'off; leave activation_checkpointing out and set '
                    f'with_cp=True of the student backbone instead'
                )
            self._seen.append((layer, direction, tokens, tuple(inputs[1])))

        return hook

    def _make_record(
        self, layer: int, direction: str, tokens: Tensor, grid: tuple
    ) -> TapRecord:
        backbone = self._backbone
        skip = set(backbone.class_token_positions(direction, *grid))
        if skip:
            keep = [i for i in range(tokens.shape[1]) if i not in skip]
            tokens = tokens[:, keep]

        def scan_order(*on_grid: int) -> Tensor:
            return backbone.scan_order(direction, *on_grid)

        record = TapRecord(layer, direction, tokens, grid, scan_order)
        if self.tap == 'residual':
            _, stream = backbone.split(self._block_inputs[layer][0], grid)
            if stream.shape[1] != tokens.shape[1]:
                raise ValueError(
                    f"tap='residual' supports students without class tokens, "
                    f'or that say by class_token_slots where they stand; '
                    f'{type(backbone).__name__} has more tokens than it says'
                )
            stream = stream.index_select(1, record.order())
            record = record.with_tokens(tokens + stream)
        if isinstance(backbone, GridStudent):
            return record
        return record.without_padding(valid_of(self._block_inputs[layer]))

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if exc_type is None:
            # Not in the hooks: what runs there is run again by activation
            # checkpointing, which has no hooks then.
            records = [self._make_record(*seen) for seen in self._seen]
            self._data_buffer.append(records)
        self._seen, self._block_inputs = [], {}
