"""Reading and writing `eplb-placement/1`."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eplb_cli import files
from eplb_cli.errors import PlacementError
from eplb_cli.formats.budget import MAX_FILE_NBYTES
from eplb_cli.models.model import Model
from eplb_cli.placements.findings import Finding
from eplb_cli.placements.hints import NO_HINTS, Hints
from eplb_cli.placements.own_format import format_placement, placement_from_json, placement_to_json
from eplb_cli.placements.placement import Placement
from eplb_cli.placements.read import parse_placement, read_placement
from tests.support.placements import content, placement, placements, text

DATA = Path(__file__).parent.parent / "data"


def findings_of(data: bytes, hints: Hints = NO_HINTS) -> list[Finding]:
    """All findings about a file of this content, which is usable if and only if none is an error."""
    result, findings = parse_placement(data, "p.json", hints)
    assert (result is None) == any(finding.severity == "error" for finding in findings)
    return findings


def only_finding(data: bytes, hints: Hints = NO_HINTS) -> Finding:
    (finding,) = findings_of(data, hints)
    assert finding.file == "p.json"
    return finding


def same(a: Placement, b: Placement) -> bool:
    return a.digest == b.digest and (a.layer_ids is None) == (b.layer_ids is None)


class TestGoodFiles:
    def test_every_key_is_taken_over(self, tmp_path):
        """Map, ranks, experts and layer numbers are as the file says, without a finding."""
        (tmp_path / "p.json").write_bytes(text())
        result, findings = read_placement(str(tmp_path / "p.json"))
        assert findings == []
        assert result.physical_to_logical.tolist() == [[0, 1, 2, 0], [2, -1, 0, 1]]
        assert result.first_slot.tolist() == [0, 2, 4]
        assert result.num_logical_experts == 3
        assert result.layer_ids is not None
        assert result.layer_ids.tolist() == [3, 4]

    @pytest.mark.parametrize(
        ("changes", "slots"),
        [
            ({"num_ranks": 4}, [1, 1, 1, 1]),
            ({"num_ranks": None, "slots_per_rank": 2}, [2, 2]),
            ({"slots_per_rank": 2}, [2, 2]),
            ({"slots_per_rank": [3, 1]}, [3, 1]),
            ({"num_ranks": None, "slots_per_rank": [1, 3]}, [1, 3]),
            ({"num_ranks": None, "slots_per_rank": [0, 3, 1]}, [0, 3, 1]),
        ],
    )
    def test_slots_are_said_by_ranks_or_one_by_one(self, changes, slots):
        """`num_ranks` makes equal ranks; `slots_per_rank` is one number or one per rank, even none."""
        result, findings = parse_placement(text(**changes), "p.json")
        assert findings == []
        assert result is not None
        assert result.slots_per_rank.tolist() == slots

    def test_hints_fill_what_is_left_out(self):
        """Ranks, experts and layer numbers may all come from elsewhere."""
        hints = Hints(num_ranks=2, num_logical_experts=5, layer_ids=np.array([7, 8]))
        data = text(num_ranks=None, num_logical_experts=None, layer_ids=None)
        result, findings = parse_placement(data, "p.json", hints)
        assert findings == []
        assert result is not None
        assert same(result, placement([[0, 1, 2, 0], [2, -1, 0, 1]], 2, 5, [7, 8]))

    def test_hinted_slots_may_be_uneven(self):
        """Slots of each rank, as the checkpoint shows them, stand in for both keys."""
        hints = Hints(slots_per_rank=np.array([3, 1]))
        result, findings = parse_placement(text(num_ranks=None), "p.json", hints)
        assert findings == []
        assert result is not None
        assert result.first_slot.tolist() == [0, 3, 4]

    def test_a_file_may_name_fewer_layers_than_the_checkpoint_has(self):
        """Layers that the placement does not name are no contradiction."""
        assert findings_of(text(), Hints(layer_ids=np.array([3, 4, 5]))) == []

    def test_a_byte_order_mark_is_skipped(self):
        """Some editors write one."""
        assert findings_of(b"\xef\xbb\xbf" + text()) == []

    @pytest.mark.parametrize("name", sorted(map(str, [*DATA.rglob("old.json"), *DATA.rglob("new.json")])))
    def test_files_beside_real_shards_are_good(self, name):
        """The placements that vLLM's shards came with are read without a finding."""
        assert read_placement(name)[1] == []

    def test_a_link_to_a_file_is_followed(self, tmp_path):
        """A placement is often a link to the current one."""
        (tmp_path / "p.json").write_bytes(text())
        (tmp_path / "link").symlink_to("p.json")
        assert read_placement(str(tmp_path / "link"))[0].num_ranks == 2

    def test_a_file_that_is_called_like_a_map_needs_a_slash(self, tmp_path, monkeypatch):
        """`./linear` is a file, `linear` is not."""
        monkeypatch.chdir(tmp_path)
        Path("linear").write_bytes(text())
        assert read_placement("./linear")[0].num_slots == 4
        assert read_placement("linear", Hints(num_ranks=2, num_logical_experts=6))[0].num_slots == 6


