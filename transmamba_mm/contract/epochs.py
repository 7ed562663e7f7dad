# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Data that are others in each epoch."""

from abc import ABC, abstractmethod


class EpochDependent(ABC):
    """A dataset that has to be told the epoch before it gives a sample."""

    @abstractmethod
    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, counted from 0."""
