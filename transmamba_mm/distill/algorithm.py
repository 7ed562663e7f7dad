# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Stage two as an mmrazor algorithm."""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, Optional, Union

from mmengine.dist import is_distributed
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from mmrazor.models.algorithms import SingleTeacherDistill
from mmrazor.models.utils import add_prefix
from torch import Tensor, nn

from transmamba_mm.checkpoints import CheckpointError
from transmamba_mm.checkpoints.load import read_classifier_state
from transmamba_mm.checks import check_bool, check_number
from transmamba_mm.contract import (
    GridStudent,
    MambaStudent,
    Pair,
    PairAware,
    Student,
    Teachers,
)
from transmamba_mm.contract.roles import in_group, split_role
from transmamba_mm.contract.start_values import draw_start_values
from transmamba_mm.registry import MODELS

from .distiller import MethodDistiller
from .losses import DistillLoss
from .schedule import (
    Schedule,
    recorders_read,
    recording,
    restricted,
    zero_of,
)
from .teacher_branch import TeacherBranch

_STUDENT = 'architecture.'
_PARTS = (_STUDENT, 'teacher.', 'distiller.')


@MODELS.register_module()
class TransMambaDistill(SingleTeacherDistill):
    """Distils a frozen Transformer into a student (TransMamba, Eq. 11).

    The loss is ``alpha * task + (1 - alpha) * ours``, where *ours* are the
    distillation losses that declare ``alpha_weighted``, such as
    :class:`~transmamba_mm.distill.AdaptiveBidirectionalDistill`. Losses of
    other mmrazor distillers are added with their own weight. Without any
    alpha-weighted loss, or once distillation is stopped, the task loss
    counts in full.

    The teacher is in eval mode and without gradient at all times, and
    training refuses to start unless its checkpoint matches it entirely.

    Args:
        architecture (dict | BaseModel): The student.
        teacher (dict | BaseModel): The teacher, or several by name,
            ``dict(a=dict(type=...), b=dict(type=...))``, of which methods
            name one (``teacher='a'``). A teacher sees the student's images,
            mixup and cutmix included, in the normalisation and size that its
            own ``data_preprocessor`` states, or else in the student's.
        distiller (dict): An ``mmrazor.ConfigurableDistiller``.
        teacher_ckpt (str | dict, optional): Path or URL of the teacher's
            weights, of several by name. Names may start with ``model.`` or
            ``module.``, and hold those of compiled modules. It may be left
            out if ``Pretrained`` checkpoints in ``init_cfg`` of the teacher
            or its parts, maybe with a ``prefix``, cover it. It is read when
            weights are initialised, so testing a distilled checkpoint does
            not need it.
        alpha (float): Weight of the task loss, in [0, 1]. Defaults to 0.5.
        data_preprocessor (dict | nn.Module, optional): A config without
            ``type``, as mmpretrain writes it, is handed to the student,
            which completes it. Defaults to None.
        **kwargs: Further arguments of ``mmrazor.SingleTeacherDistill``.

    Raises:
        ValueError: If ``alpha`` is out of range or ``teacher_trainable`` is
            set, or, when weights are initialised, if the teacher has no
            matching checkpoint.
    """

    def __init__(
        self,
        architecture: Union[dict, BaseModel],
        teacher: Union[dict, BaseModel],
        distiller: dict,
        teacher_ckpt: Union[str, dict, None] = None,
        alpha: float = 0.5,
        data_preprocessor: Union[dict, nn.Module, None] = None,
        **kwargs,
    ) -> None:
        if not 0 <= check_number('alpha', alpha) <= 1:
            raise ValueError(f'alpha must lie in [0, 1], got {alpha}')
        kind = distiller.get('type') if isinstance(distiller, dict) else None
        if kind == 'mmrazor.ConfigurableDistiller' and {
            'methods',
            'phases',
        } & set(distiller):
            raise ValueError(
                'methods and phases are of a distiller of '
                "type='transmamba.MethodDistiller', not of "
                'mmrazor.ConfigurableDistiller'
            )
        if kwargs.get('teacher_trainable'):
            raise ValueError(
                'TransMambaDistill keeps its teacher frozen; use '
                'mmrazor.SingleTeacherDistill to train the teacher as well'
            )
        if not check_bool(
            'student_trainable', kwargs.pop('student_trainable', True)
        ):
            raise ValueError(
                'student_trainable=False leaves nothing to distil into: '
                'leave it out'
            )
        if isinstance(data_preprocessor, dict) and isinstance(
            architecture, dict
        ):
            architecture = dict(architecture)
            architecture.setdefault('data_preprocessor', data_preprocessor)
            data_preprocessor = None
        if isinstance(teacher, dict) and 'type' not in teacher:
            teacher = Teachers(teacher)
        super().__init__(
            distiller=distiller,
            teacher=teacher,
            architecture=architecture,
            data_preprocessor=data_preprocessor,
            **kwargs,
        )
        self.alpha = alpha
        self.teacher_ckpt = teacher_ckpt
        self.branch = TeacherBranch(self.teacher, self.data_preprocessor)
        # mmrazor's own switch is a silent no-op on torch >= 2; in-place
        # activations would overwrite recorded features.
        for module in self.modules():
            if getattr(module, 'inplace', False):
                module.inplace = False
        pair = Pair(self.student, self.teacher)
        for module in self.distiller.modules():
            if isinstance(module, PairAware):
                module.prepare(pair)
        self.schedule, self._by_method = Schedule(), {}
        if isinstance(self.distiller, MethodDistiller):
            self.schedule = self.distiller.schedule
            self._by_method = self.distiller.in_alpha
        self._check_losses()
        self._check_phases()
        self.train(self.training)  # the teacher is not
        self._register_load_state_dict_pre_hook(self._accept_student)

    # --------------------------- what others ask a classifier for, not us

    @property
    def backbone(self) -> nn.Module:
        """nn.Module: The student's."""
        return self.student.backbone

    @property
    def neck(self) -> Optional[nn.Module]:
        """nn.Module | None: The student's."""
        return self.student.neck

    @property
    def head(self) -> Optional[nn.Module]:
        """nn.Module | None: The student's."""
        return self.student.head

    @property
    def with_neck(self) -> bool:
        """bool: Whether the student has a neck."""
        return self.student.with_neck

    @property
    def with_head(self) -> bool:
        """bool: Whether the student has a head."""
        return self.student.with_head

    def extract_feat(self, *args, **kwargs) -> Any:
        """Features of the student, as its own method returns them."""
        return self.student.extract_feat(*args, **kwargs)

    def extract_feats(self, *args, **kwargs) -> list:
        """Features of the student for several batches."""
        return self.student.extract_feats(*args, **kwargs)

    def get_layer_depth(self, param_name: str) -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay.

        Args:
            param_name (str): Its name. What is not the student's, such as a
                connector, comes after all layers and is not slowed down.

        Returns:
            tuple[int, int]: The depth, and the number of depths.
        """
        if not param_name.startswith(_STUDENT):
            depths = self.student.get_layer_depth('head')[1]
            return depths - 1, depths
        return self.student.get_layer_depth(param_name[len(_STUDENT) :])

    # ------------------------------------------------------ the teacher

    def init_weights(self) -> None:
        """Initialises the student and loads the teacher."""
        self.load_teacher()
        if not self.is_init:
            # MMEngine does not reach what hangs on mmrazor's distillers.
            for module in self.distiller.modules():
                if isinstance(module, PairAware):
                    draw_start_values(module)
        super().init_weights()

    def load_teacher(self) -> None:
        """Loads ``teacher_ckpt``; see :meth:`TeacherBranch.load`."""
        self.branch.load(self.teacher_ckpt)

    def _accept_student(self, state_dict: dict, prefix: str, *args) -> None:
        """Lets a checkpoint of the student alone be loaded, in place.

        All else keeps its values. Without this, MMEngine would load nothing
        and only print the names.
        """
        if prefix or not state_dict:
            return
        if any(key.startswith(_PARTS) for key in state_dict):
            return  # of a distillation, or a part of one
        student, backbone = state_dict, getattr(self.student, 'backbone', None)
        if isinstance(backbone, GridStudent):
            student = read_classifier_state(backbone, state_dict)
        if not student.keys() & self.student.state_dict().keys():
            raise CheckpointError(
                f'the checkpoint holds nothing for {type(self).__name__}, '
                f'whose weights start with {_STUDENT!r}, nor for its student '
                f'{type(self.student).__name__}: its tensors are '
                f'{", ".join(list(state_dict)[:4])}, ...'
            )
        rest = {
            key: value
            for key, value in self.state_dict().items()
            if not key.startswith(_STUDENT)
        }
        student = {f'{_STUDENT}{k}': value for k, value in student.items()}
        state_dict.clear()
        state_dict.update({**rest, **student})

    def train(self, mode: bool = True) -> 'TransMambaDistill':
        """Sets the mode of all but the teacher, which stays in eval mode."""
        super().train(mode)
        # nn.Module's own, because some backbones' eval() returns None.
        nn.Module.train(self.teacher, False)
        return self

    # --------------------------------------------------------- the loss

    def loss(
        self,
        batch_inputs: Union[Tensor, list[Tensor]],
        data_samples: Optional[list[BaseDataElement]] = None,
    ) -> dict[str, Tensor]:
        """Computes task and distillation losses.

        Args:
            batch_inputs (Tensor | list[Tensor]): Images (B, 3, H, W), or of
                each sample (n, 3, H, W).
            data_samples (list[BaseDataElement], optional): Annotations.

        Returns:
            dict[str, Tensor]: ``student.*`` and ``distill.*`` losses,
            already weighted, and statistics whose names do not contain
            "loss".
        """
        distiller, (phase, _) = self.distiller, self.schedule.now()
        active = self.active_losses()
        # Nothing can be delivered where the teacher does not run.
        deliveries = distiller.deliveries if active else nullcontext()
        if active:
            distiller.set_deliveries_override(False)
            with deliveries:
                self.branch.record(
                    distiller, active, batch_inputs, data_samples
                )
        task = {}
        if phase.task_loss or recorders_read(distiller, active, student=True):
            distiller.set_deliveries_override(True)
            recorders = recording(distiller, active, student=True)
            with recorders, deliveries:
                task = self.student(batch_inputs, data_samples, mode='loss')
        with restricted(distiller, active):
            found = distiller.compute_distill_losses()
        self._forget_records()

        for name, factor in active.items():
            if factor != 1:
                found[name] = factor * found[name]
        inside = [name for name in found if self._in_alpha(name)]
        losses = {}
        if phase.task_loss and self.calculate_student_loss:
            alpha = self.alpha if self._shares_alpha() else 1.0
            for name, value in task.items():
                weighted = alpha * value if 'loss' in name else value
                losses[f'student.{name}'] = weighted
        for name in inside:
            found[name] = (1 - self.alpha) * found[name]
        found.update(self._statistics(found))
        losses.update(add_prefix(found, 'distill'))
        losses.update(self._idle_loss(losses))
        return losses

    def active_losses(self) -> dict[str, float]:
        """Factor of each distillation loss that counts now, by name."""
        if self.distillation_stopped:
            return {}
        return self.schedule.factors(list(self._mappings))

    @property
    def _mappings(self) -> dict[str, dict]:
        """What each distillation loss reads, by its name."""
        return self.distiller.loss_forward_mappings

    def _shares_alpha(self) -> bool:
        """Whether a loss counts now that is weighed against the task loss."""
        return not self.distillation_stopped and any(
            self._in_alpha(name) and self.schedule.covers(name)
            for name in self._mappings
        )

    def _in_alpha(self, name: str) -> bool:
        """Whether a loss is weighed against the task loss by alpha."""
        if name in self._by_method:
            return self._by_method[name]
        # Of any module, see docs/guides/extending.md.
        loss = self.distiller.distill_losses[name]
        return getattr(loss, 'alpha_weighted', False)

    def _statistics(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Scalars for the log; their names must not contain "loss"."""
        own = {
            name: loss
            for name, loss in self.distiller.distill_losses.items()
            if hasattr(loss, 'statistics')
            and type(loss).statistics is not DistillLoss.statistics
        }
        several, result = len(own) > 1, {}
        for name in own.keys() & names:
            prefix = name.replace('loss', '') if several else ''
            for key, value in own[name].statistics().items():
                result[f'{prefix}_{key}'.strip('_')] = value
        return result

    # ------------------------------------------------ what does not train

    def held_parameters(self) -> list[nn.Parameter]:
        """Parameters that must not move now, see :class:`Phase`."""
        phase, _ = self.schedule.now()
        active = self.active_losses()
        roles = self.student_roles() if phase.trains != 'all' else {}
        held = [
            parameter
            for name, parameter in self.student.named_parameters()
            if phase.trains != 'all'
            and not in_group(roles.get(name, ''), phase.trains)
        ]
        connectors = {
            source['connector']
            for name in active
            for source in self._mappings[name].values()
            if 'connector' in source
        }
        for kind, used in (
            (self.distiller.connectors, connectors),
            (self.distiller.distill_losses, active),
        ):
            for name, module in kind.items():
                held += [] if name in used else module.parameters()
        return held

    def student_roles(self) -> dict[str, str]:
        """Roles of the student's parameters; of several, all of them."""
        roles = {}
        for name, module in self.student.named_modules():
            if isinstance(module, MambaStudent):
                roles.update(Student(self.student, name).roles())
        return roles

    def _check_losses(self) -> None:
        """Complains where nothing is distilled, or less than is written."""
        losses = set(self.distiller.distill_losses)
        idle = losses - set(self._mappings)
        nameless = [name for name in losses if 'loss' not in name]
        if not losses:
            problem = 'the distiller has no loss: give it methods=[...]'
        elif idle:
            problem = (
                f'loss_forward_mappings do not say what {sorted(idle)} of '
                f'distill_losses read'
            )
        elif nameless:
            problem = (
                f'MMEngine trains on what has "loss" in its name: rename '
                f'{sorted(nameless)} of distill_losses'
            )
        else:
            return
        raise ValueError(problem)

    def _check_phases(self) -> None:
        for phase in self.schedule.phases:
            if phase.trains == 'all':
                continue
            roles = self.student_roles().values()
            asked = phase.trains
            for each in [asked] if isinstance(asked, str) else asked:
                if any(in_group(role, each) for role in roles):
                    continue
                kinds = {split_role(role)[1].split('.')[0] for role in roles}
                raise ValueError(
                    f'a phase trains {each!r}, which is no parameter of the '
                    f"student: say 'mixers', 'all', or some of the roles "
                    f'{sorted(kinds)}'
                )
        self.schedule.check_no_gap(
            list(self._mappings), self.calculate_student_loss
        )

    def _idle_loss(self, losses: Iterable[str]) -> dict[str, Tensor]:
        """A zero that keeps idle parameters in the graph.

        Data-parallel training insists on that. A first step of nothing but
        losses that still warm up has no other loss.
        """
        names = [name for name in losses if 'loss' in name]
        student = any(name.startswith('student.') for name in names)
        everything = student and all(
            f'distill.{name}' in losses
            for name in self.distiller.distill_losses
        )
        if everything or (names and not is_distributed()):
            return {}
        parameters = [p for p in self.parameters() if p.requires_grad]
        return {'distill.loss_idle': zero_of(parameters)}

    def _forget_records(self) -> None:
        """Frees the recorded graph; a model holding it cannot be copied."""
        for manager in (
            self.distiller.student_recorders,
            self.distiller.teacher_recorders,
        ):
            for recorder in manager.recorders.values():
                recorder.reset_data_buffer()
