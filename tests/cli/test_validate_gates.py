"""What `validate` is given, which findings count, and what else a placement can be held to."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import pytest

from eplb_cli.placements.dialects.registry import dialect_called
from eplb_cli.placements.engines import engine_called
from tests.cli.case import assert_error
from tests.cli.tree import OLD, placement, stacked, write_json, write_tree

GOOD = placement([[0, 1, 2, 3], [3, 2, 1, 0]], 2)
MOVED = placement([[2, 1, 0, 3], [3, 2, 1, 0]], 2)
"""Layer 3: experts 0 and 2 change ranks."""


def codes(result):
    """Of all findings, in their order."""
    return [finding["code"] for finding in result.json["findings"]]


@pytest.fixture
def check(eplb, tmp_path, monkeypatch):
    """Validate a content with options; as JSON."""
    monkeypatch.chdir(tmp_path)

    def run(content, *options):
        return eplb("validate", write_json(tmp_path / "new.json", content), *options, "--format", "json")

    return run


class TestDirectories:
    @pytest.fixture
    def home(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for folder in ("maps/b", "maps/.git", "empty"):
            (tmp_path / folder).mkdir(parents=True)
        write_json(tmp_path / "maps" / "z.json", GOOD)
        write_json(tmp_path / "maps" / "b" / "a.json", GOOD)
        (tmp_path / "maps" / "b" / "trt.yaml").write_text("initial_global_assignments: {3: [0, 1]}\n")
        return tmp_path

    def found(self, eplb, *names):
        result = eplb("validate", *names, "--num-ranks", 2, "--format", "json").json
        return result["files"], result["skipped"]

    def test_which_files_count(self, eplb, home):
        """By ending and content, in an order; what begins with a dot is left alone."""
        for name in (".hidden.json", ".git/config.json", "notes.md", "map.npy"):
            (home / "maps" / name).write_text(json.dumps(GOOD))
        for name, content in {
            "config.json": {"model_type": "x"},
            "plan.json": {"format": "eplb-plan/1"},
            "package.json": {"name": "x"},
            "list.json": ["a"],
        }.items():
            write_json(home / "maps" / name, content)
        (home / "maps" / "workflow.yml").write_text("on: push\n")
        assert self.found(eplb, "maps") == (
            ["maps/b/a.json", "maps/b/trt.yaml", "maps/z.json"],
            [
                "maps/config.json",
                "maps/list.json",
                "maps/package.json",
                "maps/plan.json",
                "maps/workflow.yml",
            ],
        )

    def test_what_cannot_be_read_counts(self, eplb, home):
        """A broken placement is a finding, and nothing that is passed over."""
        (home / "maps" / "broken.json").write_text("{")
        result = eplb("validate", "maps", "--num-ranks", 2)
        assert (result.code, "error[EP102]" in result.out) == (1, True)

    def test_a_misspelt_format_counts_where_there_is_a_map(self, eplb, home):
        """What it says is wrong, and not what it is."""
        write_json(home / "maps" / "odd.json", {**GOOD, "format": "eplb-plcement/1"})
        result = eplb("validate", "maps", "--num-ranks", 2)
        assert (result.code, "error[EP103]" in result.out) == (1, True)

    def test_the_directory_of_shards(self, eplb, case):
        """Their eplb.json has a placement."""
        case.reshard()
        files, skipped = self.found(eplb, case.dst)
        assert files == [str(case.dst / "eplb.json")]
        assert str(case.dst / "config.json") in skipped

    def test_links_to_directories_are_not_followed(self, eplb, home):
        """They may lead in a circle."""
        (home / "maps" / "again").symlink_to(home / "maps")
        assert len(self.found(eplb, "maps")[0]) == 3

    @pytest.mark.parametrize("beside", [None, "config.json"])
    def test_a_directory_without_any(self, eplb, home, beside):
        """EP128, also where another one has some: nothing is checked then."""
        if beside:
            write_json(home / "empty" / beside, {"model_type": "x"})
        assert_error(eplb("validate", "maps", "empty"), "EP128", "empty: no placement")

    def test_files_and_directories(self, eplb, home):
        """In the order of the call, each once; a file that is named counts whatever it holds."""
        write_json(home / "config.json", {"model_type": "x"})
        files, skipped = self.found(eplb, "config.json", "maps", "maps/z.json")
        assert (files[0], files[-1], skipped) == ("config.json", "maps/z.json", [])
        assert files.count("maps/z.json") == 1


class TestStdin:
    @pytest.fixture
    def say(self, monkeypatch):
        def give(data: bytes):
            monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))

        return give

    def test_it_is_a_file(self, eplb, say, tmp_path):
        """With OLD as well, and once where it is named twice."""
        say(json.dumps(MOVED).encode())
        result = eplb("validate", "-", "-", "--against", write_json(tmp_path / "old.json", GOOD))
        assert (result.code, result.err) == (0, "")
        assert result.out == "-: OK\n1 file checked: no findings\n"

    def test_its_lines_are_told(self, eplb, say):
        """As those of a file."""
        say(b'{"format": "eplb-placement/1", "num_ranks": 1,\n "physical_to_logical_map": [[7, -2]]}')
        result = eplb("validate", "-", "--format", "github")
        assert result.out.startswith("::error file=-,line=2,col=30,title=EP105::")

    def test_nothing_and_too_much(self, eplb, say, monkeypatch):
        """A finding, and EP101."""
        say(b"")
        assert codes(eplb("validate", "-", "--format", "json")) == ["EP102"]
        monkeypatch.setattr("eplb_cli.inputs.checking.read_stdin.__defaults__", (10,))
        say(b"[" * 11)
        assert_error(eplb("validate", "-"), "EP101", "stdin has more than 10 bytes")


class TestSelection:
    TWICE = placement([[0, 0, 1, 2], [0, 1, 2, -1]], 2, num_logical_experts=4)

    @pytest.mark.parametrize(
        ("options", "expected", "code"),
        [
            ([], ["EP110", "EP110", "EP112", "EP121"], 1),
            (["--select", "EP112"], ["EP112"], 0),
            (["--select", "EP112", "--strict"], ["EP112"], 1),
            (["--select", "ep11"], ["EP110", "EP110", "EP112"], 1),
            (["--select", "EP112,EP121"], ["EP112", "EP121"], 0),
            (["--select", "EP112", "--select", "EP121"], ["EP112", "EP121"], 0),
            (["--ignore", "EP110"], ["EP112", "EP121"], 0),
            (["--ignore", "EP110", "--strict"], ["EP112", "EP121"], 1),
            (["--select", "EP11", "--ignore", "EP110, EP112"], [], 0),
            (["--select", "EP121", "--strict"], ["EP121"], 0),
        ],
    )
    def test_what_counts(self, check, options, expected, code):
        """Codes or how they begin, and warnings as errors; notes are never errors."""
        result = check(self.TWICE, *options)
        assert (codes(result), result.code) == (expected, code)
        assert result.json["num_ignored"] == 4 - len(expected)

    def test_a_warning_that_counts_is_shown_as_an_error(self, check):
        """In every form, so that nobody has to know of --strict."""
        (finding,) = check(self.TWICE, "--select", "EP112", "--strict").json["findings"]
        assert finding["severity"] == "error"

    @pytest.mark.parametrize("word", ["EP9", "EP112x", "", "EP112,,EP113"])
    def test_no_such_code(self, check, word):
        """EP001: a gate with a misspelt name would be open for ever."""
        for option in ("--select", "--ignore"):
            assert_error(check(GOOD, option, word), "EP001", option, exit_code=2)


MODEL = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 5,
    "first_k_dense_replace": 3,
    "n_routed_experts": 4,
}


UNEVEN = {**placement([[0, 1, 2, 3], [3, 2, 1, 0]], None), "slots_per_rank": [3, 1]}
REPLICAS = {**placement([[0, 1, 2, 3, 0], [3, 2, 1, 0, 1]], None), "slots_per_rank": [3, 2]}
TWICE = placement([[0, 1, 0, 2, 3, 1], [3, 2, 1, 0, 1, 2]], 2)
EMPTY = placement([[0, 1, 2, 3, 0, -1], [3, 2, 1, 0, 1, 2]], 2)
DEALT = {**placement([[0, 1, 2, 3], [3, 2, 1, 0]], None), "slots_per_rank": [2, 1, 1]}


class TestEngines:
    @pytest.fixture
    def check(self, check, tmp_path):
        """With a model of MoE layers 3 and 4 of 5, or without one."""
        config = write_json(tmp_path / "config.json", MODEL)

        def run(content, engine, *, with_model=True):
            result = check(content, "--engine", engine, *(["--model", config] if with_model else []))
            return [code for code in codes(result) if code not in {"EP112", "EP121"}]

        return run

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("vllm", [[], ["EP123"], ["EP123"], [], ["EP124"], []]),
            ("sglang", [[], ["EP123"], ["EP123"], [], ["EP124"], ["EP123"]]),
            ("tensorrt-llm", [[], ["EP123"], ["EP123"], [], ["EP124"], ["EP123"]]),
            ("ascend", [[], ["EP123"], ["EP123"], ["EP126"], ["EP124"], ["EP123"]]),
        ],
    )
    def test_slots(self, check, name, expected):
        """P % R, -1, and replicas on one rank."""
        cases = [GOOD, UNEVEN, REPLICAS, TWICE, EMPTY, DEALT]
        assert [check(case, name) for case in cases] == expected

    @pytest.mark.parametrize("name", ["vllm", "sglang", "tensorrt-llm", "ascend"])
    def test_rows(self, check, name):
        """One for each MoE layer; without a model, that nobody looked."""
        one = {**placement([[0, 1, 2, 3]], 2), "layer_ids": [4]}
        assert check(one, name) == ["EP125"]
        assert check(GOOD, name, with_model=False) == ["EP125"]

    def test_rows_are_found_by_number(self, eplb, tmp_path):
        """TensorRT-LLM's, which nothing says here: an error. For others it is a note."""
        bare = {key: GOOD[key] for key in GOOD if key != "layer_ids"}
        file = write_json(tmp_path / "new.json", bare)
        assert eplb("validate", file, "--engine", "tensorrt-llm").code == 1
        assert eplb("validate", file, "--engine", "ascend").code == 0

    @pytest.mark.parametrize("name", ["vllm", "sglang", "tensorrt-llm", "ascend"])
    def test_convert_agrees(self, eplb, check, tmp_path, name):
        """What an engine can take can be written for it; what its file cannot say has a finding."""
        config = tmp_path / "config.json"
        for content in (GOOD, UNEVEN, REPLICAS, TWICE, EMPTY):
            findings = check(content, name)
            out = tmp_path / f"out{dialect_called(name).suffixes[0]}"
            out.unlink(missing_ok=True)
            result = eplb("convert", tmp_path / "new.json", out, "--to", name, "--model", config)
            assert (result.code == 0) == (findings == []), (content, result.err)

    @pytest.mark.parametrize(
        ("family", "engine", "content", "expected"),
        [
            ("mixtral", "sglang", GOOD, ["EP129"]),
            ("mixtral", "vllm", TWICE, []),
            ("olmoe", "vllm", TWICE, ["EP129"]),
            ("olmoe", "vllm", GOOD, []),
        ],
    )
    def test_families(self, eplb, tmp_path, family, engine, content, expected):
        """No map at all, or no replicas; from --model or from beside the shards."""
        config = write_json(
            tmp_path / "config.json", {"model_type": family, "num_hidden_layers": 2, "num_experts": 4}
        )
        if family == "mixtral":
            write_json(config, {"model_type": family, "num_hidden_layers": 2, "num_local_experts": 4})
        new = write_json(tmp_path / "new.json", {**content, "layer_ids": [0, 1]})
        options = ("--engine", engine, "--model", config, "--select", "EP129", "--format", "json")
        assert codes(eplb("validate", new, *options)) == expected

    def test_vllm_deals_out(self):
        """Only vLLM has ranks of different sizes, and those without replicas."""
        assert [engine_called(name).deals_out for name in ("vllm", "sglang")] == [True, False]

    def test_no_such_engine(self, eplb):
        """The engines that there are."""
        result = eplb("validate", "linear", "--engine", "vlm")
        assert (result.code, "'tensorrt-llm'" in result.err) == (2, True)


