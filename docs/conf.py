# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Sphinx configuration: ``sphinx-build -W docs docs/_build``."""

from transmamba_mm.version import __version__

project = 'transmamba_mm'
author = 'The transmamba_mm authors'
release = __version__
extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
]
html_theme = 'sphinx_rtd_theme'
exclude_patterns = ['_build', 'results']
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'
napoleon_google_docstring = True