class TestWriting:
    def test_a_layer_is_a_line(self):
        """The text is the design's: a key a line, then a layer a line."""
        result = format_placement(placement([[0, 1, 2], [2, 1, 0]], None, 3, [3, 4], [2, 1]))
        assert result == (
            '{"format": "eplb-placement/1",\n "num_ranks": 2,\n "slots_per_rank": [2, 1],\n'
            ' "num_logical_experts": 3,\n "layer_ids": [3, 4],\n "physical_to_logical_map": [\n'
            "  [0, 1, 2],\n  [2, 1, 0]]}\n"
        )

    @given(placements())
    def test_what_is_written_is_read_back(self, original):
        """Every placement survives its own file, and its own JSON."""
        result, findings = parse_placement(format_placement(original).encode(), "p.json")
        assert findings == []
        assert result is not None
        assert same(result, original)
        assert same(placement_from_json(placement_to_json(original), "p.json"), original)


BAD = [
    # What is changed, and code, line, layer, slot and message of the only finding.
    ({"format": "eplb-placement/2"}, "EP103", 1, None, None, '"format" is "eplb-placement/2", not'),
    ({"format": None}, "EP103", None, None, None, '"format" is missing'),
    ({"physical_to_logical_map": None}, "EP103", None, None, None, "is missing"),
    ({"physical_to_logical_map": "x"}, "EP104", 5, None, None, "not a list of layers"),
    ({"physical_to_logical_map": []}, "EP104", 5, None, None, "has 0 layers"),
    ({"physical_to_logical_map": [[0]] * 10_001}, "EP104", 5, None, None, "has 10,001 layers"),
    (
        {"physical_to_logical_map": [[0, 1], [0]]},
        "EP104",
        5,
        4,
        None,
        "layer 4 has 1 slots; the first layer has 2",
    ),
    ({"physical_to_logical_map": [5, [0]]}, "EP104", 5, 3, None, "layer 3 is 5 instead of a list"),
    (
        {"physical_to_logical_map": [[[0]], [0]]},
        "EP104",
        5,
        3,
        0,
        "layer 3, slot 0: a list is not an integer",
    ),
    (
        {"physical_to_logical_map": [[0, 1, 2, 0], [1, 2.0, 0, 1]]},
        "EP104",
        5,
        4,
        1,
        "slot 1: 2.0 is not an integer",
    ),
    ({"physical_to_logical_map": [[0, True], [0, 1]]}, "EP104", 5, 3, 1, "slot 1: true is not"),
    (
        {"physical_to_logical_map": [["0", "1"], [0, 1]]},
        "EP104",
        5,
        3,
        0,
        '"0" is not an integer; 1 more like it',
    ),
    ({"physical_to_logical_map": [[0, None], [0, 1]]}, "EP104", 5, 3, 1, "slot 1: null is not"),
    ({"physical_to_logical_map": [[0, float("nan")], [0, 1]]}, "EP104", 5, 3, 1, "slot 1: NaN is not"),
    ({"physical_to_logical_map": [[0, float("-inf")], [0, 1]]}, "EP104", 5, 3, 1, "slot 1: -Infinity is not"),
    (
        {"physical_to_logical_map": [[0, 3], [0, 1]]},
        "EP105",
        5,
        3,
        1,
        "slot 1: 3 is not an expert from 0 to 2",
    ),
    (
        {"physical_to_logical_map": [[0, 1], [-2, -3]]},
        "EP105",
        5,
        4,
        0,
        "slot 0: -2 is not an expert from 0 to 2",
    ),
    (
        {"physical_to_logical_map": [[0, 2**63], [0, 1]]},
        "EP105",
        5,
        3,
        1,
        "slot 1: 9223372036854775808 is not",
    ),
    ({"num_logical_experts": 0}, "EP103", 3, None, None, "is 0, not from 1 to 1,000,000"),
    ({"num_logical_experts": 10**15}, "EP103", 3, None, None, "is 1000000000000000, not from 1"),
    ({"num_logical_experts": "3"}, "EP103", 3, None, None, 'is "3", not an integer'),
    ({"num_ranks": 0}, "EP108", 2, None, None, "4 slots do not divide over 0 ranks"),
    ({"num_ranks": 3}, "EP108", 2, None, None, "4 slots do not divide over 3 ranks"),
    ({"num_ranks": 8}, "EP108", 2, None, None, "4 slots do not divide over 8 ranks"),
    ({"num_ranks": -2}, "EP108", 2, None, None, "4 slots do not divide over -2 ranks"),
    ({"num_ranks": 2.0}, "EP103", 2, None, None, '"num_ranks" is 2.0, not an integer'),
    ({"num_ranks": None}, "EP103", None, None, None, 'neither "num_ranks" nor "slots_per_rank"'),
    ({"slots_per_rank": 3}, "EP108", 6, None, None, "is 3, which does not divide 4 slots"),
    ({"slots_per_rank": 0}, "EP108", 6, None, None, "is 0, which does not divide"),
    ({"slots_per_rank": 1}, "EP108", 6, None, None, '"num_ranks" is 2, but "slots_per_rank" is of 4 ranks'),
    ({"slots_per_rank": [2, 1]}, "EP108", 6, None, None, "makes 3 slots; the map has 4"),
    ({"slots_per_rank": [5, -1]}, "EP108", 6, None, None, "has 5, which is no number of slots from 0 to 4"),
    ({"slots_per_rank": [4] + [0] * 10**6, "num_ranks": None}, "EP108", 5, None, None, "1,000,001 ranks are"),
    ({"slots_per_rank": "2"}, "EP103", 6, None, None, "neither a number nor a list"),
    ({"layer_ids": {}}, "EP103", 4, None, None, '"layer_ids" is an object, not a list'),
    ({"layer_ids": [3]}, "EP103", 4, None, None, "has 1 numbers for a map of 2 layers"),
    ({"layer_ids": [3, 3]}, "EP103", 4, None, None, "names a layer more than once"),
    ({"layer_ids": [3, -4]}, "EP103", 4, None, None, "has -4, which is no layer number"),
    ({"layer_ids": [3, 2**80]}, "EP103", 4, None, None, "which is no layer number"),
]


