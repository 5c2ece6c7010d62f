"""100,000 damaged and hostile headers: each is one the safetensors library accepts as well, or EP203."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from random import Random

import pytest
from safetensors import deserialize

from eplb_cli.errors import CheckpointError
from eplb_cli.formats.safetensors_header import DTYPE_BITS, Header, read_header
from tests.support.mutations import mutate
from tests.support.scratch import scratch

NUM_CASES = 100_000
BATCH = 5_000
CORPUS = sorted((Path(__file__).parents[1] / "data" / "corpus" / "headers").iterdir())


def header(**tensors: tuple[str, list[int], int]) -> bytes:
    """The text of a header of tensors that follow one another: dtype, shape and bytes of each."""
    entries, position = {}, 0
    for name, (dtype, shape, nbytes) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + nbytes]}
        position += nbytes
    return json.dumps(entries).encode()


SEEDS = [
    b"{}",
    header(a=("U8", [], 1)),
    header(a=("F32", [2, 3], 24), b=("U8", [], 1), none=("BF16", [0, 7], 0)),
    header(x=("F4", [2, 4], 4), y=("F6_E2M3", [4], 3), z=("C64", [1, 1, 1], 8)),
    header(**{f"layers.{layer}.mlp.experts.w13_weight": ("BF16", [3, 4], 24) for layer in range(4)}),
    header(b=("I64", [2], 16), a=("F8_E4M3", [3], 3)).replace(
        b"{", b'{"__metadata__": {"": "\xc3\xa9"}, ', 1
    ),
]


def assert_sound(found: Header, content: bytes) -> None:
    """What is accepted fills the file without a hole, and is what the library reads."""
    position = 0
    for tensor in found.tensors.values():
        assert tensor.begin == position
        assert math.prod(tensor.shape) * DTYPE_BITS[tensor.dtype] == 8 * tensor.nbytes
        position = tensor.end
    assert found.data_start + position == len(content)
    read = {name: (tensor["dtype"], tuple(tensor["shape"])) for name, tensor in deserialize(content)}
    assert read == {name: (tensor.dtype, tensor.shape) for name, tensor in found.tensors.items()}


def check(file: Path, content: bytes) -> bool:
    """Whether a file of that content is accepted; nothing but EP203 may say that it is not."""
    file.write_bytes(content)
    try:
        found, _ = read_header(file)
    except CheckpointError as error:
        assert (error.code, len(error.message) < 500) == ("EP203", True)  # noqa: PT017 - both ends are right
        return False
    assert_sound(found, content)
    return True


def damaged(rng: Random) -> bytes:
    """A file after some accidents: to its header mostly, sometimes to its length, its data or all of it."""
    text = mutate(rng, rng.choice(SEEDS), SEEDS)
    length, data = len(text), bytes(rng.choice((0, 1, 11, 15, 19, 24, 25, 25, 25, 96, 96)))
    if rng.random() < 0.05:
        length = rng.choice(
            (0, 1, length - 1, length + 1, length + len(data), 1 << 31, 1 << 63, (1 << 64) - 1)
        )
    if rng.random() < 0.5:  # as much data as the last offset says, or the mutation would rarely matter
        data = bytes(_last_offset(text))
    content = max(length, 0).to_bytes(8, "little") + text + data
    return mutate(rng, content, [content]) if rng.random() < 0.05 else content


def _last_offset(text: bytes) -> int:
    """The largest offset that is no attack by itself."""
    return max(map(int, re.findall(rb'"data_offsets": ?\[[^]]*?([0-9]{1,3})\]', text)), default=0)


@pytest.mark.parametrize("seed", range(NUM_CASES // BATCH))
def test_damaged_headers(seed, watchdog, count):
    """No crash and no hang, EP203 or a sound header; and neither of the two is rare."""
    rng, accepted = Random(seed), 0
    with scratch() as home:
        for number in range(BATCH):
            if number % 500 == 0:
                watchdog()
            accepted += check(home / "x.safetensors", damaged(rng))
    count("mutated headers", BATCH)
    count("mutated headers, of which accepted", accepted)
    assert BATCH / 50 < accepted < BATCH / 2


@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.name)
def test_what_was_once_wrong(file, tmp_path):
    """Headers that were accepted although the library refuses them, or ended in another error."""
    text = file.read_bytes()
    assert not check(tmp_path / "x.safetensors", len(text).to_bytes(8, "little") + text + bytes(1))
    assert not check(tmp_path / "x.safetensors", len(text).to_bytes(8, "little") + text)


@pytest.mark.parametrize("text", SEEDS)
def test_the_headers_to_begin_with_are_good(text, tmp_path):
    """So that what is refused is refused for its mutation."""
    data = bytes(_last_offset(text))
    assert check(tmp_path / "x.safetensors", len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("length", [1 << 31, 1 << 62, (1 << 64) - 1])
def test_a_huge_length_in_a_huge_file(length, tmp_path):
    """EP203 for a sparse file of a terabyte whose header would be as long as it is."""
    file = tmp_path / "x.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + b"{}")
    os.truncate(file, 1 << 40)
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    assert caught.value.code == "EP203"
