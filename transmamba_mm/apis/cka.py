# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""How alike the layers of a student and its teacher are: linear CKA.

Kornblith et al., ICML 2019 (arXiv 1905.00414), estimated over minibatches
without bias, so that the size of a batch does not matter: Nguyen et al., ICLR
2021 (arXiv 2010.15327), with HSIC_1 of Song et al., JMLR 2012.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Optional

import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner, load_checkpoint
from mmpretrain.apis import get_model
from torch import Tensor
from torch.utils.data import DataLoader

from transmamba_mm.checkpoints import CheckpointError, read_state_dict
from transmamba_mm.checks import check_int
from transmamba_mm.contract.sites import (
    LAYERS,
    MIXER_INPUTS,
    MIXERS,
    STREAMS,
)
from transmamba_mm.distill import (
    StudentSiteRecorder,
    TeacherSiteRecorder,
    TransMambaDistill,
)
from transmamba_mm.distill.recorders import SiteRecorder

#: What is compared of each layer.
CKA_SITES = (LAYERS, STREAMS, MIXERS, MIXER_INPUTS)
#: The mean patch token of an image, or all of them as one vector.
CKA_TOKENS = ('mean', 'all')
_FEWEST = 4  # images of a batch, by the estimator's denominator


class CKA:
    """Linear CKA of two lists of representations, batch after batch."""

    def __init__(self) -> None:
        self._across: Tensor = torch.zeros(())
        self._rows: Tensor = torch.zeros(())
        self._columns: Tensor = torch.zeros(())

    def update(
        self, rows: Sequence[Tensor], columns: Sequence[Tensor]
    ) -> None:
        """Takes one batch of n images.

        Args:
            rows (Sequence[Tensor]): R representations (n, features), each of
                any width.
            columns (Sequence[Tensor]): C others of the same images.

        Raises:
            ValueError: If there are fewer than four images.
        """
        one, other = _centred_grams(rows), _centred_grams(columns)
        self._across = self._across + one @ other.mT
        self._rows = self._rows + one.square().sum(1)
        self._columns = self._columns + other.square().sum(1)

    def result(self) -> Tensor:
        """CKA (R, C), at most 1; for unrelated ones about 0, or below."""
        scale = self._rows.unsqueeze(1) * self._columns
        return self._across / scale.sqrt()


def _centred_grams(features: Sequence[Tensor]) -> Tensor:
    """Gram matrices (F, n n), scaled so that HSIC_1 is an inner product."""
    n = len(features[0])
    if n < _FEWEST:
        raise ValueError(
            f'CKA without bias needs batches of {_FEWEST} images or more, '
            f'got {n}'
        )
    # In float64, as centring subtracts large numbers.
    flat = [each.detach().flatten(1).double() for each in features]
    grams = torch.stack([each @ each.mT for each in flat])
    grams.diagonal(dim1=1, dim2=2).zero_()
    sums = grams.sum(2)
    total = sums.sum(1)[:, None, None] / ((n - 1) * (n - 2))
    grams += total - (sums.unsqueeze(1) + sums.unsqueeze(2)) / (n - 2)
    grams.diagonal(dim1=1, dim2=2).zero_()
    return grams.flatten(1) / (n * (n - 3)) ** 0.5


@dataclass(frozen=True)
class LayerSimilarity:
    """CKA of all layers of a student with all layers of its teacher.

    Attributes:
        cka (list[list[float]]): A row for each student layer.
        site (str): What was compared of each layer.
        tokens (str): ``'mean'`` or ``'all'``.
        num_images (int): Images that were looked at.
        batch_size (int): Images of a batch.
    """

    cka: list[list[float]]
    site: str
    tokens: str
    num_images: int
    batch_size: int

    def draw(self) -> Figure:
        """Draws the matrix, first layers at the lower left."""
        figure = Figure(figsize=(5, 4.2), layout='constrained')
        axes = figure.subplots()
        image = axes.imshow(
            self.cka, origin='lower', vmin=0, vmax=1, cmap='magma'
        )
        axes.set(xlabel='teacher layer', ylabel='student layer')
        figure.colorbar(image, label=f'linear CKA of {self.site}')
        return figure


