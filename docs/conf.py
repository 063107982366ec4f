"""The site: `make docs` builds it into docs/_build/html."""

import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

from typing import Any  # noqa: E402

from reference import write_pages  # noqa: E402

import pirl_plugin  # noqa: E402

write_pages(DOCS / "_generated")

project = "pirl_plugin"
author = "the authors of pirl_plugin"
copyright = "2026, the authors of pirl_plugin"
release = version = pirl_plugin.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "_generated"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
default_role = "literal"  # docstrings write `names` as Markdown does

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True


def keep_bars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """|D| is a size in docstrings, and a substitution in reStructuredText."""
    lines[:] = [re.sub(r"\|(\w)\|", r"\\|\1\\|", line) for line in lines]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", keep_bars)


html_theme = "furo"
html_title = "pirl_plugin"
html_static_path = ["_static"]
html_css_files = ["pictures.css"]