class TestMovedBytes:
    @pytest.fixture
    def old(self, tmp_path):
        return write_json(tmp_path / "old.json", GOOD)

    @pytest.mark.parametrize(("limit", "expected"), [("2MB", []), ("1999999", ["EP127"]), ("0", ["EP127"])])
    def test_the_limit(self, eplb, check, tmp_path, old, limit, expected):
        """Bytes that go from rank to rank, as `plan` counts them."""
        planned = eplb("plan", old, write_json(tmp_path / "new.json", MOVED), "--expert-bytes", "1MB")
        del planned
        options = ("--against", old, "--expert-bytes", "1MB", "--max-moved-bytes", limit)
        result = check(MOVED, *options)
        assert (codes(result), result.code) == (expected, len(expected))
        if expected:
            (finding,) = result.json["findings"]
            assert "2.00 MB (2,000,000 bytes) would go" in finding["message"]
            assert (finding["layer"], "most in layer 3, 2 experts" in finding["message"]) == (3, True)

    def test_what_stays_costs_nothing(self, check, old):
        """Rows may change places on their rank."""
        same = placement([[1, 0, 3, 2], [2, 3, 0, 1]], 2)
        options = ("--against", old, "--expert-bytes", "1MB", "--max-moved-bytes", "0")
        assert codes(check(same, *options)) == []

    def test_sizes_of_shards(self, eplb, check, tmp_path):
        """As `plan --checkpoint` has them."""
        src = write_tree(tmp_path / "src", stacked(OLD))
        old, new = (
            write_json(tmp_path / "o.json", OLD),
            placement([[3, 0, 0, 1, 2, 2], [0, 1, 2, 3, 3, 1]], 2),
        )
        planned = eplb(
            "plan", old, write_json(tmp_path / "n.json", new), "--checkpoint", src, "--format", "json"
        )
        moved = planned.json["totals"]["remote_bytes"]
        options = ("--against", old, "--checkpoint", src, "--max-moved-bytes")
        assert "EP127" not in codes(check(new, *options, moved))
        assert "EP127" in codes(check(new, *options, moved - 1))

    def test_a_file_with_errors(self, check, old):
        """Has its own findings, and no others."""
        lacking = placement([[0, 1, 2, 2], [3, 2, 1, 0]], 2, num_logical_experts=4)
        options = ("--against", old, "--expert-bytes", "1MB", "--max-moved-bytes", "0")
        assert "EP127" not in codes(check(lacking, *options))

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--max-moved-bytes", "1MB"], "--against"),
            (["--against", "linear", "--max-moved-bytes", "1MB"], "the size of an expert"),
            (["--against", "linear", "--expert-bytes", "1MB"], "--max-moved-bytes"),
            (["--against", "linear", "--expert-bytes", "x", "--max-moved-bytes", "1MB"], "no"),
            (["--against", "linear", "--expert-bytes", "1MB", "--max-moved-bytes", "much"], "much"),
        ],
    )
    def test_options_that_say_half(self, check, options, says):
        """EP001."""
        assert_error(check(GOOD, *options), "EP001", says if says != "no" else "'x'", exit_code=2)


