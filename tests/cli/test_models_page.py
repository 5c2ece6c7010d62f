"""docs/models.md is what the commands do with each published model."""

from __future__ import annotations

from pathlib import Path

from scripts.models_page import page

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_up_to_date():
    """`./scripts/docs` writes it anew."""
    assert (DOCS / "models.md").read_text() == page()
