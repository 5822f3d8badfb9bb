# SPDX-License-Identifier: Apache-2.0
"""Sphinx settings: ``python -m sphinx -W -b html docs docs/_build``."""

from __future__ import annotations

import os
import re
from pathlib import Path

import monai_ssl

project = "monai_ssl"
author = "The monai_ssl developers"
project_copyright = author
release = version = monai_ssl.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
html_theme = "furo"
html_title = f"monai_ssl {release}"
exclude_patterns = ["_build"]
suppress_warnings = ["myst.header"]  # the model zoo's template for bundles skips heading levels

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_member_order = "groupwise"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
add_module_names = False

DOCS = Path(__file__).parent
BUNDLES = DOCS.parent / "bundles"
# Docstrings write shapes as (B, C, *spatial), where reStructuredText sees the start of an emphasis.
LITERAL_OR_SHAPE = re.compile(r"(``.+?``)|(?<=, )\*(?=\w+[),\]])")
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def escape_shapes(app, what, name, obj, options, lines):
    """Escape the asterisks of shapes, outside of literals."""
    lines[:] = [LITERAL_OR_SHAPE.sub(lambda found: found[1] or r"\*", line) for line in lines]


def read_page(app, docname, source):
    """Take a bundle's page from the bundle, and keep of links out of this folder only the text."""
    folder = (DOCS / docname).parent
    readme = BUNDLES / Path(docname).name / "docs/README.md"
    if docname.startswith("bundles/") and readme.is_file():
        source[0] = readme.read_text(encoding="utf-8")
        folder = readme.parent

    def mended(found):
        target = (folder / found[3]).resolve()
        if target.name == "README.md" and target.parent.parent.parent == BUNDLES:
            target = DOCS / "bundles" / f"{target.parent.parent.name}.md"
        if not found[1] and not (target.is_relative_to(DOCS) and target.is_file()):
            return found[2]
        path = os.path.relpath(target, (DOCS / docname).parent)
        return f"{found[1]}[{found[2]}]({path}{found[4] or ''})"

    if (DOCS / f"{docname}.md").is_file():
        source[0] = LINK.sub(mended, source[0])


def setup(app):
    """Connect to Sphinx."""
    app.connect("autodoc-process-docstring", escape_shapes)
    app.connect("source-read", read_page)
