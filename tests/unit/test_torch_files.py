"""Files that torch has saved: maps and loads, from strangers."""

from __future__ import annotations

import io
import pickle
import zipfile

import pytest

from eplb_cli.formats.budget import MAX_FILE_NBYTES, NotReadableError
from eplb_cli.formats.document import parse_document
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.read import parse_placement, read_placement

torch = pytest.importorskip("torch")


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


def test_a_map_of_tensors(tmp_path):
    """What SGLang saves: one key, int64."""
    path = tmp_path / "map.pt"
    path.write_bytes(saved({"physical_to_logical_map": torch.tensor([[0, 1, 1, 0]])}))
    result, findings = read_placement(str(path), Hints(2, None, 2, dialect="vllm"))
    assert findings == []
    assert result.physical_to_logical.tolist() == [[0, 1, 1, 0]]


def test_the_triple_of_deepseek(tmp_path):
    """A tuple of three tensors."""
    path = tmp_path / "map.pt"
    maps = (torch.tensor([[0, 1, 0]]), torch.tensor([[[0, 2], [1, -1]]]), torch.tensor([[2, 1]]))
    path.write_bytes(saved(maps))
    result, findings = read_placement(str(path), Hints(3, dialect="deepseek"))
    assert findings == []
    assert result.num_logical_experts == 2


def test_nothing_but_tensors_is_unpickled(tmp_path):
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
def test_what_is_no_file_of_torch(data, monkeypatch):
    """Old formats too: only archives, whose sizes can be known, come as far as torch."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch has looked at it"))
    assert problem("x.pt", data).message == "not a file that torch.save wrote since version 1.6"


def test_packed_bytes_are_counted_before_they_are_unpacked():
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
def test_tensors_without_their_own_bytes(value, says):
    """One element can pretend to be many, and in many tensors; sparse and empty ones hold no map."""
    assert says in problem("x.pt", saved(value)).message


def test_lists_that_are_the_same_list():
    """Counted as often as they are there: a few bytes could say a thousand million of them."""
    value: list[object] = []
    for _ in range(9):
        value = [value] * 10
    assert "too many" in problem("x.pt", saved(value)).message


def test_halves_are_numbers_too():
    """A load may be saved in bfloat16."""
    value = parse_document("x.pt", saved([torch.tensor([1.5], dtype=torch.bfloat16)])).value
    assert value[0].tolist() == [1.5]