class TestBadContent:
    @pytest.mark.parametrize(("changes", "code", "line", "layer", "slot", "message"), BAD)
    def test_what_is_wrong_is_found_where_it_is(self, changes, code, line, layer, slot, message):
        """One mistake is one finding, with its code, its line, its layer and its slot."""
        finding = only_finding(text(**changes))
        assert (finding.code, finding.line, finding.layer, finding.slot) == (code, line, layer, slot)
        assert message in finding.message
        assert finding.severity == "error"

    @pytest.mark.parametrize(
        ("data", "line", "message"),
        [
            (b"", 1, "expecting value at column 1"),
            (b'{"format": 1,\n "num_ranks" 4}', 2, "expecting ':' delimiter at column 14"),
            (b"{}{}", 1, "extra data at column 3"),
            (b"[" * 200_000, None, "nest too deeply"),
            (b'{"a":' * 200_000, None, "nest too deeply"),
            (b'{"a":\n"\xff"}', 2, "not UTF-8 text: byte 7"),
            ("{}".encode("utf-16"), 1, "not UTF-8 text: byte 0"),
            (b"[" + b"0," * (1 << 22) + b"0]", None, "more than 4,194,304 values"),
        ],
    )
    def test_what_is_no_json_is_refused(self, data, line, message):
        """EP102 says line and column, in bounded time and memory whatever the text."""
        finding = only_finding(data)
        assert (finding.code, finding.line) == ("EP102", line)
        assert message in finding.message

    @pytest.mark.parametrize("data", [b"[]", b"3", b'"x"', b"null"])
    def test_json_of_another_kind_is_no_placement(self, data):
        """The outermost value is an object."""
        assert only_finding(data).code == "EP103"

    @pytest.mark.parametrize("digits", [20, 4_301, 100_000])
    def test_an_integer_of_any_length_is_an_id_out_of_range(self, digits):
        """Longer integers than Python converts are found in their slot, and quoted in part."""
        data = text(physical_to_logical_map=[[0, 1], [2, 77]]).replace(b"77", b"7" * digits)
        finding = only_finding(data)
        assert (finding.code, finding.layer, finding.slot, finding.line) == ("EP105", 4, 1, 5)
        assert len(finding.message) < 150

    def test_a_key_may_be_there_once(self):
        """Which of two values counts is nobody's guess."""
        finding = only_finding(text().replace(b'{"format"', b'{"num_ranks": 4,\n"format"'))
        assert (finding.code, finding.line) == ("EP102", 3)
        assert finding.message == 'more than once in one object: "num_ranks"'

    def test_an_unknown_key_is_a_warning(self):
        """A file may carry notes; a misspelt key is noticed, control characters and all."""
        finding = only_finding(text(**{"layer_id": 1, "\n\x1b[31m": 2, "n": {"n": []}}))
        assert (finding.code, finding.severity, finding.line) == ("EP103", "warning", 6)
        assert finding.message == 'ignored, because unknown: "layer_id", "\\n\\u001b[31m", "n"'

    def test_many_unknown_keys_are_counted(self):
        """A message is short however many keys there are."""
        finding = only_finding(text(**{f"k{number}": 0 for number in range(1_000)}))
        assert finding.message.endswith('"k4" and 995 more')

    def test_rows_are_found_on_their_own_lines(self):
        """The line of a finding is the one on which its layer begins, in any arrangement of the file."""
        rows = ',\n\n "note": "[[],",\n "physical_to_logical_map": [[0, 1],\n [1,\n 0], [9, 9],\n [9,\n 0]]}'
        data = json.dumps(content(layer_ids=None, physical_to_logical_map=None))[:-1] + rows
        assert [(f.code, f.line, f.layer) for f in findings_of(data.encode())] == [
            ("EP103", 3, None),
            ("EP105", 6, 2),
            ("EP105", 7, 3),
        ]

    def test_one_mistake_does_not_hide_another(self):
        """Format, experts, layer numbers, ids of two layers and ranks are all found in one go."""
        bad = text(
            format="x",
            num_ranks=3,
            num_logical_experts=0,
            layer_ids=[1],
            physical_to_logical_map=[[-2, 0], [0, -9]],
        )
        codes = ["EP103", "EP103", "EP103", "EP105", "EP105", "EP108"]
        assert [finding.code for finding in findings_of(bad)] == codes

    def test_without_layer_numbers_a_layer_is_its_index(self):
        """Messages name the model's own layers only where they are known."""
        assert only_finding(text(layer_ids=None, physical_to_logical_map=[[0], [5]], num_ranks=1)).layer == 1

    @pytest.mark.parametrize("depth", range(900, 1000, 7))
    def test_deep_nesting_is_no_crash(self, depth):
        """Values of any depth are either passed over or refused."""
        data = text()[:-1] + b', "note": ' + b"[" * depth + b"]" * depth + b"}"
        assert [finding.code for finding in findings_of(data)] in (["EP103"], ["EP102"])


