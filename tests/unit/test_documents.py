"""Files of placements and loads: YAML, JSON lines and tensors, from strangers."""

from __future__ import annotations

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch

from eplb_cli.errors import PlacementError
from eplb_cli.formats.budget import MAX_FILE_NBYTES, NotReadableError
from eplb_cli.formats.document import parse_document
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.read import parse_placement, read_placement


def problem(name: str, data: bytes) -> NotReadableError:
    """Why a file cannot be read."""
    with pytest.raises(NotReadableError) as caught:
        parse_document(name, data)
    return caught.value


def saved(value: object) -> bytes:
    """What torch.save writes."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


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
            (b"[" * 100_000, "nests too deeply", 1),
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


class TestTensors:
    def test_a_map_of_tensors(self, tmp_path):
        """What SGLang saves: one key, int64."""
        path = tmp_path / "map.pt"
        path.write_bytes(saved({"physical_to_logical_map": torch.tensor([[0, 1, 1, 0]])}))
        result, findings = read_placement(str(path), Hints(2, None, 2, dialect="vllm"))
        assert findings == []
        assert result.physical_to_logical.tolist() == [[0, 1, 1, 0]]

    def test_the_triple_of_deepseek(self, tmp_path):
        """A tuple of three tensors."""
        path = tmp_path / "map.pt"
        maps = (torch.tensor([[0, 1, 0]]), torch.tensor([[[0, 2], [1, -1]]]), torch.tensor([[2, 1]]))
        path.write_bytes(saved(maps))
        result, findings = read_placement(str(path), Hints(3, dialect="deepseek"))
        assert findings == []
        assert result.num_logical_experts == 2

    def test_nothing_but_tensors_is_unpickled(self, tmp_path):
        """A file that would run code is refused, and has not run it."""
        flag = tmp_path / "flag"

        class Trap:
            def __reduce__(self):
                return (open, (str(flag), "w"))

        _, [finding] = parse_placement(saved({"physical_to_logical_map": Trap()}), "p.pt")
        assert finding.code == "EP102"
        assert not flag.exists()

    @pytest.mark.parametrize(
        "data",
        [b"", b"not a zip", pickle.dumps([1]), saved({"a": torch.zeros(2)})[:-30]],
        ids=["empty", "text", "pickle", "cut"],
    )
    def test_what_is_no_file_of_torch(self, data, monkeypatch):
        """Old formats too: only archives, whose sizes can be known, come as far as torch."""
        monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch has looked at it"))
        assert problem("x.pt", data).message == "not a file that torch.save wrote since version 1.6"

    def test_packed_bytes_are_counted_before_they_are_unpacked(self):
        """A zip archive may be a thousand times larger than it looks."""
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(MAX_FILE_NBYTES + 1))
        assert len(stream.getvalue()) < MAX_FILE_NBYTES // 100
        assert "bytes unpacked" in problem("x.pt", stream.getvalue()).message

    @pytest.mark.parametrize(
        ("value", "says"),
        [
            (torch.zeros(1).expand(1 << 25), "too many lists, objects or words"),
            ([torch.zeros(1).expand(1 << 20)] * 100, "too many lists, objects or words"),
            (torch.zeros(2, 2).to_sparse(), "a tensor is sparse"),
            (torch.zeros(2, device="meta"), "a tensor is of torch.float32"),
        ],
        ids=["expanded", "many expanded", "sparse", "meta"],
    )
    def test_tensors_without_their_own_bytes(self, value, says):
        """One element can pretend to be many, and in many tensors; sparse and empty ones hold no map."""
        assert says in problem("x.pt", saved(value)).message

    def test_lists_that_are_the_same_list(self):
        """Counted as often as they are there: a few bytes could say a thousand million of them."""
        value: list[object] = []
        for _ in range(9):
            value = [value] * 10
        assert "too many" in problem("x.pt", saved(value)).message

    def test_halves_are_numbers_too(self):
        """A load may be saved in bfloat16."""
        value = parse_document("x.pt", saved([torch.tensor([1.5], dtype=torch.bfloat16)])).value
        assert value[0].tolist() == [1.5]

    def test_an_array_is_never_unpickled(self):
        """.npy with objects in it."""
        stream = io.BytesIO()
        np.save(stream, np.array([{}], object))
        assert "not an array" in problem("x.npy", stream.getvalue()).message


def test_a_file_that_is_not_there(tmp_path):
    """EP101 whatever the suffix."""
    with pytest.raises(PlacementError) as caught:
        read_placement(str(tmp_path / "p.yaml"))
    assert caught.value.code == "EP101"
