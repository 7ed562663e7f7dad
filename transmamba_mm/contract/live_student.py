# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A live student inside a whole model: its head, its lift and its sites."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Optional

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from transmamba_mm.ops import linear

from .answers import IGNORED
from .embedding_head import embedding_head
from .linear import is_linear
from .records import TokenRecord
from .scoring import LACKS, scores_of, scoring_part
from .sequences import flat_logits, valid_of
from .sites import (
    BC,
    IMAGES,
    LABELS,
    LIFTED,
    LOGITS,
    MIXER_INPUTS,
    MIXERS,
    SCORES,
    STREAMS,
    STUDENT_SITES,
    TOKENS,
    Captured,
    check_site,
)
from .student import GridStudent, MambaStudent


class Student:
    """A live student inside a model, as methods may see it.

    Args:
        model (nn.Module): The model.
        backbone (str, optional): Name of the student's module, for models
            that hold several. Defaults to None, the only one.

    Attributes:
        backbone (MambaStudent): The student.

    Raises:
        TypeError: If the model holds none, or several.
    """

    def __init__(
        self, model: nn.Module, backbone: Optional[str] = None
    ) -> None:
        self._model = model
        self._prefix, self.backbone = _find(model, backbone)

    def roles(self) -> dict[str, str]:
        """Roles by parameter name: the backbone's, the lift's, the head's.

        The head is the one Linear of ``head`` beside the backbone, if it
        reads the pooled tokens, maybe lifted, and nothing else there has
        parameters.
        """
        roles = {
            self._prefix + name: role
            for name, role in self.backbone.param_roles().items()
        }
        for role, found in (('lift', self.lift), ('head', self._linear_head)):
            if found is not None:
                roles[f'{found[0]}.weight'] = f'{role}.weight'
                roles[f'{found[0]}.bias'] = f'{role}.bias'
        return roles

    def why_no_role(self, name: str) -> str:
        """Why the model's parameter of this name plays no role."""
        own = dict(self._model.named_parameters())[name]
        embeds = embedding_head(self._model)
        if embeds is not None and any(own is x for x in embeds.parameters()):
            return 'of an embedding head, which is no classifier'
        return 'no role in the transfer'

    @property
    def lift(self) -> Optional[tuple[str, nn.Linear]]:
        """Name and module of a neck that is one linear map and no more.

        A narrower student widens its features to the teacher's width by it,
        so that its head may be the teacher's. mmpretrain's ``LinearNeck``
        without norm is one.
        """
        leaves = [
            (name, module)
            for name, module in self._part('neck').items()
            if not list(module.children())
            and not isinstance(module, nn.Identity)
        ]
        if len(leaves) == 1 and isinstance(leaves[0][1], nn.Linear):
            return leaves[0]
        return None

    @property
    def num_classes(self) -> int:
        """int: Classes that the head scores.

        Raises:
            ValueError: If the head ends with no linear map.
        """
        if self._classifier is None:
            raise ValueError(
                f'the head of {type(self._model).__name__} has no linear '
                f'layer that tells how many classes there are: a method that '
                f'scores classes is for classifiers'
            )
        return self._classifier[1].out_features

    @property
    def _classifier(self) -> Optional[tuple[str, nn.Linear]]:
        """Name and module of the last linear map of a classifier's head."""
        if embedding_head(self._model) is not None:
            return None
        linears = [
            (name, module)
            for name, module in self._part('head').items()
            if isinstance(module, nn.Linear)
        ]
        return linears[-1] if linears else None

    @property
    def _linear_head(self) -> Optional[tuple[str, nn.Linear]]:
        """Name and module of a head that is one linear map of the tokens."""
        trained = [
            (name, module)
            for part in ('neck', 'head')
            for name, module in self._part(part).items()
            if list(module.parameters(recurse=False))
        ]
        lift, width = self.lift, self.backbone.layer_dims[-1]
        if lift is not None:
            trained, width = trained[1:], lift[1].out_features
        if len(trained) != 1 or self._classifier != trained[0]:
            return None
        head = trained[0][1]
        fits = is_linear(head) and head.in_features == width
        return trained[0] if fits else None

    def _part(self, name: str) -> dict[str, nn.Module]:
        """A part of the model beside the backbone, with all inside of it."""
        whole = self._prefix.removesuffix('backbone.') + name
        return {
            key: module
            for key, module in self._model.named_modules()
            if f'{key}.'.startswith(f'{whole}.')
        }

    def modules_of(self, site: str) -> dict[str, nn.Module]:
        """The modules that must be watched to read a site.

        Args:
            site (str): One of
                :data:`~transmamba_mm.contract.sites.STUDENT_SITES`.

        Returns:
            dict[str, nn.Module]: The modules, by the names that
            :meth:`record` knows them by.

        Raises:
            ValueError: If a student has no such site.
        """
        check_site(site, STUDENT_SITES, 'student')
        if site in (IMAGES, LABELS):
            return {site: self._model}
        if site in SCORES:
            found = scoring_part(self._model, site)
            if found is not None:
                return {site: found}
            if site != LOGITS:
                raise ValueError(
                    LACKS[site].format(type(self._model).__name__)
                )
            head = list(self._part('head').values())
            if not head:
                raise ValueError(
                    f"{type(self._model).__name__} has no 'head' beside its "
                    f'backbone that gives logits'
                )
            watched = {LOGITS: head[0]}
            if not isinstance(self.backbone, GridStudent):
                watched['0'] = self.backbone.blocks()[0]  # sees the padding
            return watched
        if site == LIFTED and self.lift is None:
            raise ValueError(
                "the student has no lift: give it neck=dict(type='LinearNeck'"
                ", in_channels=..., out_channels=the teacher's width, "
                'norm_cfg=None)'
            )
        blocks, mixers = self.backbone.blocks(), self.backbone.mixers()
        if site in (TOKENS, LIFTED):
            return {'0': blocks[-1]}
        watched = mixers if site in (MIXERS, MIXER_INPUTS) else blocks
        if site == BC:
            watched = [mixer.taps.bc for mixer in mixers]
        return {str(i): module for i, module in enumerate(watched)}

    def look(self, site: str, images: Tensor) -> Any:
        """Runs the backbone alone, and makes a site's record of that.

        Args:
            site (str): A site inside of the backbone.
            images (Tensor): What the backbone reads.

        Returns:
            list[TokenRecord]: See :meth:`record`.
        """
        seen: dict[str, Captured] = {}
        handles = [
            module.register_forward_hook(
                lambda _, inputs, output, name=name: seen.update(
                    {name: Captured(inputs, output)}
                )
            )
            for name, module in self.modules_of(site).items()
        ]
        try:
            self.backbone(images)
        finally:
            for handle in handles:
                handle.remove()
        if len(seen) < len(handles):
            raise RuntimeError(
                f'{site!r} cannot be read: hooks were not called. Of a '
                f'compiled backbone set torch._dynamo.config.'
                f'skip_nnmodule_hook_guards = False before it runs'
            )
        return self.record(site, seen)

    def record(self, site: str, seen: Mapping[str, Captured]) -> Any:
        """Makes a site's record of what was seen.

        Args:
            site (str): The site.
            seen (Mapping[str, Captured]): Inputs and output of each of
                :meth:`modules_of`.

        Returns:
            Tensor | Embeddings | Answers | list[TokenRecord]: Images, labels,
            logits, embeddings or answers, or a record for each layer; one
            for ``'tokens'`` and ``'lifted'``.

        Raises:
            ValueError: If labels are read that the images do not have.
        """
        if site in SCORES:
            found = scores_of(site, seen[site].output)
            if '0' in seen:
                found = flat_logits(found, valid_of(seen['0'].inputs))
            return found
        if site in (IMAGES, LABELS):
            images, *samples = seen[site].inputs
            return images if site == IMAGES else _labels(*samples)
        records = []
        for place, (inputs, output, _) in seen.items():
            layer, grid = int(place), tuple(inputs[1])
            if site in (TOKENS, LIFTED):
                layer = self.backbone.num_layers - 1
                output = self.backbone.normalise(output)
            if site == LIFTED:
                _, lift = self.lift
                output = linear(output, lift.weight, lift.bias)
            reads = site in (STREAMS, MIXER_INPUTS)
            tokens = inputs[0] if reads else output
            classes, patches = self.backbone.split(tokens, grid)
            record = TokenRecord(layer, patches, grid, classes)
            records.append(record.without_padding(valid_of(inputs)))
        return records

    def normalise(self, record: TokenRecord) -> TokenRecord:
        """The residual stream after the last layer, by the final norm."""
        tokens, classes = map(
            self.backbone.normalise, (record.tokens, record.classes)
        )
        return replace(record, tokens=tokens, classes=classes)


