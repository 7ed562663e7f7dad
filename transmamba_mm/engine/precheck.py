# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What can be known to go wrong is reported before the first iteration."""

import copy
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from mmengine.dataset import BaseDataset
from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import (
    BaseLoop,
    EpochBasedTrainLoop,
    Runner,
    ValLoop,
    autocast,
)
from mmpretrain.evaluation import Accuracy, SingleLabelMetric
from mmpretrain.models import (
    ClsDataPreprocessor,
    ClsHead,
    CrossEntropyLoss,
    ImageClassifier,
)
from mmpretrain.structures import DataSample
from torch import nn

from transmamba_mm.checkpoints.files import lookup, read_checkpoint
from transmamba_mm.checks import is_int, is_sequence
from transmamba_mm.contract.answers import IGNORED
from transmamba_mm.contract.sites import LOGITS
from transmamba_mm.datasets.inspect import (
    check_classes,
    check_videos,
    classes_of,
    describe_difference,
    labels_of,
    layers_of,
    parts_of,
)
from transmamba_mm.datasets.partly_labelled import PartlyLabelledDataset
from transmamba_mm.distill import TransMambaDistill
from transmamba_mm.distill.hooks import unwrapped
from transmamba_mm.distill.untouched import untouched
from transmamba_mm.evaluation import VideoTextRetrievalMetric
from transmamba_mm.registry import DATASETS, HOOKS

from .captions import check_tokens

# Constructors whose options are known, and their options.
_CONSTRUCTORS = (
    'DefaultOptimWrapperConstructor',
    'LearningRateDecayOptimWrapperConstructor',
    'MergedGroupsOptimWrapperConstructor',
)
_PARAMWISE = (
    'bias_decay_mult',
    'bias_lr_mult',
    'bypass_duplicate',
    'custom_keys',
    'dcn_offset_lr_mult',
    'dwconv_decay_mult',
    'flat_decay_mult',
    'layer_decay_rate',
    'norm_decay_mult',
    'role_decay_mult',
)
_METRICS = (Accuracy, SingleLabelMetric, VideoTextRetrievalMetric)
_MULTIPLES = ('decay_mult', 'lr_mult')
# What turns everything around, or to nothing, from 0 down.
_POSITIVE = (
    'data_preprocessor.std',
    'optim_wrapper.clip_grad.clip_value',
    'optim_wrapper.clip_grad.max_norm',
)
# Recipes that many models share name these, whether a model has them or not.
_SHARED_KEYS = (
    'absolute_pos_embed',
    'bias',
    'cls_token',
    'norm',
    'pos_embed',
    'relative_position_bias_table',
)


class PreCheckError(ValueError):
    """A run that would learn nothing, or something else."""


@HOOKS.register_module()
class PreCheckHook(Hook):
    """Checks what no step would show, before the first of them.

    It compares the classes of the datasets with each other and with those of
    a teacher whose scores count, labels with the head (those of a dataset
    that does not list them as they come, batch by batch), and the keys of
    ``paramwise_cfg`` with the parameters; videos have to be there, and made
    alike, and captions fit the text towers. And it takes the first batch
    through the evaluation, which would come after an epoch. It changes
    nothing.

    Raises:
        PreCheckError: Naming the setting.
    """

    priority = 'LOW'

    def before_train(self, runner: Runner) -> None:
        """Checks everything."""
        model = unwrapped(runner.model)
        _check_length(runner)
        _check_signs(runner.cfg)
        datasets = _datasets(runner)
        try:
            check_classes(datasets)
            check_videos(datasets)
            check_tokens(datasets, model)
        except ValueError as error:
            raise PreCheckError(str(error)) from error
        for name, dataset in datasets.items():
            labels = labels_of(dataset)
            _check_labels(name, dataset, labels, runner.cfg.get('model'))
        _check_unlabelled(datasets['train_dataloader'], model)
        if isinstance(model, TransMambaDistill):
            _check_teachers(model, datasets['train_dataloader'])
        _check_paramwise(runner.cfg.get('optim_wrapper'), model)
        if isinstance(runner.val_loop, ValLoop):
            with untouched(model):
                _evaluate_a_batch(runner)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Checks the labels of a dataset that tells none beforehand."""
        _check_batch('train_dataloader', runner.train_loop, data_batch)

    def before_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Likewise."""
        _check_batch('val_dataloader', runner.val_loop, data_batch)