class TestNotes:
    def test_empty_slots(self, check):
        """One note for a file, at the first of them."""
        result = check(placement([[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, -1, -1]], 2))
        (finding,) = (each for each in result.json["findings"] if each["code"] == "EP121")
        assert (finding["severity"], finding["layer"], finding["slot"], finding["rank"]) == ("note", 4, 4, 1)
        assert finding["message"] == "layer 4, slot 4 is empty; 2 empty slots in 1 layer"

    def test_unequal_replicas(self, check, tmp_path):
        """Where shares could be more equal: a difference of one is all that equal shares may need."""
        unequal = placement([[0, 1, 0, 2, 0, 3], [0, 1, 2, 3, 0, 1]], 3)
        (finding,) = (each for each in check(unequal).json["findings"] if each["code"] == "EP122")
        assert (finding["severity"], finding["layer"]) == ("note", 3)
        assert "expert 0 is in 3 slots and expert 1 in 1; 1 layer " in finding["message"]
        assert "EP122" not in codes(check(placement([[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 2, 3]], 3)))
        write_json(tmp_path / "load.json", [[9, 1, 1, 1], [1, 1, 1, 1]])
        assert "EP122" not in codes(check(unequal, "--load", tmp_path / "load.json"))


@pytest.mark.parametrize(
    "text",
    [
        '{"physical_to_logical_map":[[0,1],[0,9]],"num_ranks":2,"num_logical_experts":2,"format":"eplb-placement/1"}',
        '{"physical_to_logical_map":[[0,1],[0,9]]}',
        "[[0,1],[0,9]]",
        '{"initial_global_assignments":{"3":[0,1],"4":[0,9]}}',
        '{"a [\\"[ \\\\": "]", "physical_to_logical_map": [[0, 1], [0, 9]]}',
        '{"é\U0001f600":[],"physical_to_logical_map":[[0,1],[0,9]]}',
    ],
)
@pytest.mark.parametrize("indent", ["", "\n"])
def test_the_place_of_a_layer(eplb, tmp_path, text, indent):
    """In every dialect whose rows are lists, on one line or many, whatever else is in the text."""
    (tmp_path / "new.json").write_text(text.replace("[0", f"{indent}[0"), encoding="utf-8")
    options = ("--num-ranks", 2, "--num-logical-experts", 2, "--format", "json")
    dialect = ("--from", "vllm") if '"physical' in text and "eplb" not in text else ()
    result = eplb("validate", tmp_path / "new.json", *options, *dialect)
    (finding,) = (each for each in result.json["findings"] if each["code"] == "EP105")
    lines = (tmp_path / "new.json").read_text(encoding="utf-8").splitlines()
    start = lines[finding["line"] - 1][finding["column"] - 1 :]
    assert start.startswith(("[0,9]", "[0, 9]")), finding


def test_a_key_twice_tells_no_row(eplb, tmp_path):
    """Which of the lists is meant nobody knows: the key's own line, and not that of another row."""
    text = '{"physical_to_logical_map":[[0,9]],\n"physical_to_logical_map":[[0,8]],"num_ranks":1}'
    (tmp_path / "new.json").write_text(text)
    result = eplb("validate", tmp_path / "new.json", "--num-logical-experts", 2, "--format", "json")
    found = {each["code"]: each["line"] for each in result.json["findings"]}
    assert found["EP105"] == 2


def test_the_place_of_a_layer_in_yaml(eplb, tmp_path):
    """TensorRT-LLM's, in flow and in block."""
    text = "initial_global_assignments:\n  3: [0, 1]\n  4:\n  - 0\n  - 9\n  5: [0, 8]\nnum_slots: 2\n"
    (tmp_path / "new.yaml").write_text(text)
    result = eplb("validate", tmp_path / "new.yaml", "--ep-size", 2, "--format", "json", "--select", "EP110")
    found = [(each["layer"], each["line"], each["column"]) for each in result.json["findings"]]
    assert found == [(3, 2, 6), (4, 4, 3), (5, 6, 6)]