def _labels(samples: Optional[Sequence[BaseDataElement]] = None) -> Tensor:
    """What mmpretrain's heads learn: classes (B,), or scores (B, K)."""
    samples = samples or ()
    if samples and all('gt_score' in sample for sample in samples):
        return torch.stack([sample.gt_score for sample in samples])
    labels = [sample.get('gt_label') for sample in samples]
    lacking = any(
        x is None or x.numel() != 1 or (x == IGNORED).any() for x in labels
    )
    if not labels or lacking:
        raise ValueError(
            'a method reads the labels, and not every image of the batch has '
            'one: leave that method out for unlabelled images'
        )
    return torch.cat(labels)


def _find(model: nn.Module, name: Optional[str]) -> tuple[str, MambaStudent]:
    """Prefix of a model's student, and the student."""
    found = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, MambaStudent)
    }
    kind = type(model).__name__
    if name is not None and name not in found:
        raise TypeError(
            f'{kind} has no transmamba_mm backbone called {name!r}; its '
            f'backbones are {list(found) or "none"}'
        )
    if name is None and len(found) > 1:
        raise TypeError(
            f'expected one transmamba_mm backbone inside {kind}, found '
            f'{len(found)}: say by name which is meant (student_backbone, or '
            f'backbone of a recorder), one of {list(found)}'
        )
    if not found:
        raise TypeError(
            f'expected one transmamba_mm backbone inside {kind}, found 0; a '
            f'student must use a backbone derived from '
            f'transmamba_mm.models.MambaBackbone'
        )
    name = next(iter(found)) if name is None else name
    return f'{name}.' if name else '', found[name]


def find_student(model: nn.Module, name: Optional[str] = None) -> MambaStudent:
    """Finds the student backbone inside a model.

    Args:
        model (nn.Module): The model.
        name (str, optional): Name of the backbone's module, for models that
            hold several. Defaults to None, the only one.

    Returns:
        MambaStudent: The backbone.

    Raises:
        TypeError: If the model holds none, several, or none of that name.
    """
    return _find(model, name)[1]
