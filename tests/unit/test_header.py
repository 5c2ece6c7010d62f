"""Headers of safetensors files: read with suspicion, built with alignment."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from eplb_cli import files
from eplb_cli.errors import CheckpointError
from eplb_cli.formats.safetensors_header import (
    DATA_ALIGNMENT,
    DTYPE_BITS,
    MAX_HEADER_NBYTES,
    TensorEntry,
    build_header,
    parse_header,
    read_header,
)

DATA = Path(__file__).parent.parent / "data"
GOOD = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "U8", "shape": [], "data_offsets": [24, 25]},
    "none": {"dtype": "BF16", "shape": [0, 7], "data_offsets": [25, 25]},
}
NBYTES = 25


def entry(dtype="F32", shape=(2, 3), offsets=(0, 24)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def refused(header, data_nbytes=24):
    """What is said of a header, given as JSON or as bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    with pytest.raises(CheckpointError) as caught:
        parse_header(text, data_nbytes, "x.safetensors")
    assert caught.value.code == "EP203"
    assert caught.value.hint
    assert len(caught.value.message) < 400
    assert caught.value.message.startswith("x.safetensors is not a valid safetensors file: ")
    return caught.value.message.split(": ", 1)[1]


class TestGoodHeaders:
    def test_tensors_come_in_the_order_of_their_bytes(self):
        """Whatever the order of their keys; metadata is kept apart."""
        text = json.dumps(dict(reversed(GOOD.items()))).encode()
        header = parse_header(text, NBYTES, "")
        assert list(header.tensors) == ["a", "b", "none"]
        assert header.tensors["a"] == TensorEntry("F32", (2, 3), 0, 24)
        assert header.tensors["none"].nbytes == 0
        assert header.metadata == {"format": "pt"}
        assert header.data_start == 8 + len(text)

    def test_padding_belongs_to_the_header(self):
        """Spaces after the JSON, as the format allows them."""
        text = json.dumps(GOOD).encode().ljust(500)
        assert parse_header(text, NBYTES, "").data_start == 508

    @pytest.mark.parametrize("dtype", DTYPE_BITS)
    def test_every_dtype(self, dtype):
        """Eight values take as many bytes as one has bits."""
        nbytes = DTYPE_BITS[dtype]
        assert parse_header(json.dumps({"x": entry(dtype, [8], [0, nbytes])}).encode(), nbytes, "").tensors

    def test_no_tensors(self):
        """A file may be empty but for its header."""
        assert parse_header(b"{}", 0, "").tensors == {}

    @pytest.mark.parametrize("file", sorted(DATA.rglob("*.safetensors")), ids=lambda file: file.name)
    def test_files_that_vllm_wrote(self, file):
        """Names, dtypes and shapes are as the safetensors library reads them."""
        header, status = read_header(file)
        assert status.st_size == file.stat().st_size
        with safe_open(file, "numpy") as opened:
            assert set(opened.keys()) == set(header.tensors)
            for name, tensor in header.tensors.items():
                assert opened.get_slice(name).get_shape() == list(tensor.shape)
                assert opened.get_slice(name).get_dtype() == tensor.dtype