class TestNumberOfExperts:
    def test_a_guess_is_a_warning(self):
        """Without any source E is the largest id + 1."""
        result, findings = parse_placement(text(num_logical_experts=None), "p.json")
        assert result is not None
        assert result.num_logical_experts == 3
        assert [(finding.code, finding.severity) for finding in findings] == [("EP111", "warning")]

    def test_a_guess_is_bounded(self):
        """An absurd id is an error, not an absurd number of experts."""
        data = text(num_logical_experts=None, physical_to_logical_map=[[0, 1_000_000], [0, 1]])
        assert only_finding(data).code == "EP105"

    def test_empty_layers_have_one_expert(self):
        """With nothing but empty slots there is still an expert to miss."""
        result, _ = parse_placement(
            text(num_logical_experts=None, physical_to_logical_map=[[-1], [-1]], num_ranks=1), "p"
        )
        assert result is not None
        assert result.num_logical_experts == 1


class TestContradictions:
    @pytest.mark.parametrize(
        ("hints", "changes", "code", "message"),
        [
            (
                Hints(num_logical_experts=4),
                {},
                "EP109",
                "is 3; OLD, the checkpoint or the command line says 4",
            ),
            (Hints(layer_ids=np.array([3, 5])), {}, "EP109", '"layer_ids" has 4, a layer unknown to OLD'),
            (Hints(layer_ids=np.array([3])), {"layer_ids": None}, "EP109", "has 2 layers; OLD"),
            (Hints(num_layers=58), {"layer_ids": None}, "EP109", "says 58"),
            (Hints(num_ranks=4), {}, "EP108", "has 2 ranks; OLD, the checkpoint or the command line says 4"),
            (Hints(slots_per_rank=np.array([3, 1])), {}, "EP108", "rank 0 has 2 slots; OLD"),
            (Hints(slots_per_rank=np.array([2, 1, 1])), {}, "EP108", "has 2 ranks; OLD"),
            (Hints(slots_per_rank=np.array([2, 3])), {"num_ranks": None}, "EP108", "has 4 slots; OLD"),
            (Hints(num_ranks=3), {"num_ranks": None}, "EP108", "4 slots do not divide over 3 ranks"),
            (Hints(1, np.array([2, 2])), {"num_ranks": None}, "EP108", "has 2 ranks; OLD"),
        ],
    )
    def test_what_the_file_says_has_to_agree(self, hints, changes, code, message):
        """A file is never overruled in silence, and never overrules."""
        finding = only_finding(text(**changes), hints)
        assert finding.code == code
        assert message in finding.message


