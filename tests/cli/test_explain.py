"""`eplb explain`: every code, what causes it, and that it really does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eplb_cli.errors import CODES, HINTS, PlacementError
from eplb_cli.render.explanation import explanation_text
from eplb_cli.report.explanation import explanations
from scripts.errors_page import page
from tests.cli.case import assert_error

ALL = explanations()
RUN = [code for code, found in ALL.items() if found.run]
WITHOUT_COMMAND = {"EP115"}
"""Of EP1xx: it is about live tensors."""

EP106 = """\
EP106: an expert of NEW has no source in OLD

NEW wants an expert in a layer in which no slot of OLD holds it, so there is
nothing to copy it from. Often OLD is the placement of another checkpoint, or
experts were numbered in another way.

Example: Expert 3 is in NEW alone:

  old.json:
    {"format": "eplb-placement/1", "num_ranks": 2, "num_logical_experts": 4,
     "physical_to_logical_map": [[0, 1, 2, 0]]}

  new.json:
    {"format": "eplb-placement/1", "num_ranks": 2, "num_logical_experts": 4,
     "physical_to_logical_map": [[0, 1, 2, 3]]}

  $ eplb validate new.json --against old.json

What to do: was OLD written for another checkpoint? `eplb inspect SRC` shows
what the shards hold

Exit code: 3, and 1 where `validate` finds it in what it checks
"""


def test_a_code(eplb):
    """All of it, at 80 columns; letters may be small."""
    result = eplb("explain", "EP106")
    assert (result.code, result.err, result.out) == (0, "", EP106)
    assert eplb("explain", "ep106").out == EP106


def test_every_code(eplb):
    """None is missing, none is too many, and no line is wider than 80 columns."""
    assert list(ALL) == list(CODES)
    for code, found in ALL.items():
        assert (found.title, found.remedy) == (CODES[code], HINTS[code])
        assert found.means.endswith("."), code
        assert bool(found.run) == found.example.endswith((":", "?")), code
        assert max(map(len, explanation_text(found).splitlines())) <= 80, code
    assert eplb("explain").out.splitlines() == [f"{code}  {title}" for code, title in CODES.items()]


def test_for_programs(eplb):
    """One object, of a code or of all."""
    (first, *rest) = eplb("explain", "--format", "json").json["codes"]
    assert len(rest) + 1 == len(CODES)
    assert eplb("explain", "EP001", "--format", "json").json == first
    assert first["example"]["files"] == {}


def test_no_such_code(eplb):
    """EP001, with the way to all of them."""
    assert_error(eplb("explain", "EP999"), "EP001", "'EP999' is no code", "eplb explain", exit_code=2)


def test_every_example_of_a_placement_has_a_command():
    """Whoever adds a code to EP1xx adds what causes it."""
    assert {code for code in CODES if code.startswith("EP1")} - {*RUN} == WITHOUT_COMMAND


@pytest.mark.parametrize("code", RUN)
def test_an_example_causes_its_code(eplb, code, tmp_path, monkeypatch):
    """On its files the command says the code."""
    monkeypatch.chdir(tmp_path)
    for name, content in ALL[code].files.items():
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    _, *words = ALL[code].run.split()
    result = eplb(*words)
    assert code in re.findall(r"\[(EP[0-9]{3})\]", result.out + result.err)


def test_the_example_of_live_tensors():
    """Two ranks cannot become one."""
    pytest.importorskip("torch")
    import numpy as np

    from eplb_cli.live.rank_mapping import mapped

    with pytest.raises(PlacementError) as caught:
        mapped(np.array([[0, 1]]), np.array([[0, 1]]), {0: 0, 1: 0}, 2)
    assert caught.value.code == "EP115"


def test_the_page_is_up_to_date():
    """`./scripts/docs` writes it anew."""
    assert (Path(__file__).parents[2] / "docs" / "errors.md").read_text() == page()
