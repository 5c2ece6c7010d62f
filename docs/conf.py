"""How Sphinx makes a site of the Markdown that is here: `scripts/site`. Pages are what GitHub shows.

The source directory is the whole repository, so that a link between pages, or from one to a file, is the same
here and there. Whoever reads the site fetches nothing: fonts and scripts are in it, and search works in a
directory without a server.
"""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

import eplb_cli

ROOT = Path(__file__).parents[1]

NAVIGATION = {
    "Jobs": (
        "docs/jobs/new-load",
        "docs/jobs/more-ranks",
        "docs/jobs/to-an-engine",
        "docs/jobs/ci",
        "docs/jobs/lost-map",
        "docs/jobs/lost-ranks",
        "docs/jobs/many-hosts",
    ),
    "Reference": (
        "docs/commands",
        "docs/validate",
        "docs/errors",
        "docs/formats",
        "docs/python",
        "docs/dialects",
        "docs/layouts",
        "docs/models",
    ),
    "How it works": (
        "docs/planning",
        "docs/huggingface",
        "docs/serving",
        "docs/multi-node",
        "docs/scale",
        "docs/reliability",
        "docs/performance",
        "ARCHITECTURE",
    ),
    "The project": ("CHANGELOG", "CONTRIBUTING", "docs/releasing", "SECURITY", "CODE_OF_CONDUCT"),
}
"""The headings of the sidebar, and the pages below each; a page that is not here is an error."""

project = "eplb"
author = project_copyright = "the eplb authors"
release = version = eplb_cli.__version__

extensions = ["myst_parser"]
myst_heading_anchors = 4  # `page.md#a-heading` as GitHub has it
root_doc = "README"
include_patterns = ["README.md", *(f"{page}.md" for pages in NAVIGATION.values() for page in pages)]
exclude_patterns = ["build", "eplb_cli", "tests", ".*"]
highlight_language = "text"
suppress_warnings = ["misc.highlighting_failure"]

html_theme = "furo"
html_title = f"eplb {version}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "begin.html"}
templates_path = ["templates"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}


def _pages(patterns: tuple[str, ...]) -> list[str]:
    """The pages of a heading that are there, as Sphinx names them."""
    paths = (path for pattern in patterns for path in sorted(ROOT.glob(f"{pattern}.md")))
    return [path.relative_to(ROOT).with_suffix("").as_posix() for path in paths]


def _add_navigation(_app: Sphinx, page: str, source: list[str]) -> None:
    """Give the first page the sidebar, in words that GitHub would show as they stand."""
    if page != root_doc:
        return
    for heading, patterns in NAVIGATION.items():
        listed = "\n".join(f"/{name}" for name in _pages(patterns))
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{listed}\n```\n"


def _mark_sessions(_app: Sphinx, page: nodes.document) -> None:
    """Tell commands from their output, where a block without a language begins with a prompt."""
    for block in page.findall(nodes.literal_block):
        if block.get("language") == highlight_language and block.astext().startswith("$ "):
            block["language"] = "console"


def setup(app: Sphinx) -> None:
    """What Sphinx calls when it has read this file."""
    app.connect("source-read", _add_navigation)
    app.connect("doctree-read", _mark_sessions)
