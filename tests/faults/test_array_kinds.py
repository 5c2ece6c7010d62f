"""Arrays and tensors of every kind, as a placement and as a load: what they say, or a coded error."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from eplb_cli.errors import EplbError
from eplb_cli.models.load import read_load
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.read import parse_placement

ITEMS = [[0, 1], [1, 0]]

NUMPY = [
    *sorted({np.dtype(kind).str for kind in "?bBhHiIlLqQefdgFDG"}),
    *("S1", "U1", "V1", "V0", "S0", "U0", "O", "m8", "m8[s]", "M8[D]", ">i4", ">f8", ">c8", "i4,i4"),
]
"""Every kind that numpy has, and both orders of bytes."""


def torch_kinds() -> list[str]:
    """Every dtype that this torch has; none where it is not installed."""
    try:
        import torch
    except ImportError:
        return []
    return sorted({str(kind) for kind in vars(torch).values() if isinstance(kind, torch.dtype)})


def as_placement(name: str, data: bytes) -> list[str] | None:
    """The codes of its errors; None where it is a placement, which then is that of `ITEMS`."""
    placement, findings = parse_placement(data, name, Hints(2, None, 2))
    errors = [finding.code for finding in findings if finding.severity == "error"]
    assert (placement is None) == bool(errors)
    if placement is not None:
        assert placement.physical_to_logical.tolist() == ITEMS
    return errors or None


def as_load(path: Any, data: bytes) -> str | None:
    """The code of its error; None where it is a load, which then is that of `ITEMS`."""
    path.write_bytes(data)
    try:
        load = read_load(str(path))
    except EplbError as error:
        return error.code
    assert load.counts.tolist() == [ITEMS]
    return None


def npy(array: np.ndarray[Any, Any]) -> bytes:
    """A file, as numpy saves it; objects are pickled."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def array_of(kind: str) -> np.ndarray[Any, Any]:
    """`ITEMS` in this kind, or zeros where they cannot be."""
    try:
        return np.array(ITEMS).astype(kind)
    except (TypeError, ValueError):
        return np.zeros((2, 2), kind)


@pytest.mark.parametrize("kind", NUMPY)
def test_arrays_of_every_kind(tmp_path, kind):
    """Integers are experts, and numbers count; anything else is EP102 or EP104, and EP119."""
    array = array_of(kind)
    data, is_whole, is_number = npy(array), array.dtype.kind in "iu", array.dtype.kind in "iuf"
    errors = as_placement("x.npy", data)
    assert errors is None if is_whole else set(errors or ()) <= {"EP102", "EP104"} and errors
    assert as_load(tmp_path / "x.npy", data) == (None if is_number else "EP119")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", torch_kinds())
def test_tensors_of_every_kind(tmp_path, kind):
    """The same in a file of torch; kinds that cannot be made, saved or counted with are refused too."""
    torch = pytest.importorskip("torch")
    dtype = getattr(torch, kind.removeprefix("torch."))
    try:
        tensor = torch.tensor(ITEMS).to(dtype)
    except (RuntimeError, NotImplementedError, TypeError):
        tensor = None
    try:
        data = saved(torch.empty((2, 2), dtype=dtype) if tensor is None else tensor)
    except (RuntimeError, NotImplementedError, TypeError, KeyError):
        pytest.skip(f"no tensor of {kind} can be saved")
    is_number = tensor is not None and kind.removeprefix("torch.").rstrip("0123456789") in {
        *("int", "uint", "float", "bfloat")
    }
    is_whole = is_number and "int" in kind
    errors = as_placement("x.pt", data)
    assert errors is None if is_whole else set(errors or ()) <= {"EP102", "EP104"} and errors
    assert as_load(tmp_path / "x.pt", data) == (None if is_number else "EP119")


def saved(value: object) -> bytes:
    """What torch.save writes."""
    torch = pytest.importorskip("torch")
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


ODD: dict[str, Callable[[Any], object]] = {
    "conjugated": lambda torch: torch.ones(2, 2, dtype=torch.complex64).conj(),
    "negated": lambda torch: torch.full((2, 2), 1j, dtype=torch.complex64).conj().imag,
    "quantized": lambda torch: torch.quantize_per_tensor(torch.ones(2, 2), 1.0, 0, torch.qint8),
    "sparse": lambda torch: torch.ones(2, 2).to_sparse(),
    "sparse by rows": lambda torch: torch.ones(2, 2).to_sparse_csr(),
    "meta": lambda torch: torch.zeros(2, 2, dtype=torch.int64, device="meta"),
    "nested": lambda torch: torch.nested.nested_tensor([torch.ones(2), torch.ones(1)]),
    "beyond 2^63": lambda torch: torch.tensor([[-1, 0], [1, 0]]).view(torch.uint64),
    "no number": lambda torch: torch.tensor([[float("nan"), 0], [1, 0]]),
    "infinite": lambda torch: torch.tensor([[float("inf"), 0], [1, 0]]),
    "no dimension": lambda torch: torch.tensor(3),
    "complex numbers": lambda _: [[1j, 0]] * 2,
    "words": lambda _: [["a", "b"]] * 2,
    "bytes": lambda _: [[b"a", b"b"]] * 2,
    "booleans": lambda _: [[True, 0], [1, 0]],
    "booleans in a tensor": lambda torch: {"logical_count": torch.ones(2, 2, dtype=torch.bool)},
    "booleans beside numbers": lambda torch: [torch.ones(2, dtype=torch.bool), torch.ones(2)],
    "a dtype": lambda torch: torch.int8,
    "a device": lambda torch: torch.device("cpu"),
    "nothing": lambda _: None,
    "a map in complex numbers": lambda torch: {
        "format": "eplb-placement/1",
        "physical_to_logical_map": torch.ones(2, 2, dtype=torch.complex64),
    },
    "log2phy in words": lambda torch: {
        "phy2log": torch.tensor([[0, 1]]),
        "log2phy": [[["0"], ["1"]]],
        "logcnt": [[1, 1]],
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", ODD)
def test_odd_tensors_and_values(tmp_path, what):
    """Nothing that torch can save is a placement or a load by accident, or a traceback."""
    data = saved(ODD[what](pytest.importorskip("torch")))
    errors = as_placement("x.pt", data)
    assert errors
    assert set(errors) <= {"EP102", "EP103", "EP104", "EP105"}
    assert as_load(tmp_path / "x.pt", data) == "EP119"


def test_arrays_in_lists_are_read_wherever_they_are():
    """A number may be an array without a dimension, and a map of eplb's own may be a tensor."""
    torch = pytest.importorskip("torch")
    zero, one = torch.tensor(0), torch.tensor(1)
    assert as_placement("x.pt", saved([[zero, one], [one, zero]])) is None
    own = {"format": "eplb-placement/1", "num_ranks": 2, "physical_to_logical_map": torch.tensor(ITEMS)}
    assert as_placement("x.pt", saved(own)) is None


@pytest.mark.parametrize("value", [[[True, False]], [[True, 1], [2, 3]], [[2**70, 0]], [[None, 1]]])
def test_json_that_counts_nothing(tmp_path, value):
    """Booleans are no counts in JSON either."""
    assert as_load(tmp_path / "x.json", json.dumps(value).encode()) == "EP119"


def test_experts_of_a_record_are_no_booleans(tmp_path):
    """A p2l_map in which numpy would take true for expert 1."""
    record = {"record_type": "eplb_load_stats", "expert_load": [[1, 2]], "p2l_map": [[0, True]]}
    assert as_load(tmp_path / "x.jsonl", json.dumps(record).encode()) == "EP119"
