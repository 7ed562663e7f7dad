# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""CPU kernels in C++, built ahead by ``setup.py`` or once on first use."""
