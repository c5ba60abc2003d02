"""Sphinx settings; build with ``sphinx-build -W docs docs/_build``."""

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "adapters")]

import emp_core  # noqa: E402

project = "Effective Model Pruning"
author = "The Effective Model Pruning authors"
copyright = f"2026, {author}"
release = version = getattr(emp_core, "__version__", "")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "licenses"]

# frameworks that are not installed are stood in for; Keras wants to know what it runs on before it is imported
autodoc_mock_imports = [name for name in ("torch", "jax", "optax", "sklearn", "keras") if find_spec(name) is None]
BACKEND = next((name for name in ("torch", "jax", "tensorflow") if find_spec(name)), None)
if BACKEND is None:
    autodoc_mock_imports.append("keras")
else:
    os.environ.setdefault("KERAS_BACKEND", BACKEND)

default_role = "code"  # docstrings write names between single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
viewcode_line_numbers = True

html_theme = "furo"
html_title = project
html_copy_source = False


def absolute_values(app, what, name, obj, options, lines):
    """In docstrings |s| is an absolute value, not a substitution; literals keep their bars as they are."""
    for number, line in enumerate(lines):
        parts = re.split(r"(`+[^`]*`+)", line)
        parts[::2] = (re.sub(r"\|(\w+)\|", r"\\|\1\\|", part) for part in parts[::2])
        lines[number] = "".join(parts)


def setup(app):
    app.connect("autodoc-process-docstring", absolute_values)