class TestFiles:
    def test_the_first_error_is_raised(self, tmp_path):
        """`read_placement` names file and line, and counts the rest."""
        path = tmp_path / "p.json"
        path.write_bytes(text(num_ranks=3, physical_to_logical_map=[[0, 7], [9, 9]]))
        message = (
            re.escape(f"{path}:5: layer 3, slot 1: 7 is not an expert from 0 to 2") + r".* \(and 2 more\)$"
        )
        with pytest.raises(PlacementError, match=message) as caught:
            read_placement(str(path))
        assert caught.value.code == "EP105"

    @pytest.mark.parametrize("name", ["missing.json", "", "nul\0", "directory", "/dev/null", "fifo"])
    def test_what_is_no_regular_file_is_not_read(self, tmp_path, monkeypatch, name):
        """EP101 at once: a pipe is not waited for."""
        monkeypatch.chdir(tmp_path)
        Path("directory").mkdir()
        os.mkfifo("fifo")
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        with pytest.raises(PlacementError) as caught:
            read_placement(name)
        assert caught.value.code == "EP101"
        assert len(list(Path("/proc/self/fd").iterdir())) == descriptors

    def test_a_huge_file_is_not_read(self, tmp_path):
        """Its size is looked at first."""
        path = tmp_path / "p.json"
        path.touch()
        os.truncate(path, MAX_FILE_NBYTES + 1)
        with pytest.raises(PlacementError, match="67,108,865 bytes; more than 67,108,864 are not read"):
            read_placement(str(path))

    def test_a_read_error_is_coded(self, tmp_path, monkeypatch):
        """An error of the storage is EP101 with the system's words."""
        path = tmp_path / "p.json"
        path.write_bytes(text())

        def fail(operation, call, *args):
            if operation == "read":
                raise OSError(5, "Input/output error")
            return call(*args)

        monkeypatch.setattr(files, "attempt", fail)
        with pytest.raises(PlacementError, match=r"p\.json cannot be read: Input/output error"):
            read_placement(str(path))

    def test_json_from_elsewhere_is_checked_like_a_file(self):
        """A manifest's placement is no more trusted than a file."""
        with pytest.raises(PlacementError, match=r"^eplb\.json: layer 3, slot 1: 9 is not"):
            placement_from_json(content(physical_to_logical_map=[[0, 9], [0, 1]]), "eplb.json")


