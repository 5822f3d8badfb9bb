# SPDX-License-Identifier: Apache-2.0
"""Sphinx settings: ``python -m sphinx -W -b html docs docs/_build``."""

from __future__ import annotations

import re

import monai_ssl

project = "monai_ssl"
author = "The monai_ssl developers"
project_copyright = author
release = version = monai_ssl.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
html_theme = "furo"
html_title = f"monai_ssl {release}"
exclude_patterns = ["_build"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_member_order = "groupwise"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
add_module_names = False

# Docstrings write shapes as (B, C, *spatial), where reStructuredText sees the start of an emphasis.
_LITERAL_OR_SHAPE = re.compile(r"(``.+?``)|(?<=, )\*(?=\w+[),\]])")


def escape_shapes(app, what, name, obj, options, lines):
    """Escape the asterisks of shapes, outside of literals."""
    lines[:] = [_LITERAL_OR_SHAPE.sub(lambda found: found[1] or r"\*", line) for line in lines]


def setup(app):
    """Connect to Sphinx."""
    app.connect("autodoc-process-docstring", escape_shapes)
