"""Registries: what is there is registered, is called what it is, and stands in the documentation."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from eplb_cli.checkpoint.layout_file import preset
from eplb_cli.checkpoint.layouts import LAYOUTS
from eplb_cli.formats.shipped import Shipped
from eplb_cli.huggingface.engines import ENGINES, engine_names
from eplb_cli.models.families import FAMILIES
from eplb_cli.models.presets import PRESETS
from eplb_cli.placements import dialects
from eplb_cli.placements.dialects.registry import NAMES, dialect_called

DOCS = Path(__file__).parents[2] / "docs"
SHARED = {"__init__", "dialect", "find", "registry", "by_rank", "inverse", "other_keys", "strangers"}
"""Modules of `dialects` that are none."""


def first_column(name: str, heading: str) -> list[str]:
    """What the first column of a table of a document has in code quotes."""
    table = (DOCS / name).read_text().partition(f"\n| {heading} |")[2].partition("\n\n")[0]
    return re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)


def test_every_dialect_is_registered():
    """A module of the package that is not in the list would never be asked."""
    modules = {path.stem for path in Path(str(dialects.__file__)).parent.glob("*.py")} - SHARED
    assert modules == {name.replace("-", "_") for name in NAMES}
    assert [dialect_called(name).name for name in NAMES] == list(NAMES)


@pytest.mark.parametrize("shipped", [LAYOUTS, ENGINES, PRESETS], ids=lambda shipped: shipped.folder.name)
def test_a_file_is_called_what_it_describes(shipped: Shipped):
    """So that a name is found without reading all files."""
    assert shipped.names
    for name in shipped.names:
        assert tomllib.loads(shipped.path(name).read_text())["name"] == name


@pytest.mark.parametrize("name", ENGINES.names)
def test_an_engine_names_tensors_of_known_families(name):
    """Its tables are families of the one list, and its layout is one of ours."""
    raw = tomllib.loads(ENGINES.path(name).read_text())
    assert {key for key, value in raw.items() if isinstance(value, dict)} <= FAMILIES.keys()
    assert preset(raw["layout"]).name == raw["layout"]


def test_the_tables_of_the_documentation():
    """A row each for dialects, layouts and engines; and all families that a config.json is read for."""
    assert first_column("dialects.md", "dialect") == list(NAMES)
    assert sorted(first_column("layouts.md", "name")) == LAYOUTS.names
    assert sorted(first_column("huggingface.md", "`--engine`")) == engine_names()
    said = (DOCS / "dialects.md").read_text().partition("## Models")[2].partition("## ")[0]
    assert FAMILIES.keys() <= set(re.findall(r"`([a-z0-9_]+)`", said))
