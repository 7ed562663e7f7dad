# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Stage one as a hook: subclones the teacher when weights are initialised."""

import os.path as osp
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Optional, Union

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from transmamba_mm.checkpoints import (
    find_latest_checkpoint,
    fit_names,
    pretrained_parts,
    read_state_dict,
)
from transmamba_mm.contract import (
    KeptChannels,
    TeacherError,
    TeacherInput,
    TeacherWeights,
    read_teacher,
    sides_of,
    teacher_at,
)
from transmamba_mm.contract.layer_map import LayerMap
from transmamba_mm.registry import HOOKS, MODELS

from .copies import copy_parts
from .measure import (
    collect_activations,
    collect_changes,
    collect_mixer_inputs,
    draw_batches,
    restored,
    seeded,
)
from .plan import TransferError, TransferPlan
from .ssm import build_ssm_source
from .subclone import Subcloner


def _already_initialised() -> None:
    """Stands in for ``init_weights`` until training starts."""


def _for_teacher(
    student: nn.Module, teacher: nn.Module
) -> Callable[..., dict]:
    """Preprocesses batches of the student's, as the teacher wants them."""
    convert = TeacherInput(teacher, student.data_preprocessor)

    def preprocess(batch: dict, training: bool) -> dict:
        data = student.data_preprocessor(batch, training)
        return {**data, 'inputs': convert(data['inputs'])}

    return preprocess


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
            from, for ``importance='least_changed'``. Defaults to None: a copy
            of the teacher is fine-tuned instead, see ``fine_tune``.
        importance (str): ``'least_changed'`` (the paper), ``'activation'``,
            ``'magnitude'``, ``'first'`` or ``'random'``. Only used where the
            student is narrower. Defaults to ``'least_changed'``.
        fine_tune (dict, optional): The fine-tuning that tells which channels
            change least: ``num_iters`` (default 100) batches from ``share``
            (default 0.1) of the training images, and ``optim_wrapper``
            (default :data:`~.measure.FINE_TUNING`). It is done where
            channels are dropped and there is no ``reference_ckpt``; the
            teacher then gets its weights back. Defaults to None.
        layer_map (str | Sequence[int | None]): ``'uniform'``, ``'first_n'``
            or one teacher layer per student layer. Defaults to
            ``'uniform'``.
        early_layers (int, optional): Copy the teacher into the first n
            student layers only. Defaults to None, all of them.
        ssm_from (str, optional): Path or URL of a pretrained Mamba, or
            ``'attention'``. Defaults to None, fresh SSM parameters.
        centre_keys (bool): With ``'attention'``, take out of ``B`` what all
            keys have in common; see :class:`~.ssm.AttentionSSM`. Defaults to
            False.
        conv_init (str, optional): ``'normal'`` re-draws the mixers'
            convolutions from N(0, ``conv_std``). Defaults to None.
        conv_std (float): See ``conv_init``. Defaults to 1.
        widen (str, optional): ``'leading'`` lets a student wider than the
            teacher take it into its first channels. Defaults to None, which
            refuses such a student.
        copies (dict[str, str], optional): Further modules, or parameters, of
            the student's model that take over the teacher's as they are, by
            the names of both, e.g.
            ``dict(text_encoder='text_encoder')``. All of their parameters
            must agree. Defaults to None.
        teacher (dict, optional): Config of the teacher model, needed when
            the model has no ``teacher`` for what is measured with training
            data: ``'activation'``, ``'least_changed'`` without a reference,
            and ``centre_keys``. Needed as well for ``copies``, and where
            weights alone do not tell the teacher's patch grid.
        num_batches (int): Training batches for ``importance='activation'``
            and ``centre_keys``. Defaults to 8.
        seed (int): Seed of every random choice made here. Defaults to 0.
        student_backbone (str, optional): Name of the student's module in
            its model, for models that hold several, e.g. an image and a
            text tower. Defaults to None, the only one.
        teacher_backbone (str, optional): Likewise of the Transformer's, in
            its model or checkpoint; of several teachers of a distillation,
            the name of the one. Defaults to None.

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
        fine_tune: Optional[dict] = None,
        layer_map: LayerMap = 'uniform',
        early_layers: Optional[int] = None,
        ssm_from: Optional[str] = None,
        centre_keys: bool = False,
        conv_init: Optional[str] = None,
        conv_std: float = 1.0,
        widen: Optional[str] = None,
        copies: Optional[dict[str, str]] = None,
        teacher: Optional[dict] = None,
        num_batches: int = 8,
        seed: int = 0,
        student_backbone: Optional[str] = None,
        teacher_backbone: Optional[str] = None,
    ) -> None:
        self.teacher_ckpt = teacher_ckpt
        self.reference_ckpt = reference_ckpt
        self.importance = importance
        self.fine_tune = fine_tune or {}
        self.layer_map: Union[str, Sequence] = layer_map
        self.early_layers = early_layers
        self.ssm_from = ssm_from
        self.centre_keys = centre_keys
        self.conv_init = conv_init
        self.conv_std = conv_std
        self.widen = widen
        self.copies = copies or {}
        self.teacher = teacher
        self.num_batches = num_batches
        self.seed = seed
        self.student_backbone = student_backbone
        self.teacher_backbone = teacher_backbone
        self.plan: Optional[TransferPlan] = None

    @property
    def measures(self) -> bool:
        """bool: Whether a running teacher may be asked for something."""
        changes = self.importance == 'least_changed'
        return (
            self.centre_keys
            or self.importance == 'activation'
            or (changes and self.reference_ckpt is None)
        )

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
        self.plan = self.make_plan(model, lambda: runner.train_dataloader)
        student, teacher = sides_of(model)
        self.plan.apply(student)
        taken_from, _ = teacher_at(teacher, self.teacher_backbone)
        for module in model.modules():
            if (
                isinstance(module, KeptChannels)
                and module.student_backbone == self.student_backbone
                # Those of one teacher mean nothing to another.
                and taken_from
                in (teacher, teacher_at(teacher, module.teacher_backbone)[0])
            ):
                module.take(self.plan.kept)
        runner.logger.info(f'weight subcloning: {self.plan.summary()}')
        for difference in self.plan.differences:
            runner.logger.warning(f'weight subcloning: {difference}')
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
        self,
        model: nn.Module,
        data: Optional[Callable[[], DataLoader]] = None,
    ) -> TransferPlan:
        """Makes the plan for a model, without changing it.

        Args:
            model (nn.Module): A student, or a distillation algorithm.
            data (Callable, optional): Gives the loader of the training data,
                where something has to be measured.

        Returns:
            TransferPlan: The plan.
        """
        student, teacher = sides_of(model)
        teacher, name = teacher_at(teacher, self.teacher_backbone)
        ssm_weights: Any = None
        if self.ssm_from not in (None, 'attention'):
            ssm_weights = read_state_dict(self.ssm_from)
        reference = None
        if self.reference_ckpt is not None:
            state = read_state_dict(self.reference_ckpt)
            reference = read_teacher(state, name)
        activations = changes = mean_inputs = None
        if data is not None and (teacher or self.teacher) is not None:
            measure = partial(self._measure, student, teacher, name, data)
            activations = partial(measure, self._activations)
            changes = partial(measure, self._changes)
            mean_inputs = partial(measure, self._mean_inputs)
        if self.centre_keys and mean_inputs is None:
            raise TransferError(
                'centre_keys needs the teacher model and training data: use '
                'it with a distillation model, or give the hook the teacher= '
                'config'
            )
        plan = Subcloner(
            student,
            self._teacher_weights(model, teacher, name),
            importance=self.importance,
            reference=reference,
            activations=activations,
            changes=changes,
            layer_map=self.layer_map,
            early_layers=self.early_layers,
            widen=self.widen,
            ssm=build_ssm_source(
                self.ssm_from,
                ssm_weights,
                mean_inputs if self.centre_keys else None,
                conv_init=self.conv_init,
                conv_std=self.conv_std,
                seed=self.seed,
            ),
            seed=self.seed,
            student_backbone=self.student_backbone,
        ).plan()
        if self.copies:
            if teacher is None and self.teacher is None:
                raise TransferError(
                    'copies needs the teacher model: use it with a '
                    'distillation model, or give the hook the teacher= config'
                )
            with self._running(teacher, 'cpu') as running:
                copy_parts(plan, running, self.copies)
        _check_one_initialiser(student, plan)
        return plan

    def _teacher_weights(
        self,
        model: nn.Module,
        teacher: Optional[nn.Module],
        name: Optional[str],
    ) -> TeacherWeights:
        if self.teacher_ckpt is None:
            if teacher is None:
                raise TransferError(
                    f'{type(model).__name__} holds no teacher: give '
                    f'SubcloneInitializer a teacher_ckpt'
                )
            return read_teacher(teacher, name)
        if teacher is None and self.teacher is not None:
            with self._running(None, 'cpu') as built:
                return read_teacher(built, name)
        weights = read_teacher(read_state_dict(self.teacher_ckpt), name)
        if teacher is not None:
            with suppress(TeacherError):  # it may be of another kind
                weights = weights.as_in(read_teacher(teacher, name))
        return weights

    # ---------------------------------------------------------- measuring

    def _measure(
        self,
        student: nn.Module,
        teacher: Optional[nn.Module],
        name: Optional[str],
        data: Callable[[], DataLoader],
        measure: Callable[..., Any],
    ) -> Any:
        """Measures the teacher; all processes get what the first measured."""
        device = next(student.parameters()).device
        running = self._running(teacher, device)
        with seeded(self.seed, device), running as model:
            found = [
                measure(_for_teacher(student, model), model, name, data())
            ]
        broadcast_object_list(found)
        return found[0]

    @contextmanager
    def _running(
        self, teacher: Optional[nn.Module], device: Any
    ) -> Iterator[nn.Module]:
        """The teacher with the weights that are copied."""
        if teacher is None:
            teacher = MODELS.build(self.teacher).to(device)
        with restored(teacher):
            if self.teacher_ckpt is not None:
                state = read_state_dict(self.teacher_ckpt)
                teacher.load_state_dict(fit_names(state, teacher))
            yield teacher

    def _images(
        self, preprocess: Callable[..., dict], data: DataLoader
    ) -> Iterator[Tensor]:
        for batch in draw_batches(data, self.num_batches, self.seed):
            yield preprocess(batch, False)['inputs']

    def _activations(
        self,
        preprocess: Callable[..., dict],
        teacher: nn.Module,
        name: Optional[str],
        data: DataLoader,
    ) -> dict[str, Tensor]:
        images = self._images(preprocess, data)
        return collect_activations(teacher, images, name)

    def _mean_inputs(
        self,
        preprocess: Callable[..., dict],
        teacher: nn.Module,
        name: Optional[str],
        data: DataLoader,
    ) -> list[Tensor]:
        images = self._images(preprocess, data)
        return collect_mixer_inputs(teacher, images, name)

    def _changes(
        self,
        preprocess: Callable[..., dict],
        teacher: nn.Module,
        name: Optional[str],
        data: DataLoader,
    ) -> dict[str, Tensor]:
        options = dict(num_iters=100, share=0.1, optim_wrapper=None)
        if unknown := self.fine_tune.keys() - options:
            raise TransferError(
                f'fine_tune has no {sorted(unknown)}, but {list(options)}'
            )
        options.update(self.fine_tune)
        batches = draw_batches(
            data, options['num_iters'], self.seed, options['share']
        )
        return collect_changes(
            teacher,
            (preprocess(batch, True) for batch in batches),
            name,
            options['optim_wrapper'],
        )


def _check_one_initialiser(student: nn.Module, plan: TransferPlan) -> None:
    """Refuses a plan that overwrites pretrained weights of the student."""
    written = [entry.name for entry in plan.entries if entry.copied]
    for name, cfg in pretrained_parts(student):
        prefix = f'{name}.' if name else ''
        lost = [each for each in written if each.startswith(prefix)]
        if lost:
            raise TransferError(
                f"the student's {name or 'model'} has init_cfg="
                f"dict(type='Pretrained', checkpoint="
                f'{cfg.get("checkpoint")!r}), and SubcloneInitializer '
                f'would overwrite {len(lost)} of its tensors with the '
                f"teacher's ({lost[0]}, ...): keep one of the two. Or "
                f'give that checkpoint to SubcloneInitializer as '
                f'ssm_from, which takes from it what the teacher cannot '
                f'give'
            )
