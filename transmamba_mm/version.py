# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The one place that holds the package version."""

__version__ = '0.1.0'
