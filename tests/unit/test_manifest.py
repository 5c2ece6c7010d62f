"""`eplb.json` and the digests beside it: what is written is read back, and nothing else is believed."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb_cli.checkpoint.beside import file_entry
from eplb_cli.checkpoint.layout_file import presets
from eplb_cli.checkpoint.manifest import (
    MANIFEST_NAME,
    Manifest,
    digest_file,
    is_digest_file,
    npy_bytes,
    read_digests,
    read_manifest,
)
from eplb_cli.errors import CheckpointError
from tests.cli.tree import NEW, OLD

GOOD = Manifest(
    tool="eplb 0",
    placement=NEW,
    source_placement=OLD,
    senders="balanced",
    ranks_per_node=None,
    layout=json.loads(json.dumps(presets()[0].as_json())),
    plan_digest="00",
    expert_tensors=["a.{layer}.b"],
    files={"x.safetensors": {"nbytes": 3, "header_digest": "00", "others": {"t\ud800": "00" * 16}}},
    carried={"config.json": {"nbytes": 0, "digest": "00"}},
    digests={},
    options={"digests": True},
    serving=["vLLM: no"],
)


def sealed(content) -> bytes:
    """A manifest of any content with a digest that fits it."""
    import hashlib

    text = json.dumps(content, indent=1, sort_keys=True).encode()
    return json.dumps({**content, "digest": hashlib.sha256(text).hexdigest()}).encode()


def content_of(manifest=GOOD):
    return {key: value for key, value in json.loads(manifest.to_bytes()).items() if key != "digest"}


def read(path, data: bytes):
    (path / MANIFEST_NAME).write_bytes(data)
    return read_manifest(path)


def refused(path, data: bytes):
    with pytest.raises(CheckpointError) as caught:
        read(path, data)
    assert caught.value.code == "EP214"
    assert caught.value.message.startswith(f"{path / MANIFEST_NAME} cannot be used: ")
    assert len(caught.value.message) < 500 + len(str(path))
    assert caught.value.hint
    return caught.value.message


def test_there_and_back(tmp_path):
    """Names of any characters included."""
    assert read_manifest(tmp_path) is None
    assert read(tmp_path, GOOD.to_bytes()) == GOOD


def test_its_form_does_not_matter(tmp_path):
    """Only what it says: keys in another order, other spaces."""
    content = dict(reversed(json.loads(GOOD.to_bytes()).items()))
    assert read(tmp_path, json.dumps(content).encode()) == GOOD


def test_a_key_of_a_later_version_is_left_alone(tmp_path):
    """As long as the digest covers it."""
    assert read(tmp_path, sealed({**content_of(), "later": [1]})) == GOOD


def test_placements_are_read_as_files_are(tmp_path):
    """With the manifest as the file of what is wrong with them."""
    assert GOOD.read_placement(tmp_path).num_slots == 6
    assert GOOD.read_source_placement(tmp_path).num_slots == 6
    with pytest.raises(Exception, match=r"eplb\.json"):
        replace(GOOD, placement={}).read_placement(tmp_path)


LATER = ("decisions", "engine")
"""What manifests of older versions lack."""


@pytest.mark.parametrize("key", [key for key in content_of() if key != "format"])
def test_a_key_of_another_type(tmp_path, key):
    """EP214 names it."""
    assert key in refused(tmp_path, sealed({**content_of(), key: 3.5}))


@pytest.mark.parametrize("key", [key for key in content_of() if key not in ("format", *LATER)])
def test_a_key_that_is_missing(tmp_path, key):
    """EP214 names it."""
    content = content_of()
    del content[key]
    assert key in refused(tmp_path, sealed(content))


@pytest.mark.parametrize("key", LATER)
def test_a_key_that_older_versions_do_not_write(tmp_path, key):
    """It says nothing then."""
    content = content_of()
    del content[key]
    assert not getattr(read(tmp_path, sealed(content)), key)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "eplb-checkpoint/2"}, "format"),
        ({"format": None}, "format"),
        ({"expert_tensors": [1]}, "expert_tensors"),
        ({"files": {"../x": {"nbytes": 3, "header_digest": "", "others": {}}}}, "'../x'"),
        ({"files": {"..": {"nbytes": 3, "header_digest": "", "others": {}}}}, "'..'"),
        ({"files": {"": {"nbytes": 3, "header_digest": "", "others": {}}}}, "''"),
        ({"carried": {"a/b": {"nbytes": 3}}}, "'a/b'"),
        ({"carried": {"a\0b": {"nbytes": 3}}}, "a\\x00b"),
        ({"digests": {"/etc/passwd": {"nbytes": 3}}}, "passwd"),
        ({"files": {"x": 3}}, "nbytes"),
        ({"files": {"x": {"nbytes": "3", "header_digest": "", "others": {}}}}, "nbytes"),
        ({"files": {"x": {"nbytes": -3, "header_digest": "", "others": {}}}}, "nbytes"),
        ({"files": {"x": {"nbytes": True, "header_digest": "", "others": {}}}}, "nbytes"),
        ({"files": {"x": {"nbytes": 3, "others": {}}}}, "header_digest"),
        ({"files": {"x": {"nbytes": 3, "header_digest": "", "others": []}}}, "others"),
        ({"files": {"x": {"nbytes": 3, "header_digest": "", "others": {"t": 1}}}}, "digests are none"),
        (
            {"files": {"x": {"nbytes": 3, "header_digest": "", "others": {"t": "zz" * 16}}}},
            "digests are none",
        ),
        ({"files": {"x": {}}, "carried": {"x": {"nbytes": 3}}}, "'x' has no nbytes"),
        ({"carried": {"\ud800": {"nbytes": 3}}}, "\\ud800"),
        ({"carried": {"/" * 100_000: {"nbytes": 3}}}, "///"),
        ({"ranks_per_node": 0}, "ranks_per_node"),
        ({"ranks_per_node": 10**40}, "ranks_per_node"),
        ({"ranks_per_node": True}, "ranks_per_node"),
    ],
)
def test_content_that_cannot_be_used(tmp_path, change, says):
    """EP214, before any file is named to the system."""
    assert says in refused(tmp_path, sealed({**content_of(), **change}))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"3", b'"x"', b"\xff", b"[" * 100_000, b'{"a":' * 100_000]
)
def test_what_is_no_object(tmp_path, data):
    """EP214."""
    refused(tmp_path, data)


@pytest.mark.parametrize("depth", [100, *range(200, 1000, 23)])
def test_what_nests_deeply(tmp_path, depth):
    """EP214, or a manifest: what can be parsed may be too deep to be written again."""
    value = "[" * depth + "]" * depth
    text = GOOD.to_bytes().replace(b'{\n "carried"', b'{\n "a": ' + value.encode() + b',\n "carried"')
    assert len(text) > len(GOOD.to_bytes())
    refused(tmp_path, text)


def test_a_key_that_is_there_twice(tmp_path):
    """EP214: nobody guesses which of the two counts."""
    text = GOOD.to_bytes().replace(b'"senders": "balanced"', b'"senders": "vllm", "senders": "balanced"')
    assert "'senders' is more than once" in refused(tmp_path, text)


def test_exactly_as_it_was_written(tmp_path):
    """Where it is asked for, not even a space may differ."""
    data = GOOD.to_bytes()
    (tmp_path / MANIFEST_NAME).write_bytes(data.replace(b"\n", b"\t", 1))
    assert read_manifest(tmp_path) == GOOD
    with pytest.raises(CheckpointError, match="changed or damaged"):
        read_manifest(tmp_path, exact=True)
    (tmp_path / MANIFEST_NAME).write_bytes(data)
    assert read_manifest(tmp_path, exact=True) == GOOD


def test_a_manifest_without_its_digest(tmp_path):
    """EP214: an editor was there, or another program."""
    assert "changed" in refused(tmp_path, json.dumps(content_of()).encode())
    assert "changed" in refused(tmp_path, GOOD.to_bytes().replace(b"balanced", b"vllm"))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(GOOD.to_bytes()) - 1), st.integers(1, 255))
def test_every_byte_counts(tmp_path_factory, offset, change):
    """A changed byte is EP214, or changes nothing that the manifest says."""
    data = bytearray(GOOD.to_bytes())
    data[offset] ^= change
    try:
        assert read(tmp_path_factory.getbasetemp(), bytes(data)) == GOOD
    except CheckpointError as error:
        assert error.code == "EP214"  # noqa: PT017 - both ends are right


def test_links_and_pipes(tmp_path):
    """EP204, without waiting, and also where a link leads nowhere."""
    (tmp_path / MANIFEST_NAME).symlink_to("nowhere")
    with pytest.raises(CheckpointError) as caught:
        read_manifest(tmp_path)
    assert caught.value.code == "EP204"
    (tmp_path / MANIFEST_NAME).unlink()
    os.mkfifo(tmp_path / MANIFEST_NAME)
    with pytest.raises(CheckpointError) as caught:
        read_manifest(tmp_path)
    assert caught.value.code == "EP204"


class TestDigests:
    ROWS = np.arange(2 * 3 * 4 * 16, dtype=np.uint8).reshape(2, 3, 4, 16)

    def test_there_and_back(self, tmp_path):
        """None where there is no file."""
        assert read_digests(tmp_path, 7, (2, 3, 4)) is None
        (tmp_path / digest_file(7)).write_bytes(npy_bytes(self.ROWS))
        found = read_digests(tmp_path, 7, (2, 3, 4))
        assert found is not None
        assert (found == self.ROWS).all()

    def test_names(self):
        """Only those that `digest_file` gives."""
        assert is_digest_file(digest_file(0))
        assert is_digest_file(digest_file(1234))
        assert not is_digest_file("eplb-digests-rank-.npy")
        assert not is_digest_file("eplb-digests-rank-1.npy.tmp")

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"PK\x03\x04" + bytes(100),
            npy_bytes(ROWS)[:-1],
            npy_bytes(ROWS[:1]),
            npy_bytes(ROWS.reshape(2, 4, 3, 16)),
            npy_bytes(ROWS.astype(np.int8)),
            npy_bytes(ROWS).replace(b"'shape': (2, 3, 4, 16)", b"'shape': (99999999999,)"),
            npy_bytes(ROWS).replace(b"'shape'", b"((((((("),
            npy_bytes(ROWS).replace(b"|u1", b"|O "),
            npy_bytes(ROWS).replace(b"|u1", b"zzz"),
        ],
        ids=range(10),
    )
    def test_what_is_no_such_array(self, tmp_path, data):
        """EP214 with the file, whatever numpy makes of it."""
        (tmp_path / digest_file(0)).write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            read_digests(tmp_path, 0, (2, 3, 4))
        assert caught.value.code == "EP214"
        assert digest_file(0) in caught.value.message

    def test_a_file_that_is_too_large(self, tmp_path):
        """EP201, unread."""
        (tmp_path / digest_file(0)).write_bytes(bytes(1 << 20))
        with pytest.raises(CheckpointError) as caught:
            read_digests(tmp_path, 0, (2, 3, 4))
        assert caught.value.code == "EP201"

    @settings(max_examples=150, deadline=None)
    @given(st.integers(0, 127), st.integers(1, 255))
    def test_a_damaged_header(self, tmp_path_factory, offset, change):
        """EP214 or an array of the shape that was asked for; nothing else escapes."""
        data = bytearray(npy_bytes(self.ROWS))
        data[offset] ^= change
        path = tmp_path_factory.getbasetemp()
        (path / digest_file(0)).write_bytes(data)
        try:
            found = read_digests(path, 0, (2, 3, 4))
        except CheckpointError as error:
            assert error.code == "EP214"  # noqa: PT017 - both ends are right
        else:
            assert found is not None
            assert found.shape == (2, 3, 4, 16)


def test_a_small_file_in_the_manifest():
    """Its size and xxh3-128."""
    assert file_entry(b"") == {"nbytes": 0, "digest": "99aa06d3014798d86001c324468d497f"}
