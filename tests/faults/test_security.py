"""What files say reaches no terminal, no shell and no other file; and nobody else's links are followed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from eplb_cli import files
from tests.cli.case import assert_error, forget_kept
from tests.cli.tree import NEW, fingerprint, read_shard, tensor, write_shard
from tests.support.runs import command, wait_until

ESCAPE = "\x1b]0;owned\x07\x1b[2J\u202e\r\n\x9b31m"
MARKUP = "[bold red]x[/bold red][link=file:///etc]y[/link]:boom:"
FORMATS = "%s%n{0}{layer.__class__}${HOME}`id`"
NAMES = [ESCAPE, MARKUP, FORMATS]


def assert_harmless(result):
    """No control character but the end of a line, none that turns text around, and markup as it is."""
    for text in (result.out, result.err):
        assert all(char == "\n" or char.isprintable() for char in text), repr(text)


class TestNames:
    """Names that a terminal, rich, a shell or a format would obey."""

    @pytest.fixture(params=NAMES, ids=["escapes", "markup", "formats"])
    def name(self, request):
        return request.param

    def test_of_another_tensor(self, case, eplb, name):
        """They travel as they are, and are shown escaped."""
        write_shard(case.file(0), {**read_shard(case.file(0)), name: tensor("U8", (3,), "x")})
        write_shard(case.file(1), {**read_shard(case.file(1)), name: tensor("U8", (5,), "x")})
        shown = [case.reshard(), eplb("inspect", case.src), eplb("inspect", "--deep", case.dst)]
        assert read_shard(case.dst / case.file(1).name)[name].data == tensor("U8", (5,), "x").data
        moved = case.dst / case.file(1).name
        found = read_shard(moved)
        write_shard(moved, {key: at for key, at in found.items() if key != name})
        shown += [eplb("verify", case.dst), eplb("verify", case.dst, "--against", case.src)]
        case.new({**NEW, "num_ranks": 3})
        shown.append(case.refuse("EP213", dst=case.home / "other"))
        for result in shown:
            assert_harmless(result)
        if name == MARKUP:
            assert MARKUP in shown[1].out.replace("\n", "").replace("  ", "")
            assert MARKUP in shown[-1].err

    def test_of_an_experts_tensor(self, case, name):
        """EP207 shows it."""
        key = f"{name}.layers.3.mlp.experts.w9_weight"
        write_shard(case.file(1), {**read_shard(case.file(1)), key: tensor("U8", (3, 2), "x")})
        assert_harmless(case.refuse("EP207", "w9_weight"))

    def test_of_a_prefix_that_moves(self, case, eplb, name):
        """A name around an expert's key is a name like any other; a placeholder in it is refused."""
        for rank in (0, 1):
            found = read_shard(case.file(rank))
            renamed = {f"{name}.{key}" if "experts.w" in key else key: at for key, at in found.items()}
            write_shard(case.file(rank), renamed)
        result = case.reshard()
        assert_harmless(result)
        assert_harmless(eplb("inspect", case.dst))
        assert read_shard(case.dst / case.file(0).name).keys() == read_shard(case.file(0)).keys()

    def test_of_a_file(self, case, eplb, name):
        """Carried along, or in an error."""
        name = name.replace("/", "_")
        (case.src / name).write_text("x")
        assert_harmless(case.reshard())
        (case.dst / name).write_text("y")
        assert_harmless(eplb("verify", case.dst))
        shutil.copy(case.file(0), case.src / f"{name}.safetensors")
        assert_harmless(case.refuse("EP206", dst=case.home / "other"))

    def test_in_a_placement(self, case, eplb, name):
        """Keys, values and the name of the file."""
        case.new({**NEW, name: 1, "format": name})
        assert_harmless(case.refuse("EP103"))
        for output in ("text", "json", "github"):
            assert_harmless(eplb("validate", case.home / "new.json", "--format", output))

    def test_in_a_layout(self, case, name):
        """The name of a layout, and what is wrong in it."""
        layout = case.home / "x.toml"
        content = {"format": "eplb-layout/1", "name": name, "files": ["{rank}.safetensors"]}
        content |= {"experts": [f"{name}{{layer}}{{tensor}}"], "tensors": [name]}
        layout.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in content.items()))
        assert_harmless(case.refuse("EP206", options=("--layout", layout)))

    def test_in_a_manifest(self, case, eplb, name):
        """A manifest that names files so."""
        (case.src / "eplb.json").write_text(json.dumps({"format": name, name: name}))
        assert_harmless(case.refuse("EP214"))
        assert_harmless(eplb("inspect", case.src))


