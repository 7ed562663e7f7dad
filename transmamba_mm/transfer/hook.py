# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Stage one as a hook: subclones the teacher when weights are initialised."""

import os.path as osp
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Optional, Union

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner, find_latest_checkpoint
from torch import Tensor, nn

from transmamba_mm.checkpoints import read_state_dict
from transmamba_mm.contract import TeacherWeights, read_teacher, sides_of
from transmamba_mm.contract.layer_map import LayerMap
from transmamba_mm.registry import HOOKS, MODELS

from .importance import collect_activations
from .plan import TransferError, TransferPlan
from .ssm import build_ssm_source
from .subclone import Subcloner


def _already_initialised() -> None:
    """Stands in for ``init_weights`` until training starts."""


def _calibration_batches(
    model: nn.Module, dataloader: Iterable, num: int
) -> Iterable[Tensor]:
    """First ``num`` batches of a dataloader, preprocessed for a model."""
    for data in islice(dataloader, num):
        yield model.data_preprocessor(data, False)['inputs']


@HOOKS.register_module()
class SubcloneInitializer(Hook):
    """Initialises a student from its teacher before training starts.

    It acts where MMEngine initialises weights: after the model is built and
    before a checkpoint is loaded or broadcast to other ranks. Hence a
    checkpoint given by ``load_from`` overrides it, ``resume`` skips it, all
    ranks start equal, and an EMA copy starts from the subcloned weights. It
    does nothing when only validating or testing. The plan is written to
    ``transfer_plan.json`` in the work directory.

    The teacher is the ``teacher`` of a distillation model if there is one,
    else the weights of ``teacher_ckpt``.

    Args:
        teacher_ckpt (str, optional): Path or URL of the teacher's weights.
            Needed when the model has no ``teacher``. Defaults to None.
        reference_ckpt (str, optional): Weights the teacher was fine-tuned
            from, for ``importance='least_changed'``. Defaults to None.
        importance (str): ``'least_changed'`` (the paper), ``'activation'``,
            ``'magnitude'``, ``'first'`` or ``'random'``. Only used where the
            student is narrower. Defaults to ``'least_changed'``.
        layer_map (str | Sequence[int | None]): ``'uniform'``, ``'first_n'``
            or one teacher layer per student layer. Defaults to
            ``'uniform'``.
        early_layers (int, optional): Copy the teacher into the first n
            student layers only. Defaults to None, all of them.
        ssm_from (str, optional): Path or URL of a pretrained Mamba, or
            ``'attention'``. Defaults to None, fresh SSM parameters.
        conv_init (str, optional): ``'normal'`` re-draws the mixers'
            convolutions from N(0, ``conv_std``). Defaults to None.
        conv_std (float): See ``conv_init``. Defaults to 1.
        widen (str, optional): ``'leading'`` lets a student wider than the
            teacher take it into its first channels. Defaults to None, which
            refuses such a student.
        teacher (dict, optional): Config of the teacher model, needed for
            ``importance='activation'`` when the model has no ``teacher``.
        num_batches (int): Training batches for ``importance='activation'``.
            Defaults to 8.
        seed (int): Seed of every random choice made here. Defaults to 0.
        student_backbone (str, optional): Name of the student's module in
            its model, for models that hold several, e.g. an image and a
            text tower. Defaults to None, the only one.
        teacher_backbone (str, optional): Likewise of the Transformer's, in
            its model or checkpoint. Defaults to None.

    Raises:
        TransferError: If no teacher is given, nothing can be copied, or an
            option is not supported.
        TeacherError: If no teacher is recognised.
        FileNotFoundError: If a checkpoint does not exist.
    """

    # Before EMAHook (NORMAL), so that its copy holds the subcloned weights.
    priority = 'VERY_HIGH'

    def __init__(
        self,
        teacher_ckpt: Optional[str] = None,
        reference_ckpt: Optional[str] = None,
        importance: str = 'least_changed',
        layer_map: LayerMap = 'uniform',
        early_layers: Optional[int] = None,
        ssm_from: Optional[str] = None,
        conv_init: Optional[str] = None,
        conv_std: float = 1.0,
        widen: Optional[str] = None,
        teacher: Optional[dict] = None,
        num_batches: int = 8,
        seed: int = 0,
        student_backbone: Optional[str] = None,
        teacher_backbone: Optional[str] = None,
    ) -> None:
        self.teacher_ckpt = teacher_ckpt
        self.reference_ckpt = reference_ckpt
        self.importance = importance
        self.layer_map: Union[str, Sequence] = layer_map
        self.early_layers = early_layers
        self.ssm_from = ssm_from
        self.conv_init = conv_init
        self.conv_std = conv_std
        self.widen = widen
        self.teacher = teacher
        self.num_batches = num_batches
        self.seed = seed
        self.student_backbone = student_backbone
        self.teacher_backbone = teacher_backbone
        self.plan: Optional[TransferPlan] = None

    def before_run(self, runner: Runner) -> None:
        """Subclones, unless testing, resuming or already done."""
        # MMEngine turns `_train_loop` from a config into a loop only when it
        # trains; `before_run` alone is called for testing as well.
        training = isinstance(runner._train_loop, BaseLoop)
        if not training or self.plan is not None:
            return
        if runner._resume and (
            runner._load_from or find_latest_checkpoint(runner.work_dir)
        ):
            runner.logger.info('resuming: weight subcloning is skipped')
            return
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        model.init_weights()
        self.plan = self.make_plan(model, runner.train_dataloader)
        self.plan.apply(sides_of(model)[0])
        runner.logger.info(f'weight subcloning: {self.plan.summary()}')
        if is_main_process():
            path = osp.join(runner.work_dir, 'transfer_plan.json')
            self.plan.dump(path)
            runner.logger.info(f'transfer plan written to {path}')
        # The runner calls init_weights once more after this hook, then sends
        # rank 0's weights to all. Called twice, MMEngine's own warns.
        model.init_weights = _already_initialised

    def before_train(self, runner: Runner) -> None:
        """Gives the model its own ``init_weights`` back."""
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        vars(model).pop('init_weights', None)

    def make_plan(
        self, model: nn.Module, dataloader: Optional[Iterable] = None
    ) -> TransferPlan:
        """Makes the plan for a model, without changing it.

        Args:
            model (nn.Module): A student, or a distillation algorithm.
            dataloader (Iterable, optional): Training data, read for
                ``importance='activation'`` only.

        Returns:
            TransferPlan: The plan.
        """
        student, teacher = sides_of(model)
        ssm_weights: Any = None
        if self.ssm_from not in (None, 'attention'):
            ssm_weights = read_state_dict(self.ssm_from)
        reference = None
        if self.reference_ckpt is not None:
            reference = self._read(read_state_dict(self.reference_ckpt))
        return Subcloner(
            student,
            self._read(self._teacher_state(model, teacher)),
            importance=self.importance,
            reference=reference,
            activations=self._activations(student, teacher, dataloader),
            layer_map=self.layer_map,
            early_layers=self.early_layers,
            widen=self.widen,
            ssm=build_ssm_source(
                self.ssm_from,
                ssm_weights,
                conv_init=self.conv_init,
                conv_std=self.conv_std,
                seed=self.seed,
            ),
            seed=self.seed,
            student_backbone=self.student_backbone,
        ).plan()

    def _read(self, state: dict) -> TeacherWeights:
        return read_teacher(state, self.teacher_backbone)

    def _teacher_state(
        self, model: nn.Module, teacher: Optional[nn.Module]
    ) -> dict:
        if self.teacher_ckpt is not None:
            return read_state_dict(self.teacher_ckpt)
        if teacher is None:
            raise TransferError(
                f'{type(model).__name__} holds no teacher: give '
                f'SubcloneInitializer a teacher_ckpt'
            )
        return teacher.state_dict()

    def _activations(
        self,
        student: nn.Module,
        teacher: Optional[nn.Module],
        dataloader: Optional[Iterable],
    ) -> Optional[dict]:
        if self.importance != 'activation':
            return None
        if teacher is None and self.teacher is not None:
            teacher = MODELS.build(self.teacher)
            teacher.load_state_dict(read_state_dict(self.teacher_ckpt))
            teacher.to(next(student.parameters()).device)
        if teacher is None or dataloader is None:
            return None
        batches = _calibration_batches(student, dataloader, self.num_batches)
        return collect_activations(teacher, batches, self.teacher_backbone)
