"""Sphinx: `make docs` builds the site into build/docs/html; warnings are errors."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import gallery  # noqa: E402
import reference  # noqa: E402

import cnn  # noqa: E402

project = "cnn"
author = "the cnn developers"
copyright = author
release = version = cnn.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
]
nitpicky = True
nitpick_ignore_regex = [("py:obj", r"\w+")]  # a class's own attributes in its table of them
intersphinx_mapping = {}  # nothing is fetched

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # the docstrings say shapes and dtypes too
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = ">>> "

default_role = "code"  # of single backticks in docstrings

html_theme = "furo"
html_title = f"cnn {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False

reference.write(ROOT / "docs" / "api")
gallery.write(ROOT)