class TestBadHeaders:
    @pytest.mark.parametrize(
        ("header", "says"),
        [
            ([], "not an object"),
            ("text", "not an object"),
            (b"", "cannot be parsed"),
            (b"{", "cannot be parsed"),
            (b'{"a": NaN}', "NaN is not JSON"),
            (b"\xff\xfe", "cannot be parsed"),
            (b'\xef\xbb\xbf{"a": 1}', "cannot be parsed"),
            (b'{"a": ' + b"9" * 5000 + b"}", "cannot be parsed"),
            (
                json.dumps({"a": entry()})[:-1].encode() + b"," + json.dumps({"a": entry()})[1:].encode(),
                "more than once",
            ),
            (b'{"\\ud800": ' + json.dumps(entry()).encode() + b"}", "surrogates"),
            ({"__metadata__": None, "a": entry()}, "__metadata__"),
            ({"__metadata__": {"x": 1}, "a": entry()}, "__metadata__"),
            ({"a": None}, "'a' is not a tensor"),
            ({"a": []}, "'a' is not a tensor"),
            ({"a": {"dtype": "F32", "shape": [2, 3]}}, "'a' is not a tensor"),
            ({"a": {**entry(), "more": 1}}, "'a' is not a tensor"),
            ({"a": entry(dtype="F128")}, 'unknown dtype "F128"'),
            ({"a": entry(dtype=32)}, "unknown dtype 32"),
            ({"a": entry(dtype=["F32"])}, "unknown dtype"),
            ({"a": entry(shape=[2, -3])}, "no shape"),
            ({"a": entry(shape=[2, 3.0])}, "no shape"),
            ({"a": entry(shape=[True, 6])}, "no shape"),
            ({"a": entry(shape=["6"])}, "no shape"),
            ({"a": entry(shape=[1] * 33)}, "at most 32 sizes"),
            ({"a": {**entry(), "shape": 6}}, "no shape"),
            ({"a": entry(offsets=[0, 24, 24])}, "data_offsets"),
            ({"a": entry(offsets=[24, 0])}, "data_offsets"),
            ({"a": entry(offsets=[-24, 0])}, "data_offsets"),
            ({"a": entry(offsets=[0, 1 << 63])}, "data_offsets"),
            ({"a": entry(offsets=[0, 1 << 64])}, "data_offsets"),
            ({"a": entry(offsets=[0, 24.0])}, "data_offsets"),
            ({"a": entry(shape=[1 << 62, 1 << 62])}, "does not take 24 bytes"),
            ({"a": entry(shape=[1 << 62, 1 << 62, 0], offsets=[0, 0])}, "too much to count"),
            (b'{"a": {"dtype": "U8", "shape": [], "data_offsets": [-0, 1]}}', "-0 is no size"),
            ({"a": entry(shape=[5])}, "F32 [5] does not take 24 bytes"),
            ({"a": entry("F4", [3], [0, 1])}, "does not take 1 bytes"),
            ({"a": entry(), "b": entry(offsets=[23, 47])}, "'b' starts at 23 where 24 is due: it overlaps"),
            ({"a": entry(), "b": entry()}, "overlaps"),
            ({"a": entry(), "b": entry(offsets=[25, 49])}, "leaves a hole"),
            ({"a": entry(offsets=[1, 25])}, "leaves a hole"),
            ({"x" * 5000: entry()}, "a name has 5,000 characters"),
        ],
    )
    def test_what_is_wrong_is_said(self, header, says):
        """EP203, in one line of bounded length."""
        assert says in refused(header)

    @pytest.mark.parametrize("data_nbytes", [0, 23, 25, 1 << 40])
    def test_data_of_another_size(self, data_nbytes):
        """A file one byte short or long is rejected, as the library does."""
        assert f"the tensors end at 24 and the data at {data_nbytes}" in refused({"a": entry()}, data_nbytes)

    @pytest.mark.parametrize(
        "text",
        [
            b"[" * 1_000_000,
            b'{"a":' * 1_000_000,
            b'{"a": {"dtype": "F32", "shape": [' + b"1," * 1_000_000 + b'1], "data_offsets": [0, 4]}}',
            b'{"a": {"dtype": "F32", "data_offsets": [0, 4], "shape": [' + b"[]," * 3_000_000 + b"1]}}",
            b'{"__metadata__": {' + b'"x": "y", ' * 2_000_000 + b"}}",
            b'{"' + b"x" * 20_000_000 + b'": 1}',
            b"9" * 20_000_000,
        ],
        ids=["lists", "objects", "shape", "lists in a shape", "metadata", "name", "digits"],
    )
    def test_bombs(self, text):
        """Refused, in memory of the order of the header."""
        tracemalloc.start()
        refused(text)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 200_000_000


class TestFiles:
    @pytest.fixture
    def file(self, tmp_path):
        return tmp_path / "x.safetensors"

    def refused(self, file, code="EP203"):
        with pytest.raises(CheckpointError) as caught:
            read_header(file)
        assert caught.value.code == code
        assert str(file) in caught.value.message
        return caught.value.message

    @pytest.mark.parametrize("size", range(8))
    def test_too_short_for_a_length(self, file, size):
        """Eight bytes are the least."""
        file.write_bytes(bytes(size))
        assert f"{size} bytes are too few" in self.refused(file)

    @pytest.mark.parametrize("length", [3, 1 << 20, MAX_HEADER_NBYTES + 1, 1 << 40, (1 << 64) - 1])
    def test_a_length_beyond_the_file(self, file, length):
        """Nothing is allocated by what a file claims."""
        file.write_bytes(length.to_bytes(8, "little") + b"{}")
        tracemalloc.start()
        assert f"claims a header of {length} bytes" in self.refused(file)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()

    def test_a_length_beyond_the_format(self, file):
        """At most 100,000,000 bytes, even where the file has more."""
        file.write_bytes((MAX_HEADER_NBYTES + 1).to_bytes(8, "little"))
        os.truncate(file, MAX_HEADER_NBYTES + 100)
        self.refused(file)

    def test_what_is_no_file(self, file, tmp_path):
        """EP201 for nothing, EP204 for a directory, a link and a pipe, without waiting."""
        self.refused(file, "EP201")
        file.symlink_to(tmp_path)
        self.refused(file, "EP204")
        file.unlink()
        os.mkfifo(file)
        self.refused(file, "EP204")
        file.unlink()
        file.mkdir()
        self.refused(file, "EP204")

    def test_a_file_that_shrinks_while_it_is_read(self, file, monkeypatch):
        """EP220, and no descriptor stays open."""
        text = json.dumps(GOOD).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(NBYTES))

        def attempt(operation, call, *args):
            if operation == "read" and args[2] == 8:
                os.truncate(file, 20)
            return call(*args)

        monkeypatch.setattr(files, "attempt", attempt)
        before = len(list(Path("/proc/self/fd").iterdir()))
        self.refused(file, "EP220")
        assert len(list(Path("/proc/self/fd").iterdir())) == before


MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete", "copy"]), st.integers(0, 1 << 16), st.integers(0, 255)
    ),
    min_size=1,
    max_size=6,
)


def mutated(content: bytes, mutations) -> bytes:
    """A file after some accidents."""
    data = bytearray(content)
    for kind, place, value in mutations:
        at = place % max(len(data), 1)
        if kind == "set" and data:
            data[at] = value
        elif kind == "insert":
            data.insert(at, value)
        elif kind == "delete":
            del data[at : at + 1 + value % 8]
        elif kind == "copy":
            data[at:at] = data[at : at + value]
    return bytes(data)


class TestFuzz:
    @settings(max_examples=400, deadline=None)
    @given(MUTATIONS, st.booleans())
    def test_a_damaged_file_is_an_error_with_a_code_or_as_good_as_before(
        self, tmp_path_factory, mutations, fits
    ):
        """Nothing else escapes; and what is accepted, the safetensors library accepts with the same names."""
        text = json.dumps(GOOD).encode()
        text = mutated(text, mutations)
        content = len(text).to_bytes(8, "little") + text + bytes(NBYTES)
        file = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
        file.write_bytes(content if fits else mutated(content, mutations))
        try:
            header, _ = read_header(file)
        except CheckpointError as error:
            assert error.code == "EP203"  # noqa: PT017 - both ends are right
            return
        with safe_open(file, "numpy") as opened:
            assert set(opened.keys()) == set(header.tensors)

    @settings(max_examples=300, deadline=None)
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(
                    st.sampled_from(["a", "__metadata__", "dtype", "shape", "data_offsets", "\ud800"]),
                    inner,
                    max_size=5,
                )
            ),
            max_leaves=20,
        ),
        st.integers(0, 100),
    )
    def test_any_json_at_all(self, value, nbytes):
        """EP203, or a header."""
        try:
            parse_header(json.dumps(value).encode(), nbytes, "x")
        except CheckpointError as error:
            assert error.code == "EP203"  # noqa: PT017


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(
    lambda name: name != "__metadata__"
)
WHOLE_BYTES = sorted(set(DTYPE_BITS) - {"F4", "F6_E2M3", "F6_E3M2"})
SHAPES = st.lists(st.integers(0, 4), max_size=4)
TENSORS = st.dictionaries(NAMES, st.tuples(st.sampled_from(WHOLE_BYTES), SHAPES), max_size=8)


class TestBuild:
    @settings(deadline=None)
    @given(TENSORS, st.dictionaries(NAMES, st.text(st.characters(exclude_categories=["Cs"])), max_size=3))
    def test_what_is_built_is_read_back(self, tmp_path_factory, tensors, metadata):
        """By this module and by the safetensors library; data starts on a page, in the order given."""
        sizes = {}
        for name, (dtype, shape) in tensors.items():
            nbytes = DTYPE_BITS[dtype] // 8
            for size in shape:
                nbytes *= size
            sizes[name] = (name, dtype, tuple(shape), nbytes)
        content, offsets = build_header(sizes.values(), metadata)
        assert len(content) % DATA_ALIGNMENT == 0
        file = tmp_path_factory.getbasetemp() / "built.safetensors"
        file.write_bytes(content + bytes(sum(entry[3] for entry in sizes.values())))
        header, _ = read_header(file)
        assert header.data_start == len(content)
        assert header.metadata == metadata
        found = {name: (name, e.dtype, e.shape, e.nbytes) for name, e in header.tensors.items()}
        assert found == sizes
        assert offsets == {name: len(content) + e.begin for name, e in header.tensors.items()}
        with safe_open(file, "numpy") as opened:
            assert set(opened.keys()) == set(sizes)

    @pytest.mark.parametrize("length", range(3990, 4110, 7))
    def test_the_shortest_padding(self, length):
        """No page more than the header needs."""
        content, _ = build_header([], {"x": "y" * length})
        text = content[8:].rstrip()
        assert len(content) == -(-(8 + len(text)) // DATA_ALIGNMENT) * DATA_ALIGNMENT

    def test_the_library_agrees_that_a_byte_matters(self, tmp_path):
        """A file one byte short or long is rejected by the library, too."""
        content, _ = build_header([("a", "U8", (3,), 3)], {})
        for size in (2, 4):
            (tmp_path / "x").write_bytes(content + bytes(size))
            with pytest.raises(SafetensorError), safe_open(tmp_path / "x", "numpy"):
                pass
