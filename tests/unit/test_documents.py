"""Files of placements and loads: YAML, JSON lines and arrays, from strangers."""

from __future__ import annotations

import io

import numpy as np
import pytest

from eplb_cli.errors import PlacementError
from eplb_cli.formats.budget import NotReadableError
from eplb_cli.formats.document import parse_document
from eplb_cli.placements.read import parse_placement, read_placement


def problem(name: str, data: bytes) -> NotReadableError:
    """Why a file cannot be read."""
    with pytest.raises(NotReadableError) as caught:
        parse_document(name, data)
    return caught.value


class TestYaml:
    def test_flow_and_block_are_the_same(self):
        """Integers are integers, other plain words are words."""
        block = b"a:\n  3:\n  - 1\n  - -1\nb: 0x10\nc: '7'\nd:\ne: 1_0\n"
        flow = b'{a: {3: [1, -1]}, b: 0x10, c: "7", d: ~, e: 1_0}'
        expected = {"a": {3: [1, -1]}, "b": "0x10", "c": "7", "d": None, "e": "1_0"}
        assert parse_document("x.yaml", block).value == expected
        assert parse_document("x.yml", flow).value == expected

    @pytest.mark.parametrize(
        ("data", "says", "line"),
        [
            (b"a: &x [1]\nb: [*x, *x]\n", "aliases", 2),
            (b"&x [*x]", "aliases", 1),
            (b"a: 1\na: 2\n", "'a' is there more than once", 2),
            (b"[" * 50 + b"]" * 50, "nests too deeply", 1),
            (b"[" * 100_000, "nest", 1),  # PyYAML 6.0.4 sees it before we do
            (b"a: [1\n", "not well-formed YAML", 2),
            (b"a: 1\n--- \nb: 2\n", "not well-formed YAML", 2),
            (b"? [1]\n: 2\n", "a key is no word or number", 1),
            (b"a: \xff\xfe", "not well-formed YAML", None),
        ],
    )
    def test_what_is_not_read(self, data, says, line):
        """Aliases, repeated keys, depth and nonsense, with the line where that is known."""
        found = problem("x.yaml", data)
        assert says in found.message
        assert found.line in {line, None}

    def test_a_tag_makes_no_object(self):
        """A tag is not obeyed: the value is the text."""
        value = parse_document("x.yaml", b"a: !!python/object/apply:os.system ['true']").value
        assert value == {"a": ["true"]}

    def test_a_broken_file_is_a_coded_error(self):
        """EP102, with the line."""
        _, [finding] = parse_placement(b"a: 1\na: 2\n", "p.yaml")
        assert (finding.code, finding.line) == ("EP102", 2)


class TestJsonLines:
    def test_a_line_is_a_value(self):
        """Empty lines are none."""
        assert parse_document("x.jsonl", b'{"a": 1}\n\n[2]\n').value == [{"a": 1}, [2]]

    @pytest.mark.parametrize(
        ("data", "line"), [(b'{"a": 1}\n{"a"', 2), (b'[]\n[]\n{"a": 1, "a": 2}', 3), (b"\n" * 200_000, None)]
    )
    def test_a_bad_line_is_named(self, data, line):
        """Malformed, with a key twice, or too many of them."""
        assert problem("x.jsonl", data).line == line


def test_an_array_is_never_unpickled():
    """.npy with objects in it."""
    stream = io.BytesIO()
    np.save(stream, np.array([{}], object))
    assert "not an array" in problem("x.npy", stream.getvalue()).message


def test_a_file_that_is_not_there(tmp_path):
    """EP101 whatever the suffix."""
    with pytest.raises(PlacementError) as caught:
        read_placement(str(tmp_path / "p.yaml"))
    assert caught.value.code == "EP101"
