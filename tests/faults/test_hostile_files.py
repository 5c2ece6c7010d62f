"""Every reader of a file from elsewhere, and every hostile file: a coded error, and bounded memory."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from eplb_cli.checkpoint.layout_file import read_layout
from eplb_cli.checkpoint.manifest import read_digests, read_manifest
from eplb_cli.errors import EplbError
from eplb_cli.formats.budget import MEMORY_FACTOR, SMALL_NBYTES
from eplb_cli.formats.safetensors_header import read_header
from eplb_cli.huggingface.record import read_origin
from eplb_cli.huggingface.reordered import read_baked
from eplb_cli.huggingface.source import config_of, open_huggingface
from eplb_cli.inputs.saved_plan import read_plan
from eplb_cli.models.config import config_beside, read_model
from eplb_cli.models.load import read_load
from eplb_cli.models.preset import read_preset
from eplb_cli.placements.read import read_placement
from tests.cli.tree import tensor, write_shard

NUM_TINY = 1_000_000
MOST_NBYTES = (2 * MEMORY_FACTOR + 5) * SMALL_NBYTES
"""What is built of a small file, and once more to find the lines of findings; its content and its text."""


class Reader(NamedTuple):
    """A reader, the name of its file, and the codes of its refusals. `read(path)` has the file at path."""

    read: Callable[[Path], object]
    name: str
    codes: set[str]


def read_index(path: Path) -> object:
    """A Hugging Face checkpoint whose only other file is one of tensors."""
    write_shard(path.parent / "model-00001-of-00001.safetensors", {"a": tensor("U8", (1,), "a")})
    return open_huggingface(path.parent)


def read_quantized(path: Path) -> object:
    """The model of a config.json that has the file beside it."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "dtype": "bfloat16"}
    config = {"model_type": "mixtral", "num_hidden_layers": 2, "num_local_experts": 8, **sizes}
    (path.parent / "config.json").write_text(json.dumps(config))
    found = read_model(path.parent / "config.json")
    if found.expert_nbytes is None:
        raise EplbError("EP118", "says no sizes")
    return found


def read_vocabulary(path: Path) -> object:
    """A config.json beside shards is only looked at for numbers: what cannot be read says none."""
    config = config_beside(path.parent)
    found = config and config.vocab_size
    if found is None:
        raise EplbError("EP201", "says nothing")
    return found


def read_statistics_file(path: Path) -> object:
    """A directory of loads in which one file is not ours."""
    (path.parent / "meta_info.json").write_text('{"num_experts": 4}')
    return read_load(str(path.parent))


TREE = {"EP201", "EP204"}
PLACEMENT = {f"EP{number}" for number in (101, 102, 103, 104, 105, 116)}
READERS = {
    "placement.json": Reader(lambda path: read_placement(str(path)), "p.json", PLACEMENT),
    "placement.jsonl": Reader(lambda path: read_placement(str(path)), "p.jsonl", PLACEMENT),
    "placement.yaml": Reader(lambda path: read_placement(str(path)), "p.yaml", PLACEMENT),
    "placement.npy": Reader(lambda path: read_placement(str(path)), "p.npy", PLACEMENT),
    "placement.pt": Reader(lambda path: read_placement(str(path)), "p.pt", PLACEMENT),
    "load.json": Reader(lambda path: read_load(str(path)), "l.json", {"EP101", "EP119"}),
    "load.npy": Reader(lambda path: read_load(str(path)), "l.npy", {"EP101", "EP119"}),
    "load.pt": Reader(lambda path: read_load(str(path)), "l.pt", {"EP101", "EP119"}),
    "load.csv": Reader(lambda path: read_load(str(path)), "l.csv", {"EP101", "EP119"}),
    "load directory": Reader(
        lambda path: read_load(str(path.parent)), "meta_info.json", {"EP101", "EP119"} | TREE
    ),
    "load statistics": Reader(read_statistics_file, "rank0.safetensors", {"EP119", "EP203"} | TREE),
    "preset": Reader(read_preset, "m.toml", {"EP118"}),
    "model config": Reader(read_model, "config.json", {"EP118"}),
    "model quantization": Reader(read_quantized, "hf_quant_config.json", {"EP118"}),
    "model index": Reader(read_quantized, "model.safetensors.index.json", {"EP118"}),
    "vocabulary": Reader(read_vocabulary, "config.json", {"EP201"}),
    "checkpoint config": Reader(lambda path: config_of(path.parent), "config.json", {"EP223"} | TREE),
    "layout": Reader(read_layout, "l.toml", {"EP206"} | TREE),
    "manifest": Reader(lambda path: read_manifest(path.parent), "eplb.json", {"EP214"} | TREE),
    "row digests": Reader(
        lambda path: read_digests(path.parent, 0, (1, 1, 1)), "eplb-digests-rank-0.npy", {"EP214"} | TREE
    ),
    "header": Reader(read_header, "s.safetensors", {"EP203"} | TREE),
    "index": Reader(read_index, "model.safetensors.index.json", {"EP223"} | TREE),
    "record": Reader(lambda path: read_origin(path.parent), "eplb-huggingface.json", {"EP225"} | TREE),
    "baked map": Reader(lambda path: read_baked(path.parent), "eplb.json", {"EP226"} | TREE),
    "saved plan": Reader(read_plan, "plan.json", {"EP303"} | TREE),
}


