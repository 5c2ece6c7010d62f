"""docs/python.md is what its docstrings say."""

from __future__ import annotations

from pathlib import Path

import pytest

import eplb_cli

pytest.importorskip("griffe2md", reason="of the tools of development, which `scripts/versions` does without")
from scripts.python_page import SECTIONS, page

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_up_to_date():
    """`./scripts/docs` writes it anew."""
    assert (DOCS / "python.md").read_text() == page()


def test_the_page_has_every_name():
    """Each of them once."""
    assert sorted(name for names in SECTIONS.values() for name in names) == eplb_cli.__all__