def _check_length(runner: Runner) -> None:
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    name = 'max_epochs' if by_epoch else 'max_iters'
    length = getattr(runner, name)
    if length < 1:
        raise PreCheckError(f'train_cfg.{name} must be positive, got {length}')
    if runner.val_loop is not None:
        interval = runner.train_loop.val_interval
        if not is_int(interval) or interval < 1:
            raise PreCheckError(
                f'train_cfg.val_interval must be an integer from 1 on, got '
                f'{interval!r}'
            )
    if by_epoch and not runner.max_iters:
        raise PreCheckError(
            f'train_dataloader gives no batch: its dataset has '
            f'{len(runner.train_dataloader.dataset)} samples. Lower '
            f'batch_size, or set drop_last=False'
        )
    expected = runner.epoch * len(runner.train_dataloader)
    if by_epoch and runner.iter != expected:
        runner.logger.warning(
            f'the run goes on at iteration {runner.iter}, but its '
            f'{runner.epoch} epochs are {expected} iterations of this '
            f'train_dataloader: its data, their fraction, batch_size or the '
            f'number of processes are others than before (or it was saved '
            f'inside of an epoch). Learning rates by iteration, and phases '
            f'and spans of losses, go on at '
            f'{runner.iter / runner.max_iters:.0%} of the training, not '
            f'{runner.epoch / runner.max_epochs:.0%}: start anew, or resume '
            f'with the settings of before'
        )


def _check_signs(cfg: Mapping) -> None:
    for path in _POSITIVE:
        value: Any = cfg
        for key in path.split('.'):
            value = lookup(value, key) if value else None
        values = value if is_sequence(value) else [value]
        if any(isinstance(x, (int, float)) and x <= 0 for x in values):
            raise PreCheckError(f'{path} must be positive, got {value}')


# ------------------------------------------------------------------ the data


def _datasets(runner: Runner) -> dict[str, Any]:
    """All datasets of a run, that for training first."""
    found = {'train_dataloader': runner.train_dataloader.dataset}
    if runner.val_loop is not None:
        found['val_dataloader'] = runner.val_dataloader.dataset
    loaders = [
        runner.cfg.get(f'{kind}_dataloader') for kind in ('val', 'test')
    ]
    val, test = (
        loader.get('dataset') if isinstance(loader, Mapping) else None
        for loader in loaders
    )
    if isinstance(test, Mapping) and test != val:
        try:
            found['test_dataloader'] = DATASETS.build(copy.deepcopy(test))
        except OSError as error:  # of a machine that only trains
            runner.logger.warning(f'test_dataloader is not checked: {error}')
    return found


def _check_labels(
    name: str, dataset: Any, labels: Iterable[int], model: Any
) -> None:
    """Refuses labels that the head has no score for."""
    if not isinstance(model, Mapping):
        return
    path = 'model.architecture' if 'architecture' in model else 'model'
    head = (model.get('architecture') or model).get('head') or {}
    classes = head.get('num_classes') if isinstance(head, Mapping) else None
    if not isinstance(classes, int):
        return
    wrong = [x for x in labels if not 0 <= x < classes]
    if wrong:
        raise PreCheckError(
            f'{name} has the label {max(wrong)} '
            f'({type(dataset).__name__}), but {path}.head has '
            f'num_classes={classes}, labels 0 to {classes - 1}: set '
            f'num_classes to that of the data'
        )


def _is_partly_labelled(dataset: Any) -> bool:
    return any(
        isinstance(x, PartlyLabelledDataset) for x in layers_of(dataset)
    )


def _check_unlabelled(dataset: Any, model: nn.Module) -> None:
    """Refuses losses that images without a label have no place in."""
    if not _is_partly_labelled(dataset):
        return
    if isinstance(model, TransMambaDistill):
        model = model.student
    head = model.head if isinstance(model, ImageClassifier) else None
    loss = head.loss_module if isinstance(head, ClsHead) else None
    plain = isinstance(loss, CrossEntropyLoss)
    if not plain or loss.use_soft or loss.use_sigmoid:
        raise PreCheckError(
            f'train_dataloader has images without a label, which '
            f'{type(head).__name__} with {type(loss).__name__} cannot leave '
            f"out: set the head's loss=dict(type='CrossEntropyLoss')"
        )
    given = model.data_preprocessor
    if isinstance(given, ClsDataPreprocessor) and given.batch_augments:
        raise PreCheckError(
            'train_dataloader has images without a label, which mixup and '
            'cutmix cannot mix: leave batch_augments out of train_cfg of the '
            'student'
        )


