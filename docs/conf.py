"""Sphinx: the site of docs/*.md. Nothing is loaded from the network, neither to build nor to read it."""

from __future__ import annotations

import tomllib
from pathlib import Path

_PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "camlake"
release = _PROJECT["version"]
author = copyright = "the camlake authors"
extensions = ["myst_parser"]
exclude_patterns = ["_build"]

# A link to a heading that is not there is a warning, and `make docs` takes warnings for errors.
myst_heading_anchors = 4
nitpicky = True

html_theme = "furo"
html_title = f"camlake {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
