# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Where the tests of transfer find what others use as well."""

import sys
from pathlib import Path

# For `teacher_cases`.
sys.path.append(str(Path(__file__).resolve().parents[1] / 'test_contract'))
