# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from .digits import Digits
from .fraction import fraction_dataset

__all__ = ['Digits', 'fraction_dataset']
