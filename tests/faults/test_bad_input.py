"""Every bad input, from the command line: a coded error, bounded time and memory, and nothing written."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import tracemalloc

import pytest

from eplb_cli import files
from tests.cli.case import assert_error, forget_kept
from tests.cli.tree import NEW, OLD, Tensor, fingerprint, placement, read_shard, tensor, write_shard

MIB = 1 << 20


def text_of(case, rank=1):
    """The header of a shard, and its data."""
    content = case.file(rank).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return content[8:end], content[end:]


def with_text(case, text, *, length=None):
    """Give a shard another header."""
    length = len(text) if length is None else length
    case.file(1).write_bytes(length.to_bytes(8, "little") + text + text_of(case)[1])


def changed(text, name="model.norm.weight", **changes):
    """A header in which one tensor says something else."""
    header = json.loads(text)
    header[name] |= changes
    return json.dumps(header).encode()


HEADERS = {
    "a length beyond the file": lambda text: (text, 1 << 40),
    "the largest length there is": lambda text: (text, (1 << 64) - 1),
    "lists that nest": lambda text: (text[:-1] + b', "x": ' + b"[" * 100_000, None),
    "objects that nest": lambda text: (b'{"a":' * 100_000 + text, None),
    "a tensor twice": lambda text: (text[:-1] + b"," + text[1:], None),
    "a dtype twice": lambda text: (text.replace(b'"dtype"', b'"dtype": "U8", "dtype"', 1), None),
    "offsets that overlap": lambda text: (changed(text, data_offsets=[0, 6]), None),
    "offsets in reverse": lambda text: (changed(text, data_offsets=[6, 0]), None),
    "offsets that overflow": lambda text: (changed(text, data_offsets=[1 << 64, (1 << 64) + 6]), None),
    "a negative offset": lambda text: (changed(text, data_offsets=[-6, 0]), None),
    "a size that is a float": lambda text: (changed(text, shape=[3.0]), None),
    "a size that is a boolean": lambda text: (changed(text, shape=[True]), None),
    "a size that is a string": lambda text: (changed(text, shape=["3"]), None),
    "sizes that overflow": lambda text: (changed(text, shape=[1 << 62, 1 << 62]), None),
    "another size of dtype": lambda text: (changed(text, dtype="F32"), None),
    "an unknown dtype": lambda text: (changed(text, dtype="F128"), None),
    "no UTF-8": lambda text: (text.replace(b"model.norm", b"model.\xff\xfe"), None),
    "half a character": lambda text: (text.replace(b"model.norm", b"model.\\ud800"), None),
    "NaN": lambda text: (text.replace(b"[3]", b"[NaN]"), None),
    "a long name": lambda text: (text.replace(b"model.norm", b"n" * 5000), None),
    "no JSON": lambda text: (b"\0" * len(text), None),
}  # fmt: skip


@pytest.mark.parametrize("how", HEADERS)
def test_a_header(case, watchdog, how):
    """EP203 names the file, and no more memory is taken than a few times what the file has."""
    watchdog()
    text, length = HEADERS[how](text_of(case)[0])
    with_text(case, text, length=length)
    tracemalloc.start()
    case.refuse("EP203", "model-rank-1-part-0.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * MIB


PATHS = ["../../escape", "/tmp/escape", "..", "a/../../b", "C:\\x", "x\0y", "~/x", "$(touch escape)", "`id`"]


def test_names_of_tensors_that_are_paths(case):
    """They are names like any other: they travel, and nothing is written anywhere else."""
    found = read_shard(case.file(1))
    named = {name: tensor("U8", (3,), name) for name in PATHS}
    write_shard(case.file(1), {**found, **named})
    before = fingerprint(case.home)
    case.reshard()
    after = {name: at for name, at in fingerprint(case.home).items() if not name.startswith("dst")}
    assert after == before
    moved = read_shard(case.dst / case.file(1).name)
    assert {name: moved[name] for name in PATHS} == named


@pytest.mark.parametrize(
    "name", ["{layer}.layers.3.mlp.experts.w13_weight", "{row}.layers.3.mlp.experts.w2_weight"]
)
def test_a_name_with_a_placeholder(case, name):
    """EP207: it cannot be told from the pattern's own, and would come out as another name."""
    write_shard(case.file(1), {**read_shard(case.file(1)), name: tensor("U8", (3, 2), "x")})
    case.refuse("EP207", name)