def _check_batch(name: str, loop: BaseLoop, batch: Any) -> None:
    dataset = loop.dataloader.dataset
    if all(isinstance(part, BaseDataset) for part in parts_of(dataset)):
        return  # all labels were checked before
    samples = lookup(batch, 'data_samples')
    labels = [
        sample.gt_label
        for sample in (samples if is_sequence(samples) else ())
        if isinstance(sample, DataSample) and 'gt_label' in sample
    ]
    labels = torch.cat(labels).tolist() if labels else ()
    if _is_partly_labelled(dataset):
        labels = [label for label in labels if label != IGNORED]
    _check_labels(name, dataset, labels, loop.runner.cfg.get('model'))


def _check_teachers(model: TransMambaDistill, dataset: Any) -> None:
    """Refuses a teacher whose scores are of the same classes in disorder."""
    recorders = model.distiller.teacher_recorders.recorders.values()
    scores = any(
        recorder.source == LOGITS or 'head' in str(recorder.source)
        for recorder in recorders
    )
    paths, wanted = model.teacher_ckpt, classes_of(dataset)
    if not scores or not wanted:
        return
    for path in paths.values() if isinstance(paths, Mapping) else [paths]:
        content = read_checkpoint(path) if path else {}
        meta = lookup(lookup(content, 'meta') or {}, 'dataset_meta') or {}
        found = tuple(lookup(meta, 'classes') or ())
        # Other vocabularies, as of WordNet, cannot be compared.
        if set(found) & set(wanted):
            difference = describe_difference(wanted, found)
            if difference:
                raise PreCheckError(
                    f"the teacher of '{path}' scores other classes than "
                    f'those of train_dataloader. {difference}'
                )


# ------------------------------------------------------------- the optimizer


def _check_paramwise(wrapper: Any, model: nn.Module) -> None:
    """Refuses options of ``paramwise_cfg`` that would have no effect."""
    options = wrapper.get('paramwise_cfg') if wrapper else None
    kind = wrapper.get('constructor', _CONSTRUCTORS[0]) if wrapper else ''
    kind = kind if isinstance(kind, str) else kind.__name__
    if not options or kind.rpartition('.')[2] not in _CONSTRUCTORS:
        return
    where = 'optim_wrapper.paramwise_cfg'
    _check_known(where, options, _PARAMWISE)
    # MMEngine writes a dot in front of the model's own parameters.
    names = [
        name if '.' in name else f'.{name}'
        for name, _ in model.named_parameters()
    ]
    parts = {part for name in names for part in name.split('.')}
    for key, multiples in (options.get('custom_keys') or {}).items():
        _check_known(f'{where}.custom_keys[{key!r}]', multiples, _MULTIPLES)
        shared = key.rpartition('.')[2] in _SHARED_KEYS
        if not shared and not any(key in name for name in names):
            near = difflib.get_close_matches(key.split('.')[-1], parts, 1)
            hint = f' (did you mean {near[0]!r}?)' if near else ''
            raise PreCheckError(
                f'{where}.custom_keys has {key!r}, which is in the name of no '
                f'parameter{hint}, such as {names[-1]}'
            )


def _check_known(where: str, options: Any, known: tuple[str, ...]) -> None:
    for key in options or ():
        if key not in known:
            raise PreCheckError(
                f'{where} has {key!r}, which does nothing: it knows '
                f'{", ".join(known)}'
            )


# ------------------------------------------------------------ the evaluation


@torch.no_grad()
def _evaluate_a_batch(runner: Runner) -> None:
    """Does what an evaluation does, so that it does not fail an epoch later.

    Raises:
        PreCheckError: If ``save_best`` is no result of the evaluation.
    """
    loop, model = runner.val_loop, runner.model
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        batch = next(iter(loop.dataloader))
        with autocast(enabled=loop.fp16):
            outputs = model.val_step(batch)
    finally:
        for module, mode in modes.items():
            module.training = mode
    evaluator = loop.evaluator
    # Others may need more than a batch.
    if not all(isinstance(x, _METRICS) for x in evaluator.metrics):
        return
    evaluator.process(data_samples=outputs, data_batch=batch)
    found = evaluator.evaluate(len(outputs) * get_world_size())
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.save_best:
            for name in set(hook.key_indicators) - {'auto', *found}:
                raise PreCheckError(
                    f'default_hooks.checkpoint.save_best is {name!r}, but '
                    f'val_evaluator gives {", ".join(found)}'
                )
