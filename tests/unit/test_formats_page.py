"""docs/formats.md is what the schemas say."""

from __future__ import annotations

from pathlib import Path

from scripts.formats_page import KINDS, SCHEMAS, page

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_up_to_date():
    """`./scripts/docs` writes it anew."""
    assert (DOCS / "formats.md").read_text() == page()


def test_the_page_has_every_schema():
    """Each of them once."""
    assert {path.name for path in SCHEMAS.iterdir()} == {f"eplb-{kind}-1.json" for kind in KINDS}
