"""`--load`: how evenly placements spread a load, wherever a placement is shown; and the load itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.case import assert_error
from tests.cli.test_terminal import on_a_terminal
from tests.cli.tree import NEW, OLD, placement, stacked, write_json, write_tree

PLANNING = Path(__file__).parents[2] / "docs" / "planning.md"
LOAD = [[8, 4, 2, 6], [2, 2, 30, 16]]
"""Under OLD ranks have 8 and 12 of 20, then 25 and 25 of 50; under NEW 14 and 6, then 33 and 17."""

MODEL = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 5,
    "first_k_dense_replace": 3,
    "n_routed_experts": 4,
}

OLD_RATIO, NEW_RATIO, NEW_BOUND = 37 / 35, 47 / 35, 40 / 35


@pytest.fixture
def load(case):
    return write_json(case.home / "load.json", LOAD)


@pytest.fixture
def sides(case):
    return case.home / "old.json", case.home / "new.json"


def only(entries):
    """The one entry of a list."""
    (entry,) = entries
    return entry


class TestPlan:
    def test_json(self, case, sides, load):
        """Per layer and overall, with bounds, for OLD and NEW; no other key changes."""
        found = case.eplb("plan", *sides, "--load", load, "--format", "json").json
        assert found.pop("load") == {
            "path": str(load),
            "form": "array",
            "notes": [
                "each column is taken for an expert, not a slot: --model says how many experts there are"
            ],
            "placements": [
                {
                    "name": "OLD",
                    "max_over_mean": pytest.approx(OLD_RATIO, abs=1e-6),
                    "bound": 1.0,
                    "worst_layer": 3,
                    "layers": [
                        {"layer": 3, "tokens": 20, "max_over_mean": 1.2, "bound": 1.0, "busiest_rank": 1},
                        {"layer": 4, "tokens": 50, "max_over_mean": 1.0, "bound": 1.0, "busiest_rank": 0},
                    ],
                    "rank_load": [[8, 12], [25, 25]],
                },
                {
                    "name": "NEW",
                    "max_over_mean": pytest.approx(NEW_RATIO, abs=1e-6),
                    "bound": pytest.approx(NEW_BOUND, abs=1e-6),
                    "worst_layer": 3,
                    "layers": [
                        {"layer": 3, "tokens": 20, "max_over_mean": 1.4, "bound": 1.0, "busiest_rank": 0},
                        {"layer": 4, "tokens": 50, "max_over_mean": 1.32, "bound": 1.2, "busiest_rank": 0},
                    ],
                    "rank_load": [[14, 6], [33, 17]],
                },
            ],
        }
        assert found == case.eplb("plan", *sides, "--format", "json").json

    def test_text(self, case, sides, load):
        """In the summary, as a table, and as bars of layers and of ranks."""
        page = case.eplb("plan", *sides, "--load", load).out
        assert "max / mean load  1.057 before, 1.343 after, bound 1.143" in page
        section = page[page.index("load of ranks") : page.index("notes on the load")]
        lines = section.splitlines()[2:]
        assert [line.split() for line in lines[2:4]] == [
            ["OLD", "1.057", "1.000", "3", "1.200", "1.000", "1"],
            ["NEW", "1.343", "1.143", "3", "1.400", "1.000", "0"],
        ]
        assert lines[5:] == [
            "max / mean by layer; nothing is 1, a full bar is 1.400",
            "OLD    ▄▄··",
            "bound  ····",
            "NEW    ██▇▇",
            "bound  ··▄▄",
            "",
            "load of each rank in the worst layer; a full bar is 1.400 times the mean",
            "OLD 3  ▅▅▇▇",
            "NEW 3  ██▄▄",
            "",
        ]
        assert max(map(len, page.splitlines())) <= 80

    def test_the_page_of_the_documentation(self, case, sides, load, monkeypatch):
        """It shows this very output."""
        monkeypatch.chdir(case.home)
        page = case.eplb("plan", *(side.name for side in sides), "--load", load.name).out
        shown = PLANNING.read_text().partition("$ eplb plan old.json new.json --load load.json\n...\n")[2]
        parts = shown.partition("\n...\n```")[0].split("\n...\n")
        assert len(parts) == 2
        assert all(f"\n{part}\n" in page for part in parts)

    def test_on_a_terminal(self, sides, load):
        """In the colours of the terminal; into a file it is plain and the same."""
        seen, code = on_a_terminal(["plan", *sides, "--load", load], TERM="xterm-256color")
        assert code == 0
        assert "\nNEW    ██▇▇\r\n" in seen
        section = seen[seen.index("load of ranks") : seen.index("notes on the load")]
        assert set(re.findall(r"\x1b\[([\d;]*)m", section)) <= {"0", "1", "2"}, "more than bold and dim"

    def test_html(self, case, sides, load):
        """A picture of layers beside their bounds, and a map of ranks, before and after."""
        pytest.importorskip("plotly", reason="plotly is not installed")
        html = case.home / "page.html"
        assert case.eplb("plan", *sides, "--load", load, "--html", html).code == 0
        page = html.read_text()
        for name, title in (
            ("balance", "Max / mean load of ranks per layer, and its bound (dotted)"),
            ("loads", "Load of each rank over the mean, before and after"),
        ):
            assert f'<h2>{title}</h2><div id="{name}"' in page
            assert f'\n"{name}": {{"data":[' in page
        assert "<td>1.057 before, 1.343 after, bound 1.143</td>" in page
        assert case.eplb("plan", *sides, "--html", html).code == 0
        assert '"balance": {' not in html.read_text()

    def test_with_shards(self, case, sides, load):
        """They say which layers there are."""
        options = ("--checkpoint", case.src, "--load", load, "--format", "json")
        found = case.eplb("plan", *sides, *options).json["load"]
        assert [each["max_over_mean"] for each in found["placements"]] == pytest.approx(
            [OLD_RATIO, NEW_RATIO], abs=1e-6
        )
        assert found["notes"] == []

    def test_where_there_is_nothing_to_do(self, case, sides, load):
        """OLD is judged all the same."""
        result = case.eplb("plan", sides[0], sides[0], "--load", load)
        assert result.out.startswith("nothing to do")
        assert "OLD    ██··" in result.out

    def test_a_saved_plan_is_the_same(self, case, sides, load):
        """The load is not what is carried out."""
        saved = case.home / "plan.json"
        plans = []
        for options in ((), ("--load", load)):
            assert case.eplb("plan", *sides, "--out", saved, *options).code == 0
            plans.append(saved.read_bytes())
        assert plans[0] == plans[1]

    def test_the_load_is_not_written_over(self, case, sides, load):
        """EP001."""
        result = case.eplb("plan", *sides, "--load", load, "--out", load)
        assert_error(result, "EP001", "would be written over", exit_code=2)
        assert json.loads(load.read_text()) == LOAD

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            ([row[:3] for row in LOAD], "counts 2 layers of 3 experts, and OLD has 2 of 4"),
            ([[1], [1]], "counts 2 layers of 1 experts, and OLD has 2 of 4"),
            (LOAD[:1], "counts 1 layers of 4 experts, and OLD has 2 of 4"),
            ([*LOAD, LOAD[0]], "counts 3 layers of 4 experts, and OLD has 2 of 4"),
            ({"logical_count": [[0] * 4, LOAD[0], LOAD[1]]}, "layer 3 is in OLD alone"),
            (OLD, "it is a placement"),
        ],
    )
    def test_a_load_of_another_model(self, case, sides, load, content, says):
        """EP119 with the numbers of both: nothing is stretched to fit."""
        write_json(load, content)
        assert_error(case.eplb("plan", *sides, "--load", load), "EP119", says)

    def test_no_load(self, case, sides):
        """EP101 before anything is planned."""
        assert_error(case.eplb("plan", *sides, "--load", case.home / "no.json"), "EP101", "no.json")

    def test_a_load_of_all_hidden_layers(self, case, sides, load):
        """Layers are told by their numbers."""
        write_json(load, {"logical_count": [[0] * 4, [0] * 4, [9] * 4, *LOAD]})
        found = case.eplb("plan", *sides, "--load", load, "--format", "json").json["load"]
        assert found["placements"][1]["rank_load"] == [[14, 6], [33, 17]]

    def test_layers_of_mtp(self, case, load):
        """A placement may name them, and no load counts them."""
        write_json(case.home / "config.json", {**MODEL, "num_nextn_predict_layers": 1})
        rows = [*NEW["physical_to_logical_map"], [0, 1, 2, 3, 0, 1]]
        new = case.new({**NEW, "layer_ids": [3, 4, 5], "physical_to_logical_map": rows})
        old = case.old({**NEW, "layer_ids": [3, 4, 5], "physical_to_logical_map": [*rows[1::-1], rows[2]]})
        options = ("--model", case.home, "--load", load, "--format", "json")
        found = case.eplb("plan", old, new, *options).json["load"]["placements"]
        assert [[layer["layer"] for layer in each["layers"]] for each in found] == [[3, 4]] * 2


class TestValidate:
    def test_json(self, case, sides, load):
        """Each file under its name, behind OLD; a load alone is no finding."""
        old, new = sides
        result = case.eplb("validate", new, "--against", old, "--load", load, "--format", "json")
        assert result.code == 0
        assert list(result.json) == ["format", "files", "skipped", "num_ignored", "findings", "load"]
        found = [(each["name"], each["worst_layer"]) for each in result.json["load"]["placements"]]
        assert found == [(str(old), 3), (str(new), 3)]

    def test_text(self, case, sides, load):
        """Between the findings and the summary, at 80 columns."""
        result = case.eplb("validate", *sides, "--load", load)
        lines = result.out.splitlines()
        assert [line.split()[-1] for line in lines if line.endswith(("▄▄··", "██▇▇"))] == ["▄▄··", "██▇▇"]
        assert (
            max(map(len, lines[lines.index("max / mean by layer; nothing is 1, a full bar is 1.400") :]))
            <= 80
        )
        assert lines[-2:] == ["", "2 files checked: 2 warnings"]

    def test_above_the_limit(self, case, sides, load):
        """EP120 for each layer, the worst first: layer, rank, ratio, limit, and what could be done."""
        options = ("--load", load, "--max-imbalance", "1.1", "--format", "json")
        result = case.eplb("validate", sides[1], *options)
        assert result.code == 1
        worst, other = (each for each in result.json["findings"] if each["code"] == "EP120")
        assert worst == {
            "code": "EP120",
            "severity": "error",
            "message": "layer 3: rank 0 has 1.4 times the mean load of all ranks, and --max-imbalance is 1.1",
            "hint": worst["hint"],
            "file": str(sides[1]),
            "line": 1,
            "layer": 3,
            "slot": None,
            "rank": 0,
            "column": 123,
        }
        assert worst["hint"].startswith("`eplb balance LOAD")
        assert (other["layer"], other["rank"]) == (4, 0)
        assert other["hint"].startswith("no placement with these replicas goes below 1.2: `eplb balance LOAD")

    @pytest.mark.parametrize(("limit", "code"), [("1.2", 0), ("1.199", 1), ("1", 1), ("1e9", 0)])
    def test_the_limit_itself(self, case, sides, load, limit, code):
        """A layer may have just as much; only FILE is held to it, and not OLD."""
        old, new = sides
        assert case.eplb("validate", old, "--load", load, "--max-imbalance", limit).code == code
        result = case.eplb("validate", old, "--against", new, "--load", load, "--max-imbalance", limit)
        assert result.code == code

    def test_for_github(self, case, sides, load):
        """An annotation, and no picture."""
        options = ("--load", load, "--max-imbalance", "1.35", "--format", "github")
        lines = case.eplb("validate", sides[1], *options).out.splitlines()
        assert len([line for line in lines if "title=EP120" in line]) == 1
        assert all(line.startswith("::") for line in lines)

    def test_a_file_that_the_load_does_not_fit(self, case, sides, load):
        """EP119 is a finding about it, with the numbers of both; others are judged."""
        other = write_json(case.home / "other.json", placement([[0, 1, 2], [0, 1, 2]], 1))
        options = ("--load", load, "--max-imbalance", "2", "--format", "json")
        result = case.eplb("validate", other, sides[0], *options)
        assert result.code == 1
        finding = only(result.json["findings"])
        assert (finding["code"], finding["file"]) == ("EP119", str(other))
        assert f"{load} counts 2 layers of 4 experts, and {other} has 2 of 3" in finding["message"]
        assert only(result.json["load"]["placements"])["name"] == str(sides[0])

    def test_a_file_with_errors(self, case, load):
        """Has those, and is not judged."""
        bad = case.new({**NEW, "physical_to_logical_map": [[0, 1, 2, 3, 0, 1], [0, 1, 2, 2, 2, 0]]})
        result = case.eplb("validate", bad, "--load", load, "--max-imbalance", "1", "--format", "json")
        assert (result.code, result.json["load"]["placements"]) == (1, [])
        assert {each["code"] for each in result.json["findings"]} >= {"EP110"}
        assert "EP120" not in {each["code"] for each in result.json["findings"]}
        assert "load of ranks" not in case.eplb("validate", bad, "--load", load).out

    def test_beside_shards(self, case, sides, load):
        """Which say the layers."""
        options = ("--checkpoint", case.src, "--load", load, "--max-imbalance", "1.3")
        assert case.eplb("validate", sides[0], *options).code == 0

    def test_no_load(self, case, sides):
        """EP119 or EP101 with exit code 3, before anything is checked."""
        assert_error(case.eplb("validate", *sides, "--load", sides[0]), "EP119", "it is a placement")
        assert_error(case.eplb("validate", *sides, "--load", case.home / "no.json"), "EP101")

    @pytest.mark.parametrize("limit", ["0.99", "0", "-1", "nan", "inf"])
    def test_limits_that_are_none(self, case, sides, load, limit):
        """EP001: no placement is better than balanced."""
        result = case.eplb("validate", *sides, "--load", load, "--max-imbalance", limit)
        assert_error(result, "EP001", "--max-imbalance", exit_code=2)

    def test_a_limit_without_a_load(self, case, sides):
        """EP001 says what is missing."""
        result = case.eplb("validate", *sides, "--max-imbalance", "2")
        assert_error(result, "EP001", "--max-imbalance", "add --load", exit_code=2)


class TestInspect:
    def test_shards_with_a_placement(self, case, load):
        """As their eplb.json says it."""
        case.reshard()
        found = case.eplb("inspect", case.dst, "--load", load, "--format", "json").json
        judged = only(found["load"]["placements"])
        assert (judged["name"], judged["rank_load"]) == (str(case.dst), [[14, 6], [33, 17]])
        page = case.eplb("inspect", case.dst, "--load", load).out
        assert "▇▇" in page[page.index("max / mean by layer") :]
        assert "load" not in case.eplb("inspect", case.dst, "--format", "json").json

    @pytest.mark.parametrize("config", [{"model_type": "test"}, MODEL])
    def test_layers_of_another_module(self, case, load, config):
        """The load does not count them, and they are not judged, whether or not config.json knows of them."""
        mtp = {**OLD, "layer_ids": [0], "physical_to_logical_map": [[0, 1, 2, 3, 0, 1]]}
        beside = stacked(mtp, prefix="mtp.layers.0.mlp.experts")
        ranks = [main | more for main, more in zip(stacked(OLD), beside, strict=True)]
        src = write_tree(case.home / "mtp", ranks)
        write_json(src / "config.json", config)
        case.reshard(src=src, new=case.new({**NEW, "num_ranks": 3}))
        found = case.eplb("inspect", case.dst, "--load", load, "--format", "json").json
        assert found["placement"]["layer_ids"] == [3, 4, 5]
        assert only(found["load"]["placements"])["rank_load"] == [[10, 8, 2], [3, 38, 9]]
        options = ("--checkpoint", case.dst, "--load", load, "--format", "json")
        saved = write_json(case.home / "saved.json", found["placement"])
        planned = case.eplb("plan", saved, case.old(OLD), *options).json["load"]["placements"]
        assert [each["rank_load"] for each in planned] == [[[10, 8, 2], [3, 38, 9]], [[8, 12], [25, 25]]]
        checked = case.eplb("validate", saved, *options)
        assert only(checked.json["load"]["placements"])["rank_load"] == [[10, 8, 2], [3, 38, 9]]

    def test_shards_without_one(self, case, load):
        """EP216: nothing says what their rows are."""
        result = case.eplb("inspect", case.src, "--load", load)
        assert_error(result, "EP216", "nothing says what its rows are", "eplb validate FILE")

    def test_the_load_itself(self, case, load):
        """Tokens of each expert, all steps together; it is not held against another load."""
        write_json(load, [LOAD, LOAD])
        found = case.eplb("inspect", load, "--format", "json").json
        assert found["counts"] == [[2 * count for count in row] for row in LOAD]
        assert_error(case.eplb("inspect", load, "--load", load), "EP001", "--load", exit_code=2)