SPLICES = st.sampled_from(
    [
        b"",
        b"-",
        b"1e9",
        b"[",
        b"]",
        b"{}",
        b'"',
        b",",
        b"null",
        b"NaN",
        b"99999999999999999999",
        b"\xff",
        b"\\u",
    ]
)


class TestMutations:
    @given(st.data())
    def test_no_text_gets_further_than_a_finding(self, data):
        """Whatever is cut out of a file or put into it, the answer is a placement or errors."""
        original = text()
        begin = data.draw(st.integers(0, len(original)))
        end = data.draw(st.integers(begin, min(begin + 8, len(original))))
        findings_of(original[:begin] + data.draw(SPLICES | st.binary(max_size=4)) + original[end:])

    @given(
        st.dictionaries(
            st.sampled_from(sorted(content())) | st.text(max_size=3),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
                lambda values: (
                    st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=2), values, max_size=2)
                ),
            ),
        )
    )
    @example({"slots_per_rank": [10**4299] * 20})
    @example({"layer_ids": ["\ud800", 4]})
    def test_no_value_gets_further_than_a_finding(self, changes):
        """Whatever a key is set to, the answer is a placement or errors that can be printed."""
        for finding in findings_of(json.dumps({**content(), **changes}).encode()):
            assert finding.message.isprintable()
            assert len(finding.message) < 500


def test_rows_without_numbers_are_in_the_order_of_old():
    """Also where OLD has a layer behind the model's own, which NEW leaves out: never in another order."""
    model = Model("it", 12, (2, 10, 11), (12,), 2)
    said = {"format": "eplb-placement/1", "num_ranks": 1, "physical_to_logical_map": [[0, 1], [1, 0], [0, 1]]}
    hints = Hints(num_logical_experts=2, layer_ids=np.array([11, 2, 10, 12]), model=model)
    found, _ = parse_placement(json.dumps(said).encode(), "p.json", hints)
    assert found is not None
    assert found.layer_ids is not None
    assert found.layer_ids.tolist() == [11, 2, 10]