@torch.no_grad()
def compare_layers(
    cfg: Config,
    checkpoint: str,
    num_images: int = 1024,
    batch_size: int = 64,
    site: str = LAYERS,
    tokens: str = 'mean',
    device: Optional[str] = None,
) -> LayerSimilarity:
    """Compares all layers of a distillation's student and teacher.

    Images of the test set are drawn with seed 0; the teacher sees them in its
    own normalisation and size. Class tokens are left out, and widths and
    grids may differ.

    Args:
        cfg (Config): Config of a distillation.
        checkpoint (str): Of such a run, or of its student alone.
        num_images (int): Most images. Defaults to 1024.
        batch_size (int): Images of a batch, at least 4. Defaults to 64.
        site (str): One of :data:`CKA_SITES`. Defaults to ``'layers'``, the
            residual stream after each layer.
        tokens (str): One of :data:`CKA_TOKENS`: the mean patch token of each
            image, or all patch tokens of it as one vector. Defaults to
            ``'mean'``.
        device (str, optional): Defaults to None, the best there is.

    Returns:
        LayerSimilarity: The matrix.

    Raises:
        ValueError: If the config is of no distillation or of several
            teachers, or there are too few images.
        CheckpointError: If the checkpoint does not fit.
    """
    for name, value, known in (
        ('site', site, CKA_SITES),
        ('tokens', tokens, CKA_TOKENS),
    ):
        if value not in known:
            raise ValueError(
                f'{name} must be one of {", ".join(known)}, got {value!r}'
            )
    check_int('batch_size', batch_size, _FEWEST)
    check_int('num_images', num_images, batch_size)
    if 'test_dataloader' not in cfg:
        raise ValueError('the config has no test_dataloader to take images of')
    model = _load(cfg, checkpoint, device or get_device())
    recorders = StudentSiteRecorder(site), TeacherSiteRecorder(site)
    for recorder, side in zip(recorders, (model.student, model.teacher)):
        recorder.initialize(side)
    ours, theirs = recorders
    cka, seen = CKA(), 0
    for batch in _loader(cfg, batch_size):
        images = model.data_preprocessor(batch, False)['inputs']
        with ours, theirs:
            model.student(images, mode='tensor')
            model.teacher(model.branch.inputs[''](images), mode='tensor')
        cka.update(*(_features(each, tokens) for each in recorders))
        seen += len(images)
        if seen + batch_size > num_images:
            break
    if not seen:
        raise ValueError(
            f'the test set has fewer than {batch_size} images: choose a '
            f'smaller batch'
        )
    matrix = cka.result().cpu().tolist()
    return LayerSimilarity(matrix, site, tokens, seen, batch_size)


def _load(cfg: Config, checkpoint: str, device: str) -> TransMambaDistill:
    """The distillation, with all weights."""
    model = get_model(cfg, device=device)
    if not isinstance(model, TransMambaDistill):
        raise ValueError(
            'CKA compares a student with its teacher: give the config of a '
            'distillation (model.type=transmamba.TransMambaDistill)'
        )
    if len(model.branch.teachers) > 1:
        raise ValueError(
            f'CKA compares with one teacher, and the config has '
            f'{", ".join(model.branch.teachers)}'
        )
    state = read_state_dict(checkpoint)
    if not any(key.startswith('teacher.') for key in state):
        model.load_teacher()
    try:
        load_checkpoint(model, checkpoint, 'cpu', strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"'{checkpoint}' is of another model. {error}"
        ) from error
    return model


def _loader(cfg: Config, batch_size: int) -> DataLoader:
    """Batches of the test set, in an order that is always the same."""
    loader = deepcopy(cfg.test_dataloader)
    loader.update(
        batch_size=batch_size,
        sampler=dict(type='DefaultSampler', shuffle=True, seed=0),
        drop_last=True,
    )
    loader.setdefault('collate_fn', dict(type='default_collate'))
    return Runner.build_dataloader(loader, seed=0)


def _features(recorder: SiteRecorder, tokens: str) -> list[Tensor]:
    """Of each layer's tokens (B, L, C), (B, C) or (B, L C)."""
    records = recorder.get_record_data()
    recorder.reset_data_buffer()
    if tokens == 'mean':
        return [record.tokens.mean(1) for record in records]
    return [record.tokens.flatten(1) for record in records]
