"""What `validate` prints, in each form, to the letter; and what collectors of results require of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from eplb_cli.placements.findings import Finding
from eplb_cli.render.github import MAX_SUMMARY_NBYTES, step_summary
from tests.cli.case import assert_error
from tests.cli.tree import OLD, write_json
from tests.support.schemas import SARIF, problems, xml_problems

BAD = """{"format": "eplb-placement/1", "num_ranks": 2,
 "num_logical_experts": 4, "layer_ids": [3, 4],
 "physical_to_logical_map": [[0, 0, 1, 2], [0, 1, 2, -1]]}
"""
"""Layer 3 has expert 0 twice on rank 0, and both layers lack expert 3."""

TEXT = """\
bad.json:
  error[EP110]: line 3: layer 3: expert 3 is in no slot
  error[EP110]: line 3: layer 4: expert 3 is in no slot
  warning[EP112]: line 3: layer 3, slot 1: rank 0 already holds expert 0
  error[EP124]: line 3: layer 4, slot 3 is empty, and vLLM wants an expert in each
  note[EP121]: line 3: layer 4, slot 3 is empty; 1 empty slot in 1 layer
good.json: OK
2 files checked: 3 errors, 1 warning, 1 note, 2 ignored
"""

GITHUB = """\
::error file=bad.json,line=3,col=30,title=EP110::layer 3: expert 3 is in no slot
::error file=bad.json,line=3,col=44,title=EP110::layer 4: expert 3 is in no slot
::warning file=bad.json,line=3,col=30,title=EP112::layer 3, slot 1: rank 0 already holds expert 0
::notice file=bad.json,line=3,col=44,title=EP121::layer 4, slot 3 is empty; 1 empty slot in 1 layer
"""

SUMMARY = """\
### eplb validate: 2 files checked: 2 errors, 1 warning, 1 note

| severity | code | place | finding |
|---|---|---|---|
| error | EP110 | bad.json:3 | layer 3: expert 3 is in no slot |
| error | EP110 | bad.json:3 | layer 4: expert 3 is in no slot |
| warning | EP112 | bad.json:3 | layer 3, slot 1: rank 0 already holds expert 0 |
| note | EP121 | bad.json:3 | layer 4, slot 3 is empty; 1 empty slot in 1 layer |

"""

JUNIT = """\
<?xml version="1.0" encoding="UTF-8"?>
<testsuites>
 <testsuite name="bad.json" tests="4" failures="2" errors="0" skipped="0">
  <testcase classname="bad.json" name="EP110: layer 3: expert 3 is in no slot">
   <failure type="EP110" message="layer 3: expert 3 is in no slot">error[EP110]: line 3: layer 3: expert 3 is in no slot</failure>
  </testcase>
  <testcase classname="bad.json" name="EP110: layer 4: expert 3 is in no slot">
   <failure type="EP110" message="layer 4: expert 3 is in no slot">error[EP110]: line 3: layer 4: expert 3 is in no slot</failure>
  </testcase>
  <testcase classname="bad.json" name="EP112: layer 3, slot 1: rank 0 already holds expert 0">
   <system-out>warning[EP112]: line 3: layer 3, slot 1: rank 0 already holds expert 0</system-out>
  </testcase>
  <testcase classname="bad.json" name="EP121: layer 4, slot 3 is empty; 1 empty slot in 1 layer">
   <system-out>note[EP121]: line 3: layer 4, slot 3 is empty; 1 empty slot in 1 layer</system-out>
  </testcase>
 </testsuite>
 <testsuite name="good.json" tests="1" failures="0" errors="0" skipped="0">
  <testcase classname="good.json" name="placement"/>
 </testsuite>