def npy(shape: str) -> bytes:
    """The beginning of a .npy file that claims a shape."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (1,)})
    return stream.getvalue().replace(b"(1,)", shape.encode())[: len(stream.getvalue())]


CONTENTS = {
    "nothing": b"",
    "zeros": bytes(1 << 20),
    "lists that nest": b"[" * 200_000,
    "lists that nest and end": b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}",
    "objects that nest": b'{"a":' * 200_000,
    "keys with dots": b".".join([b"a"] * 5_000) + b" = 1",
    "a million lists": b'{"a": [' + b"[]," * NUM_TINY + b"[]]}",
    "a million objects": b'{"a": [' + b"{}," * NUM_TINY + b"{}]}",
    "a million words": b'{"a": [' + b'"ab",' * NUM_TINY + b'"ab"]}',
    "a million keys": b"{" + b",".join(b'"%x":0' % key for key in range(NUM_TINY)) + b"}",
    "a million floats": b'{"a": [' + b"0.5," * NUM_TINY + b"1.5]}",
    "a list of lists": b"[" + b"[]," * NUM_TINY + b"[]]",
    "a huge integer": b'{"format": ' + b"9" * 100_000 + b"}",
    "a huge exponent": b'{"format": 1e999999}',
    "a key twice": b'{"format": 1, "format": 2}',
    "NaN": b'{"format": NaN}',
    "no UTF-8": b'{"format": "\xff\xfe"}',
    "half a character": b'{"format": "\\ud800"}',
    "one wide character": b'{"format": "' + b"a" * (4 << 20) + "\U0001f600".encode() + b'"}',
    "an array beyond memory": npy("(1<<9,)") + bytes(16),
    "an array that claims much": npy("(9999999999999,)"),
    "an array of a negative size": npy("(-1,)"),
}


def memory_nbytes(name: str) -> int:
    """A line of the system's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def refusal(reader: Reader, path: Path, *, may_be_read: bool = False) -> None:
    """A reader refuses a file, or has no use for what is odd in it, and within bounded memory."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory_nbytes("VmRSS")
    error = None
    try:
        reader.read(path)
    except EplbError as caught:
        error = caught
    assert memory_nbytes("VmHWM") - before < MOST_NBYTES
    assert may_be_read or error is not None
    if error is not None:
        assert error.code in reader.codes, error
        assert len(error.message) < len(str(path)) + 700


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("reader", READERS)
def test_hostile_content(tmp_path, watchdog, reader, content):
    """Refused with one of the reader's own codes."""
    watchdog()
    path = tmp_path / READERS[reader].name
    data = CONTENTS[content]
    if reader == "header":
        data = len(data).to_bytes(8, "little") + data
    path.write_bytes(data)
    refusal(READERS[reader], path, may_be_read=reader == "checkpoint config")


def sparse(path: Path) -> None:
    """A file of a GiB without any blocks."""
    path.touch()
    os.truncate(path, 1 << 30)


KINDS: dict[str, Callable[[Path], object]] = {
    "a sparse GiB": sparse,
    "a fifo": os.mkfifo,
    "a directory": Path.mkdir,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_hostile_kinds_of_files(tmp_path, watchdog, reader, kind):
    """Refused at once, and nothing is read of it."""
    watchdog()
    path = tmp_path / READERS[reader].name
    KINDS[kind](path)
    is_left_behind = (reader, kind) == ("index", "a directory")  # as every directory in a checkpoint
    refusal(READERS[reader], path, may_be_read=is_left_behind)


def test_the_readers_read():
    """What is refused above is refused for what it is: an ordinary text of each form is none of that."""
    from eplb_cli.formats.reading import json_value

    value = {"a": [[1, 2.5, None], {"b": "c"}]}
    assert json_value(json.dumps(value).encode(), 1 << 20, lambda reason: EplbError("EP101", reason)) == value
