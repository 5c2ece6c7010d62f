"""`eplb balance`: a placement for a load, near to OLD, and what that costs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.cli.case import assert_error
from tests.cli.tree import write_json

LAYERS, EXPERTS, RANKS = 3, 16, 4
MODEL = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 5,
    "first_k_dense_replace": 3,
    "n_routed_experts": 4,
}
"""Of the shards that `case` has."""


def some_load(drift=0.0):
    """(L, E) tokens; with a drift, some time later."""
    random = np.random.default_rng(7)
    first, second = random.normal(size=(2, LAYERS, EXPERTS))
    return (1000 * np.exp(first + drift * second)).round().astype(int).tolist()


@pytest.fixture
def load(tmp_path):
    return write_json(tmp_path / "load.json", some_load(0.5))


@pytest.fixture
def old(eplb, tmp_path):
    """What was made for an earlier load, with four redundant experts."""
    before, old = write_json(tmp_path / "before.json", some_load()), tmp_path / "old.json"
    made = eplb("balance", before, "--num-ranks", RANKS, "--num-redundant-experts", 4, "--out", old)
    assert made.code == 0, made.err
    return old


def balances(found):
    return {each["name"]: each["max_over_mean"] for each in found["load"]["placements"]}


class TestWithoutOld:
    def test_json(self, eplb, load, tmp_path):
        """NEW is what the report says, and other commands see it so too."""
        new = tmp_path / "new.json"
        options = ("--num-ranks", RANKS, "--num-redundant-experts", 4, "--out", new, "--format", "json")
        found = eplb("balance", load, *options).json
        shape = {key: found[key] for key in ("policy", "num_ranks", "num_slots", "num_redundant_experts")}
        assert shape == {"policy": "global", "num_ranks": 4, "num_slots": 20, "num_redundant_experts": 4}
        assert (found["remote_rows"], found["layers"], found["curve"]) == (None, None, [])
        assert balances(found)["NEW"] < 1.01
        judged = eplb("validate", new, "--load", load, "--max-imbalance", "1.02")
        assert judged.code == 0, judged.out

    def test_text(self, eplb, load, tmp_path):
        page = eplb("balance", load, "--num-ranks", RANKS, "--out", tmp_path / "new.json").out
        assert f"{tmp_path}/new.json: 4 ranks, max / mean 1." in " ".join(page.split())
        assert "16 slots a layer for 16 experts, 4 a rank" in page
        assert "all ranks alike" in page

    def test_groups_are_kept_on_nodes(self, eplb, load, tmp_path):
        new = tmp_path / "new.json"
        options = ("--num-ranks", RANKS, "--ranks-per-node", 2, "--num-groups", 4, "--out", new)
        found = eplb("balance", load, *options, "--format", "json").json
        assert (found["policy"], found["num_groups"]) == ("groups", 4)
        nodes = np.array(json.loads(new.read_text())["physical_to_logical_map"]).reshape(LAYERS, 2, -1) // 4
        assert not any(set(first) & set(second) for first, second in nodes.tolist())

    def test_a_dialect(self, eplb, load, tmp_path):
        """As `convert` writes it."""
        new, other, through = (tmp_path / name for name in ("new.json", "vllm.json", "converted.json"))
        eplb("balance", load, "--num-ranks", RANKS, "--out", new)
        assert eplb("balance", load, "--num-ranks", RANKS, "--to", "vllm", "--out", other).code == 0
        eplb("convert", new, through, "--to", "vllm")
        assert other.read_bytes() == through.read_bytes()

    def test_stdout(self, eplb, load):
        """`-` is the placement and nothing else."""
        out = eplb("balance", load, "--num-ranks", RANKS, "--out", "-").out
        assert json.loads(out)["format"] == "eplb-placement/1"

    def test_layers_of_the_model(self, eplb, tmp_path):
        """A load without numbers of layers gets those of the model, and of its groups of experts."""
        load = tmp_path / "load.npy"
        np.save(load, np.random.default_rng(0).integers(0, 100, (58, 256)))
        new = tmp_path / "new.json"
        options = ("--model", "deepseek-v3", "--num-ranks", 16, "--ranks-per-node", 8, "--out", new)
        found = eplb("balance", load, *options, "--format", "json").json
        assert (found["policy"], found["num_groups"]) == ("groups", 8)
        assert json.loads(new.read_text())["layer_ids"] == list(range(3, 61))


class TestFromOld:
    def test_without_a_limit(self, eplb, load, old, tmp_path):
        """The best balance, its price as `plan` has it, and the curve from OLD to it."""
        new = tmp_path / "new.json"
        options = ("--old", old, "--expert-bytes", 1000, "--out", new, "--format", "json")
        found = eplb("balance", load, *options).json
        planned = eplb("plan", old, new, "--expert-bytes", 1000, "--load", load, "--format", "json").json
        assert found["remote_bytes"] == planned["totals"]["remote_bytes"] == 1000 * found["remote_rows"]
        assert found["load"]["placements"][0] == planned["load"]["placements"][0]
        assert sum(layer["remote_rows"] for layer in found["layers"]) == found["remote_rows"]
        first, *_, last = found["curve"]
        assert (first["remote_bytes"], first["max_over_mean"]) == (0, balances(found)["OLD"])
        assert (last["remote_bytes"], last["max_over_mean"]) == (
            found["remote_bytes"],
            pytest.approx(balances(found)["NEW"], abs=1e-5),
        )
        assert balances(found)["NEW"] < balances(found)["OLD"]

    def test_within_a_limit(self, eplb, load, old, tmp_path):
        """A point of the curve is what its limit gives."""
        options = ("--old", old, "--expert-bytes", "1kB", "--format", "json")
        points = eplb("balance", load, *options, "--out", tmp_path / "best.json").json["curve"]
        for number, point in enumerate(points):
            new = tmp_path / f"new-{number}.json"
            limit = ("--max-moved-bytes", point["limit_bytes"])
            found = eplb("balance", load, *options, *limit, "--out", new).json
            assert found["remote_bytes"] == point["remote_bytes"] <= point["limit_bytes"]
            assert balances(found)["NEW"] == pytest.approx(point["max_over_mean"], abs=1e-5)
            assert found["curve"] == []

    def test_nothing_moves_twice(self, eplb, load, old, tmp_path):
        """What was made for a load is what is made for it again."""
        new, again = tmp_path / "new.json", tmp_path / "again.json"
        eplb("balance", load, "--old", old, "--out", new)
        found = eplb("balance", load, "--old", new, "--out", again, "--format", "json").json
        assert found["remote_rows"] == 0
        assert again.read_bytes() == new.read_bytes()

    def test_text(self, eplb, load, old, tmp_path):
        """Layers before and after, the curve as a table and as a picture, with the knee in both."""
        options = ("--old", old, "--expert-bytes", "1MB", "--curve", "--out", tmp_path / "new.json")
        page = eplb("balance", load, *options).out
        assert "between ranks" in page
        assert "what balance costs" in page
        assert page.count("knee") == 1
        assert page.count("◆") == 1
        assert "max / mean against what comes from another rank" in page
        assert "what balance costs" in eplb("balance", load, "--old", old, "--out", tmp_path / "b.json").out

    def test_html(self, eplb, load, old, tmp_path):
        """One page with the curve, layers and loads; without OLD, of NEW alone."""
        pytest.importorskip("plotly", reason="plotly is not installed")
        page = tmp_path / "page.html"
        options = ("--expert-bytes", "1MB", "--html", page, "--out", tmp_path / "new.json")
        assert eplb("balance", load, "--old", old, *options).code == 0
        text = page.read_text()
        assert all(f'<div id="{name}"' in text for name in ("curve", "balance", "loads"))
        assert "knee" in text
        alone = tmp_path / "alone.html"
        alone_options = ("--num-ranks", 4, "--html", alone, "--out", tmp_path / "other.json")
        assert eplb("balance", load, *alone_options).code == 0
        assert '<div id="balance"' in alone.read_text()

    def test_other_ranks(self, eplb, load, old, tmp_path):
        """Half as many ranks: the experts of those that go come to those that stay, and not for less."""
        options = ("--old", old, "--num-ranks", 2, "--expert-bytes", 1)
        found = eplb("balance", load, *options, "--out", tmp_path / "new.json", "--format", "json").json
        assert found["num_slots"] == 20
        assert found["remote_rows"] >= 3 * (16 - 10)
        error = eplb("balance", load, *options, "--max-moved-bytes", 0, "--out", tmp_path / "b.json")
        assert_error(
            error, "EP001", "--max-moved-bytes is 0, and NEW has ranks or slots for which", exit_code=2
        )

    def test_a_limit_below_one_expert(self, eplb, load, old, tmp_path):
        """Nothing can come, which is said: a unit was forgotten."""
        options = ("--old", old, "--expert-bytes", "1kB", "--format", "json")
        for limit, warnings in (
            (40, ["--max-moved-bytes is 40 bytes, and an expert has 1,000: none can come"]),
            (1000, []),
        ):
            new = tmp_path / f"{limit}.json"
            run = eplb("balance", load, *options, "--max-moved-bytes", limit, "--out", new)
            assert (run.json["warnings"], run.json["remote_rows"] == 0) == (warnings, limit == 40)

    def test_old_has_a_name(self, eplb, load, tmp_path):
        """It has the experts of the load, and the ranks of NEW unless --old-num-ranks says others."""
        out = ("--out", tmp_path / "new.json", "--format", "json")
        found = eplb("balance", load, "--old", "linear", "--num-ranks", 4, *out).json
        planned = eplb("plan", "linear", tmp_path / "new.json", "--format", "json").json
        assert found["remote_rows"] == planned["totals"]["remote_rows"]
        error = eplb("balance", load, "--old", "linear", "--out", tmp_path / "x.json")
        assert_error(error, "EP114", "the map linear needs --num-ranks")
        other = eplb(
            *("balance", load, "--old", "linear", "--old-num-ranks", 2, "--out", tmp_path / "x.json"),
            *("--format", "json"),
        )
        assert other.json["num_ranks"] == 2

    def test_another_old_than_the_shards_say(self, eplb, case, tmp_path):
        """A map with a name is compared with eplb.json, without an option that `balance` does not have."""
        load = write_json(tmp_path / "load.json", [[8, 4, 2, 6], [2, 2, 30, 16]])
        write_json(case.src / "config.json", MODEL)
        assert case.reshard("--backend", "file").code == 0
        options = ("--checkpoint", case.home / "dst", "--old", "linear", "--out", tmp_path / "x.json")
        assert_error(eplb("balance", load, *options), "EP215", "linear is not the placement in")

    def test_a_narrow_terminal(self, eplb, load, old, tmp_path, monkeypatch):
        """The picture is as wide as there is room."""
        options = ("--old", old, "--expert-bytes", "1MB", "--curve")
        for columns in (60, 80, 200):
            monkeypatch.setenv("COLUMNS", str(columns))
            page = eplb("balance", load, *options, "--out", tmp_path / f"{columns}.json").out
            picture = page.partition("max / mean against")[2].splitlines()[1:15]
            assert len(picture) == 14, page
            assert len(picture[12]) == min(columns, 67)
            assert all(len(line) <= columns for line in picture)

    def test_shards_say_sizes_and_old(self, case, tmp_path):
        """With --checkpoint; the layers are those of the shards."""
        load = write_json(tmp_path / "load.json", [[8, 4, 2, 6], [2, 2, 30, 16]])
        new = tmp_path / "b.json"
        options = ("--checkpoint", case.src, "--old", case.home / "old.json", "--format", "json")
        found = case.eplb("balance", load, *options, "--out", new).json
        planned = case.eplb("plan", case.home / "old.json", new, *options[:2], "--format", "json").json
        assert found["remote_bytes"] == planned["totals"]["remote_bytes"]
        assert [layer["layer"] for layer in found["layers"]] == json.loads(new.read_text())["layer_ids"]


class TestRepair:
    def test_ranks_that_are_lost(self, eplb, load, old, tmp_path):
        """Every expert alive on those that are left; the load may be left out."""
        for given in ([load], []):
            new = tmp_path / f"new-{len(given)}.json"
            options = ("--repair", old, "--lost-ranks", 2, "--num-redundant-experts", 2, "--out", new)
            run = eplb("balance", *given, *options)
            assert run.code == 0, run.err
            content = json.loads(new.read_text())
            assert content["num_ranks"] == 3
            assert all(set(row) == set(range(EXPERTS)) for row in content["physical_to_logical_map"])


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ((), "nothing says how many ranks NEW has"),
            (("--num-ranks", 5), "16 experts and 0 redundant ones do not divide over 5 ranks"),
            (("--num-ranks", 4, "--num-groups", 3), "16 experts are not 3 groups"),
            (("--num-ranks", 4, "--curve"), "--curve is about OLD, and there is no --old"),
            (("--num-ranks", 4, "--max-moved-bytes", "1GB"), "--max-moved-bytes is about OLD"),
            (("--num-ranks", 4, "--expert-bytes", "1GB"), "--expert-bytes is about OLD"),
            (("--num-ranks", 4, "--old-num-ranks", 4), "--old-num-ranks is about OLD"),
            (("--num-ranks", 4, "--lost-ranks", 2), "--lost-ranks is about a repair"),
            (
                ("--repair", "old.json", "--lost-ranks", 2, "--num-ranks", 3),
                "--num-ranks is not for a repair",
            ),
            (("--repair", "old.json", "--lost-ranks", 2, "--curve"), "--curve is not for a repair"),
        ],
    )
    def test_options_that_do_not_go_together(self, eplb, load, tmp_path, options, says):
        new = tmp_path / "new.json"
        assert_error(eplb("balance", load, *options, "--out", new), "EP001", says, exit_code=2)
        assert not new.exists()

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (("--max-moved-bytes", "1GB"), "--max-moved-bytes needs the size of an expert"),
            (
                ("--max-moved-bytes", "much", "--expert-bytes", 1),
                "--max-moved-bytes: 'much' is no number of bytes",
            ),
            (("--num-groups", 3), "16 experts are not 3 groups"),
        ],
    )
    def test_with_old(self, eplb, load, old, tmp_path, options, says):
        run = eplb("balance", load, "--old", old, *options, "--out", tmp_path / "new.json")
        assert_error(run, "EP001", says, exit_code=2)

    def test_no_load(self, eplb, tmp_path):
        """Only a repair goes without."""
        run = eplb("balance", "--num-ranks", 4, "--out", tmp_path / "new.json")
        assert_error(run, "EP001", "there is no load to balance", exit_code=2)

    def test_what_is_there_is_kept(self, eplb, load, old):
        before = old.read_bytes()
        run = eplb("balance", load, "--num-ranks", 4, "--out", old)
        assert_error(run, "EP601", "old.json", exit_code=6)
        assert old.read_bytes() == before

    @pytest.mark.parametrize("command", ["balance", "validate", "plan"])
    def test_a_load_without_a_token(self, eplb, old, tmp_path, command):
        """Nothing is judged by it: all would be in balance."""
        load = write_json(tmp_path / "load.json", [[0] * EXPERTS] * LAYERS)
        arguments = {
            "balance": (load, "--old", old, "--out", tmp_path / "new.json"),
            "validate": (old, "--load", load, "--max-imbalance", "1.1"),
            "plan": (old, old, "--load", load),
        }
        assert_error(eplb(command, *arguments[command]), "EP119", "load.json: no expert got a token")

    def test_a_layer_without_a_token(self, eplb, old, tmp_path):
        """It is said, and the others are balanced."""
        load = write_json(tmp_path / "load.json", [[0] * EXPERTS, *some_load(0.5)[1:]])
        new = tmp_path / "new.json"
        found = eplb("balance", load, "--old", old, "--out", new, "--format", "json").json
        assert "no token in layer 0, so any placement balances it" in found["load"]["notes"]
        assert found["layers"][0]["remote_rows"] == 0 < found["remote_rows"]

    def test_a_load_of_another_model(self, eplb, old, tmp_path):
        other = write_json(tmp_path / "other.json", [[1, 2, 3, 4]])
        run = eplb("balance", other, "--old", old, "--out", tmp_path / "new.json")
        assert_error(run, "EP119", "other.json counts 1 layers of 4 experts")


def test_layers_that_the_load_does_not_count_stay(eplb, tmp_path):
    """MTP layers of OLD are in NEW as they were; with other slots they are left out, and that is said."""
    load = tmp_path / "load.npy"
    np.save(load, np.random.default_rng(0).integers(0, 100, (58, 256)))
    rows = [[*range(256), *range(16)]] * 59
    content = {"format": "eplb-placement/1", "num_ranks": 16, "physical_to_logical_map": rows}
    old, new = (
        write_json(tmp_path / "old.json", {**content, "layer_ids": [*range(3, 62)]}),
        tmp_path / "new.json",
    )
    options = ("--old", old, "--model", "deepseek-v3", "--format", "json")
    found = eplb("balance", load, *options, "--max-moved-bytes", "1GB", "--out", new).json
    made = json.loads(new.read_text())
    assert made["layer_ids"] == list(range(3, 62))
    assert made["physical_to_logical_map"][-1] == rows[-1] != made["physical_to_logical_map"][0]
    assert found["warnings"] == []
    planned = eplb("plan", old, new, "--model", "deepseek-v3", "--format", "json").json
    assert planned["totals"]["remote_bytes"] == found["remote_bytes"] <= 10**9
    other = tmp_path / "other.json"
    found = eplb("balance", load, *options, "--num-redundant-experts", 0, "--out", other).json
    assert "left out: layer 61, of which the load counts no expert" in found["warnings"]
    assert json.loads(other.read_text())["layer_ids"] == list(range(3, 61))