class TestStaging:
    """Links that somebody planted where a run will write."""

    @pytest.fixture
    def precious(self, case):
        """A directory that no run may touch, and the place where staging will be."""
        (case.home / "precious").mkdir()
        (case.home / "precious" / "file").write_text("precious")
        return case.home / "precious"

    def test_a_link_in_its_place(self, case, precious):
        """EP604, whatever it leads to."""
        for target in (precious, precious / "file", case.home / "nowhere"):
            (case.home / ".dst.eplb-staging").symlink_to(target)
            case.refuse("EP604", exit_code=6)
            (case.home / ".dst.eplb-staging").unlink()

    def test_links_inside(self, case, precious):
        """They are removed, and what they lead to is not."""
        staging = case.home / ".dst.eplb-staging"
        (staging / "deep").mkdir(parents=True)
        for name in (".eplb", "deep/link", "eplb.json", "config.json", case.file(0).name):
            (staging / name).symlink_to(precious if name in {".eplb", "deep/link"} else precious / "file")
        before = fingerprint(precious)
        case.reshard()
        assert fingerprint(precious) == before
        assert not [path for path in case.dst.iterdir() if path.is_symlink()]

    @pytest.mark.parametrize("name", ["model-rank-0-part-0.safetensors", "config.json", "eplb.json"])
    def test_links_planted_while_it_runs(self, case, precious, monkeypatch, name):
        """EP604: no file is opened that is there already, or that is a link."""
        before = fingerprint(precious)

        def attempt(operation, call, *args):
            if operation == "open" and str(args[0]).endswith(f".eplb-staging/{name}"):
                Path(args[0]).symlink_to(precious / "file")
            return call(*args)

        monkeypatch.setattr(files, "attempt", attempt)
        result = case.eplb(*case.arguments())
        assert_error(result, "EP604", name, "File exists", exit_code=6)
        forget_kept(case.home, result)
        assert fingerprint(precious) == before
        assert not case.dst.exists()

    def test_a_directory_of_somebody_else(self, case):
        """EP604: they could change what is written there before it is DST."""
        staging = case.home / ".dst.eplb-staging"
        staging.mkdir()
        (staging / "file").touch()
        try:
            os.chown(staging, 12345, 12345)
        except PermissionError:
            pytest.skip("only root may give a directory away")
        case.refuse("EP604", "belongs to another user", exit_code=6)

    def test_only_the_user_gets_at_the_files_of_the_run(self, case, monkeypatch):
        """Job and outcomes are read back: their directory is the user's alone, whatever the umask."""
        modes = set()

        def attempt(operation, call, *args):
            work = case.home / ".dst.eplb-staging" / ".eplb"
            if operation == "write" and work.exists():
                modes.add(stat.S_IMODE(work.stat().st_mode))
            return call(*args)

        monkeypatch.setattr(files, "attempt", attempt)
        before = os.umask(0)
        try:
            case.reshard()
        finally:
            os.umask(before)
        assert modes == {0o700}


LISTEN = "0A"
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def listeners(pid):
    """Addresses on which anything in the network of a process listens, as the kernel writes them."""
    found = set()
    for table in ("tcp", "tcp6"):
        lines = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        found |= {line.split()[1].split(":")[0] for line in lines if line.split()[3] == LISTEN}
    return found


@pytest.mark.distributed
def test_workers_listen_on_loopback_only(case):
    """In a network of its own, where whatever listens is the run's."""
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("only root may make a network")
    arguments = [*case.arguments()[:-2], "--backend", "gloo", "--nproc-per-node", 2]
    network = ["unshare", "--net", "--", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    process = subprocess.Popen([*network, *command(*arguments)], stderr=subprocess.PIPE, text=True)
    seen: set[str] = set()

    def ended():
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{process.pid}/ns/net") != os.readlink("/proc/self/ns/net"):  # noqa: PTH115
                seen.update(listeners(process.pid))
        return process.poll() is not None

    wait_until(ended)
    error = process.communicate()[1]
    assert process.returncode == 0, error
    assert seen
    assert seen <= LOOPBACK
