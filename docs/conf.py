"""How Sphinx builds the documentation: `make docs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's ssot, whichever is installed

import ssot

project = "ssot"
author = "The ssot developers"
version = release = ssot.__version__
html_title = f"ssot {release}"
html_theme = "furo"
exclude_patterns = ["_build"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

default_role = "py:obj"  # `name` in a docstring is a link where the name is documented
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"  # the docstrings say what types mean
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_param = False  # one entry for parameters that are described together
napoleon_use_rtype = False

# Every name of this package that a docstring links must be documented. Words of the types there
# ("array", "optional") and names of other libraries are no links.
nitpick_ignore_regex = [("py:.*", r"(?!ssot\b).*")]


def keep_first_line(_app, what, *rest):
    """Keep Napoleon from reading a property's "what it is: what that means" as "type: text"."""
    if what == "property":
        lines = rest[-1]
        lines[:0] = ["..", ""]  # a comment


def setup(app):
    app.connect("autodoc-process-docstring", keep_first_line, priority=400)  # before Napoleon