class TestKindsOfFiles:
    def replace(self, case, how):
        """The shard of rank 1 becomes something else."""
        file, kept = case.file(1), case.home / "kept"
        file.rename(kept)
        how(file, kept)

    @pytest.mark.parametrize(
        "how",
        [
            lambda file, kept: file.symlink_to(kept),
            lambda file, _: file.symlink_to("/dev/zero"),
            lambda file, _: file.symlink_to(file.name),
            lambda file, _: file.mkdir(),
            lambda file, _: os.mkfifo(file),
        ],
        ids=["link", "link to a device", "link to itself", "directory", "fifo"],
    )
    def test_what_is_no_regular_file(self, case, watchdog, how):
        """EP204 at once, for a shard, a manifest and a file that is carried along."""
        watchdog()
        self.replace(case, how)
        case.refuse("EP204", case.file(1).name)
        (case.home / "kept").rename(case.home / "again")
        if case.file(1).is_dir() and not case.file(1).is_symlink():
            return
        case.file(1).rename(case.src / "eplb.json")
        (case.home / "again").rename(case.file(1))
        case.refuse("EP204", "eplb.json")
        (case.src / "eplb.json").rename(case.src / "tokenizer.json")
        case.refuse("EP204", "tokenizer.json")

    def test_a_socket(self, case, monkeypatch):
        """EP204."""
        case.file(1).unlink()
        monkeypatch.chdir(case.src)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(case.file(1).name)
            case.refuse("EP204", case.file(1).name)

    def test_a_device(self, case):
        """EP204, without reading it."""
        case.file(1).unlink()
        try:
            os.mknod(case.file(1), 0o020600, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("only root may make a device")
        case.refuse("EP204", case.file(1).name)


class TestChanging:
    """A shard that another program writes to while it is read."""

    @pytest.mark.parametrize("when", ["allocate", "sync"])
    @pytest.mark.parametrize(
        "how",
        [
            lambda file: os.truncate(file, file.stat().st_size + 1),
            lambda file: os.truncate(file, file.stat().st_size // 2),
            lambda file: os.truncate(file, 0),
            lambda file: file.write_bytes(file.read_bytes()),
            lambda file: (file.rename(file.with_suffix(".old")), file.write_bytes(b"x" * 5000)),
            lambda file: (file.unlink(), file.mkdir()),
            lambda file: (file.unlink(), file.symlink_to("/dev/zero")),
            lambda file: file.unlink(),
        ],
        ids=["grows", "shrinks", "emptied", "written again", "replaced", "directory", "link", "gone"],
    )
    def test_between_its_header_and_its_rows(self, case, monkeypatch, watchdog, when, how):
        """EP220, EP201 or EP204, and no DST; what happens after the last row was read is no matter."""
        watchdog()
        left = [how]

        def attempt(operation, call, *args):
            if operation == when and left:
                left.pop()(case.file(1))
            return call(*args)

        monkeypatch.setattr(files, "attempt", attempt)
        result = case.eplb(*case.arguments())
        if when == "sync":
            assert result.code in {0, 3}
            assert case.dst.exists() == (result.code == 0)
            return
        assert result.code == 3
        assert any(f"error[{code}]" in result.err for code in ("EP201", "EP204", "EP220")), result.err
        forget_kept(case.home, result)
        assert sorted(path.name for path in case.home.iterdir()) == ["new.json", "old.json", "src"]

    @pytest.mark.parametrize("size", [0, 10, 30])
    def test_a_file_that_is_carried_along(self, case, monkeypatch, size):
        """EP220 where it grows or shrinks while it is copied."""
        (case.src / "tokenizer.json").write_bytes(b"x" * 20)

        def attempt(operation, call, *args):
            if operation == "write" and bytes(args[1]) == b"x" * 20:
                os.truncate(case.src / "tokenizer.json", size)
            return call(*args)

        monkeypatch.setattr(files, "attempt", attempt)
        result = case.eplb(*case.arguments())
        assert_error(result, "EP220", "tokenizer.json")
        assert not case.dst.exists()


PLACEMENTS = {
    "nested": (b'{"physical_to_logical_map": ' + b"[" * 100_000, "EP102"),
    "huge": (b'{"physical_to_logical_map": [' + b"[0]," * 3_000_000 + b"[0]]}", "EP102"),
    "a key twice": (json.dumps(NEW)[:-1].encode() + b', "num_ranks": 3}', "EP102"),
    "no UTF-8": (b'{"format": "\xff"}', "EP102"),
    "a float": (json.dumps(NEW).replace("[[3", "[[3.0").encode(), "EP104"),
    "an exponent": (json.dumps(NEW).replace("[[3", "[[3e0").encode(), "EP104"),
    "a boolean": (json.dumps(NEW).replace("[[3", "[[true").encode(), "EP104"),
    "a string": (json.dumps(NEW).replace("[[3", '[["3"').encode(), "EP104"),
    "null": (json.dumps(NEW).replace("[[3", "[[null").encode(), "EP104"),
    "a list": (json.dumps(NEW).replace("[[3", "[[[3]").encode(), "EP104"),
    "NaN": (json.dumps(NEW).replace("[[3", "[[NaN").encode(), "EP104"),
    "a huge integer": (json.dumps(NEW).replace("[[3", "[[" + "3" * 5000).encode(), "EP105"),
    "ranks that are a boolean": (json.dumps({**NEW, "num_ranks": True}).encode(), "EP103"),
    "ranks that are a float": (json.dumps({**NEW, "num_ranks": 2.0}).encode(), "EP103"),
    "slots that are a string": (json.dumps({**NEW, "slots_per_rank": "3"}).encode(), "EP103"),
    "slots that overflow": (json.dumps({**NEW, "slots_per_rank": [1 << 63, 3]}).encode(), "EP108"),
    "layers that are floats": (json.dumps({**NEW, "layer_ids": [3.0, 4.0]}).encode(), "EP103"),
    "experts beyond all": (json.dumps({**NEW, "num_logical_experts": 10**40}).encode(), "EP103"),
}  # fmt: skip


@pytest.mark.parametrize("how", PLACEMENTS)
def test_a_placement(case, watchdog, how):
    """Its code, as NEW and as OLD; `validate` has it as a finding, with exit code 1."""
    watchdog()
    content, code = PLACEMENTS[how]
    file = case.home / "new.json"
    file.write_bytes(content)
    tracemalloc.start()
    case.refuse(code, "new.json")
    case.refuse(code, "new.json", old=file, new=case.home / "old.json")
    result = case.eplb("validate", file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (result.code, f"error[{code}]" in result.out) == (1, True)
    assert peak < 100 * MIB


def test_a_sparse_placement(case):
    """EP101: what has more bytes than a placement can have is not read."""
    os.truncate(case.home / "new.json", (64 << 20) + 1)
    case.refuse("EP101", "more than 67,108,864 are not read")


HOSTILE = """format = "eplb-layout/1"
name = "hostile"
files = ["model-rank-{rank}-part-{part}.safetensors"]
experts = ["%s"]
tensors = ["up"]
"""


class TestLayouts:
    @pytest.mark.parametrize(
        "pattern",
        ["{tensor}0{layer}", "{layer}{row}{tensor}a", "(a+)+{layer}.{tensor}", ".*.*.*{layer}{tensor}b"],
    )
    def test_patterns_and_keys_that_would_never_match(self, case, watchdog, pattern):
        """EP206 for 100 keys of 4,096 characters each, which take no longer than others of their length."""
        watchdog()
        (case.home / "hostile.toml").write_text(HOSTILE % pattern)
        keys = [
            f"{number}" + unit * (4000 // len(unit)) for number in range(25) for unit in (".0", "0", ".", "a")
        ]
        write_shard(case.file(1), {key: tensor("U8", (1,), key) for key in keys})
        case.refuse("EP206", options=("--layout", case.home / "hostile.toml"))

    @pytest.mark.parametrize(
        ("text", "code"),
        [
            ("a" + ".a" * 8_000 + " = 1", "EP206"),
            ("[a" + ".a" * 8_000 + "]", "EP206"),
            ("a = " + "[" * 16_000, "EP206"),
            ("a = " + "{a=" * 5_000, "EP206"),
            ("a = 1\n" * 2_000, "EP206"),
            ('a = "' + "x" * (1 << 20), "EP201"),
            ("a" + ".a" * 500_000 + " = 1", "EP201"),
        ],
        ids=["dotted key", "dotted table", "lists", "tables", "key twice", "a long string", "a long key"],
    )  # fmt: skip
    def test_toml_bombs(self, case, watchdog, text, code):
        """A layout has a few lines: what is longer is not even parsed."""
        watchdog()
        (case.home / "hostile.toml").write_text(text)
        case.refuse(code, "hostile.toml", options=("--layout", case.home / "hostile.toml"))

    @pytest.mark.parametrize(("key", "count"), [("experts", 33), ("tensors", 1001)])
    def test_too_many_of_everything(self, case, key, count):
        """EP206: every key would be tried with each of them."""
        said = {"files": ["{rank}.safetensors"], "experts": ["{layer}.{tensor}"], "tensors": ["up"]}
        said[key] = [
            f"{number}{{layer}}{{tensor}}" if key == "experts" else f"{number}" for number in range(count)
        ]
        text = 'format = "eplb-layout/1"\nname = "x"\n' + "".join(f"{name} = {said[name]}\n" for name in said)
        (case.home / "hostile.toml").write_text(text)
        case.refuse("EP206", "more than", options=("--layout", case.home / "hostile.toml"))


def test_rows_without_bytes(case, watchdog):
    """EP208: a small header may claim four million rows in each of 300 layers; none is made room for."""
    watchdog()
    case.write(
        [{f"layers.{layer}.mlp.experts.w13_weight": Tensor("U8", (1 << 22, 0), b"") for layer in range(300)}]
    )
    tracemalloc.start()
    assert_error(case.eplb("inspect", case.src), "EP208", "300 layers of 4,194,304 rows")
    case.refuse("EP114", "not 4,194,304", old="linear", new="linear")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * MIB


def seal(content):
    """A manifest with a digest that fits it."""
    content = {key: value for key, value in content.items() if key != "digest"}
    digest = hashlib.sha256(json.dumps(content, indent=1, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "digest": digest}, indent=1, sort_keys=True) + "\n"


class TestManifests:
    @pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", ".", "", "a/b", "x\0y", "\ud800"])
    @pytest.mark.parametrize("kind", ["files", "carried", "digests"])
    def test_what_points_outside(self, case, kind, name, monkeypatch):
        """EP214, with a digest that fits: nothing outside is as much as looked for."""
        case.reshard()
        content = json.loads((case.dst / "eplb.json").read_text())
        content[kind][name] = {"nbytes": 6, "digest": "0" * 32, "header_digest": "", "others": {}}
        (case.dst / "eplb.json").write_text(seal(content))
        (case.home / "secret").write_text("secret")
        opened = []

        def attempt(operation, call, *args):
            if operation == "open":
                opened.append(str(args[0]))
            return call(*args)

        monkeypatch.setattr(files, "attempt", attempt)
        back = {"src": case.dst, "dst": case.home / "back", "old": None, "new": case.home / "old.json"}
        case.refuse("EP214", "is not the name of a file beside it", **back)
        assert_error(case.eplb("inspect", case.dst), "EP214")
        assert_error(case.eplb("verify", case.dst), "EP505", exit_code=5)
        assert not [path for path in opened if "secret" in path or "passwd" in path]

    def test_a_bomb(self, case, watchdog):
        """EP214: more values than any manifest has are counted, and not built."""
        watchdog()
        (case.src / "eplb.json").write_bytes(b'{"a": [' + b"[]," * (20 << 20) + b"[]]}")
        tracemalloc.start()
        case.refuse("EP214", "16,777,216 values are not read")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 200 * MIB

    def test_a_layout_that_leads_outside(self, case):
        """EP206: names of files never have a slash in them."""
        case.reshard()
        content = json.loads((case.dst / "eplb.json").read_text())
        content["layout"]["files"] = ["../model-rank-{rank}-part-{part}.safetensors"]
        (case.dst / "eplb.json").write_text(seal(content))
        back = {"src": case.dst, "dst": case.home / "back", "old": None, "new": case.home / "old.json"}
        case.refuse("EP206", "no pattern of a file name", **back)


def test_the_inputs_to_begin_with_are_good(case):
    """So that what is refused is refused for what was done to it."""
    assert placement([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 3]]) == OLD
    case.reshard()