</testsuites>
"""  # noqa: E501 - to the letter


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Two files, in the directory in which the command runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text(BAD)
    write_json(tmp_path / "good.json", {**OLD, "physical_to_logical_map": [[0, 1, 2, 3, 0, 1]] * 2})
    return tmp_path


def test_text(eplb, home):
    """All findings of a file below its name."""
    result = eplb("validate", "bad.json", "good.json", "--engine", "vllm", "--ignore", "EP125")
    assert (result.code, result.err) == (1, "")
    assert result.out == TEXT


def test_the_page_shows_it():
    """docs/validate.md has the same output, to the letter."""
    page = (Path(__file__).parents[2] / "docs" / "validate.md").read_text()
    assert f"$ eplb validate bad.json good.json --engine vllm --ignore EP125\n{TEXT}```" in page


def test_github(eplb, home, monkeypatch):
    """Commands on stdout, the table behind what the summary has already, the sum on stderr."""
    summary = home / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    result = eplb("validate", "./bad.json", "good.json", "--format", "github")
    assert result.code == 1
    assert result.out == GITHUB
    assert result.err == "2 files checked: 2 errors, 1 warning, 1 note\n"
    assert summary.read_text() == "before\n" + SUMMARY.replace("bad.json", "./bad.json")


def test_a_file_that_is_named_twice_is_checked_once(eplb, home):
    """By its own name and as one of a directory too: nothing is counted twice."""
    (home / "maps").mkdir()
    (home / "maps" / "bad.json").write_text(BAD)
    result = eplb("validate", "maps", "maps/bad.json", "good.json", "good.json")
    assert result.out.splitlines()[-1] == "2 files checked: 2 errors, 1 warning, 1 note"


def test_a_broken_file_of_many_layers(eplb, home, monkeypatch):
    """Every form but text has all findings; text has twenty of a kind, and counts all."""
    rows = [[0, 1, 2, 0, 1, 2]] * 40
    write_json(home / "bad.json", {**OLD, "layer_ids": [*range(40)], "physical_to_logical_map": rows})
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(home / "summary.md"))
    forms = ("text", "json", "github", "sarif", "junit")
    results = {form: eplb("validate", "bad.json", "--select", "EP110", "--format", form) for form in forms}
    assert results["text"].out.count("error[EP110]") == 21
    assert results["text"].out.endswith("\n1 file checked: 40 errors\n")
    assert len(results["json"].json["findings"]) == 40
    assert "::error title=eplb::31 more: " in results["github"].out
    assert (home / "summary.md").read_text().count("| error | EP110 |") == 40
    assert len(results["sarif"].json["runs"][0]["results"]) == 40
    assert 'failures="40"' in results["junit"].out


def test_github_is_told_what_ended_the_command(eplb, home):
    """As an annotation too; the exit code and stderr are as ever."""
    result = eplb("validate", "nowhere.json", "--format", "github")
    assert_error(result, "EP101", "nowhere.json")
    assert result.out.startswith("::error file=nowhere.json,title=EP101::nowhere.json cannot be read")


def test_junit(eplb, home):
    """A suite for each file."""
    result = eplb("validate", "bad.json", "good.json", "--format", "junit")
    assert (result.code, result.out) == (1, JUNIT)


def test_sarif(eplb, home):
    """A rule for each code, and places that can be found in the repository."""
    (run,) = eplb("validate", "bad.json", "good.json", "--format", "sarif").json["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == ["EP110", "EP112", "EP121"]
    assert [(each["ruleId"], each["ruleIndex"], each["level"]) for each in run["results"]] == [
        ("EP110", 0, "error"),
        ("EP110", 0, "error"),
        ("EP112", 1, "warning"),
        ("EP121", 2, "note"),
    ]
    assert run["results"][2] == {
        "ruleId": "EP112",
        "ruleIndex": 1,
        "level": "warning",
        "message": {"text": "layer 3, slot 1: rank 0 already holds expert 0"},
        "properties": {"layer": 3, "slot": 1, "rank": 0},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": "bad.json"},
                    "region": {"startLine": 3, "startColumn": 30},
                }
            }
        ],
    }


HOSTILE = "a,b:c%&<>\"'\x1b\n::error::x é\udcff.json"
"""A name that ends whatever it is in, unless it is escaped, with a byte that is no UTF-8."""


@pytest.fixture
def hostile(home):
    (home / HOSTILE).write_bytes(BAD.encode())
    (home / f"b{HOSTILE}").write_text("{")
    return [HOSTILE, f"b{HOSTILE}", str(home / "bad.json"), "good.json", "linear"]


def test_sarif_is_what_the_standard_says(eplb, hostile):
    """Also of names that are none of an address, of findings without a line, and of no findings."""
    for files in (hostile, ["good.json"]):
        result = eplb("validate", *files, "--format", "sarif", "--num-ranks", 2, "--num-logical-experts", 4)
        assert problems(result.json, SARIF) == []


def test_junit_is_what_jenkins_reads(eplb, hostile):
    """Well-formed, whatever a name has in it."""
    for files in (hostile, ["good.json"]):
        result = eplb("validate", *files, "--format", "junit", "--num-ranks", 2, "--num-logical-experts", 4)
        root = ET.fromstring(result.out.encode())  # noqa: S314 - our own
        assert xml_problems(root) == []
        assert len(root) == len(files)


def test_the_checks_can_fail():
    """Of each kind one that does."""
    wrong = {"version": "2.0", "runs": [{"tool": {"driver": {}}, "results": [{"message": "x", "levels": 1}]}]}
    assert problems(wrong, SARIF) == [
        "/version: '2.0' is not allowed",
        "/runs/0/tool/driver: name is missing",
        "/runs/0/results/0/message: 'x' is no object",
        "/runs/0/results/0: levels is unknown",
    ]
    text = (
        '<testsuites><testsuite name="a" tests="2" failures="0" errors="0"><case/></testsuite></testsuites>'
    )
    root = ET.fromstring(text.replace("case", "testcase"))  # noqa: S314 - as above
    assert xml_problems(root) == [
        "tests is wrong",
        "testcase: name is missing",
    ]


def test_annotations_of_a_hostile_name(eplb, hostile):
    """Every line is one of our commands, and GitHub gets the name back whole."""
    result = eplb("validate", HOSTILE, "--format", "github")
    lines = result.out.splitlines()
    assert all(
        line.startswith(("::error file=a%2Cb%3Ac%25&<>", "::warning file=a", "::notice file=a"))
        for line in lines
    )
    assert "%0A%3A%3Aerror%3A%3Ax" in lines[0]


def test_the_summary_has_an_end():
    """As many rows as fit into what is left of 1 MiB, the worst first, and the number of the others."""
    note, error = Finding("EP121", "note", "n" * 400), Finding("EP110", "error", "|<e>`" * 80, file="a|b")
    findings = [note] * 3_000 + [error] * 10
    text = step_summary(findings, "3,010 findings", MAX_SUMMARY_NBYTES)
    assert len(text.encode()) <= MAX_SUMMARY_NBYTES
    rows = [line for line in text.splitlines() if line.startswith(("| error", "| note"))]
    assert len(text.encode()) + len(rows[-1]) + 200 > MAX_SUMMARY_NBYTES
    assert [row.startswith("| error") for row in rows[:11]] == [True] * 10 + [False]
    assert rows[0].startswith("| error | EP110 | a\\|b | \\|&lt;e>\\`\\|&lt;e>")
    assert f"\n{3_010 - len(rows):,} more have no room here.\n" in text
    for room in range(2_000):
        text = step_summary(findings[-5:], "x", room)
        assert len(text.encode()) <= room
        assert text or room < 400


@pytest.mark.usefixtures("home")
class TestEnvironment:
    """EPLB_FORMAT is --format where that is not said."""

    def test_it_is_the_default(self, eplb, monkeypatch):
        monkeypatch.setenv("EPLB_FORMAT", "json")
        assert eplb("validate", "bad.json").json["format"] == "eplb-findings/1"
        assert eplb("validate", "bad.json", "--format", "text").out.startswith("bad.json:\n")
        assert_error(eplb("validate", "nowhere.json"), "EP101")
        assert eplb("validate", "nowhere.json").json["error"]["code"] == "EP101"

    def test_a_form_that_there_is_not(self, eplb, monkeypatch):
        """Exit code 2, and the forms that there are."""
        monkeypatch.setenv("EPLB_FORMAT", "xml")
        result = eplb("validate", "good.json")
        assert (result.code, "'sarif', 'junit'" in result.err) == (2, True)

    def test_other_commands_know_nothing_of_it(self, eplb, monkeypatch):
        monkeypatch.setenv("EPLB_FORMAT", "sarif")
        assert eplb("plan", "good.json", "good.json").code == 0


def test_skipped_and_ignored(eplb, home):
    """Both are said, for people and for programs."""
    write_json(home / "config.json", {"model_type": "x"})
    result = eplb("validate", ".", "--ignore", "EP11")
    assert result.out.endswith(
        "skipped, as no placements: config.json\n2 files checked: 1 note, 3 ignored\n"
    ), result.out
    found = eplb("validate", ".", "--ignore", "EP11", "--format", "json").json
    assert (found["files"], found["skipped"], found["num_ignored"]) == (
        ["bad.json", "good.json"],
        ["config.json"],
        3,
    )
    assert json.loads(json.dumps(found)) == found
    assert os.environ.get("GITHUB_STEP_SUMMARY") is None
