"""The last rename: what forbids it is found before the first byte, and whatever fails it deletes nothing."""

from __future__ import annotations

import errno
import functools
import os
import re
import shlex
import signal
import stat
from pathlib import Path

import pytest

from eplb_cli import files
from eplb_cli.errors import OutputError
from tests.cli.case import assert_error
from tests.cli.tree import fingerprint, placement, write_json
from tests.support.huggingface import MOE_LAYERS, deepseek_v3, write_checkpoint
from tests.support.mounts import mounted, tmpfs
from tests.support.runs import contents

KEPT = "--resume` goes on"
AT_RENAME = [errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EROFS, errno.ENOTEMPTY, errno.EEXIST, errno.EIO]


@pytest.fixture
def at(monkeypatch):
    """Do something before, or instead of, the first call that fits; then all calls are as ever."""

    def install(fits, act):
        def attempt(name, call, *args):
            if fits(name, args):
                monkeypatch.undo()
                return act(call, *args)
            return call(*args)

        monkeypatch.setattr(files, "attempt", attempt)

    return install


def staging_of(case):
    return case.home / ".dst.eplb-staging"


def is_last(case):
    """Whether a call is the rename to DST."""
    return lambda name, args: name == "rename" and args[1] == case.dst


def fail(number):
    def act(*_):
        raise OSError(number, os.strerror(number))

    return act


def resume(case, *options):
    """Go on with what is kept: DST is whole, no byte of a row is written, and `verify` proves it again."""
    result = case.reshard("--resume", "--format", "json", *options)
    assert result.json["stage_bytes"]["write"] == 0
    assert not staging_of(case).exists()
    return result


@pytest.mark.parametrize("number", AT_RENAME)
@pytest.mark.parametrize("options", [(), ("--no-digest",), ("--no-verify", "--no-fsync")])
def test_a_rename_that_fails(case, at, number, options):
    """Exit 6, and staging is all that DST is to be; --resume compares it with SRC and publishes it."""
    case.reshard(*options)
    whole = contents(case.dst)
    case.dst.rename(case.home / "whole")
    at(is_last(case), fail(number))
    result = case.eplb(*case.arguments(*options))
    code = "EP601" if number in {errno.ENOTEMPTY, errno.EEXIST} else "EP604"
    assert_error(result, code, KEPT, str(staging_of(case)), exit_code=6)
    assert contents(staging_of(case)) == whole
    resume(case, *options)
    assert contents(case.dst) == whole


def test_a_rename_that_fails_again_and_again(case, at):
    """Each run leaves what the one before has left."""
    for _ in range(3):
        at(is_last(case), fail(errno.EBUSY))
        assert_error(case.eplb(*case.arguments("--resume")), "EP604", KEPT, exit_code=6)
    resume(case)


def test_a_resumed_run_that_is_ended_before_it_has_looked(case, at):
    """That all was proved is not forgotten before every row was compared."""
    at(is_last(case), fail(errno.EBUSY))
    assert case.eplb(*case.arguments()).code == 6
    for directory, code, exit_code in ((case.src, "EP201", 3), (staging_of(case), "EP604", 6)):
        at(functools.partial(is_row_of, directory), fail(errno.EIO))
        assert_error(case.eplb(*case.arguments("--resume")), code, KEPT, exit_code=exit_code)
    resume(case)


def is_row_of(directory, name, args):
    """Whether bytes behind the header of a shard in a directory are read."""
    if name != "read" or len(args) != 3:
        return False
    path = Path(f"/proc/self/fd/{args[0]}").readlink()
    return path.parent == directory and path.suffix == ".safetensors" and args[2] > 8


def test_dst_that_has_come_to_exist(case, at):
    """EP601 while the journals are still there: what they say is read again, and SRC is not."""

    def occupy(call, *args):
        case.dst.mkdir()
        (case.dst / "precious").touch()
        return call(*args)

    at(lambda name, args: name == "open" and str(args[0]).endswith("eplb.json"), occupy)
    assert_error(case.eplb(*case.arguments()), "EP601", KEPT, exit_code=6)
    assert (staging_of(case) / ".eplb" / "journal-0").exists()
    (case.dst / "precious").unlink()
    resume(case)


def test_rows_of_src_that_changed_meanwhile(case, at):
    """They are not taken on trust: those that differ from what staging has are moved again."""
    at(is_last(case), fail(errno.EBUSY))
    assert case.eplb(*case.arguments()).code == 6
    times = case.file(1).stat()
    content = bytearray(case.file(1).read_bytes())
    content[-1] ^= 1
    case.file(1).write_bytes(content)
    os.utime(case.file(1), ns=(times.st_atime_ns, times.st_mtime_ns))
    case.reshard("--resume")


def test_another_new_than_the_one_that_was_proved(case, at):
    """EP305 from the run and the dry run, and what is kept is left as it is."""
    at(is_last(case), fail(errno.EBUSY))
    assert case.eplb(*case.arguments()).code == 6
    kept, new = contents(staging_of(case)), (case.home / "new.json").read_text()
    case.new(placement([[3, 2, 1, 0, 0, 1], [1, 1, 0, 2, 3, -1]]))
    for options in (["--resume", "--dry-run"], ["--resume"]):
        assert_error(case.eplb(*case.arguments(*options)), "EP305")
    (case.home / "new.json").write_text(new)
    assert {name: staging_of(case).joinpath(name).read_bytes() for name in kept if name != "eplb.json"} == {
        name: content for name, content in kept.items() if name != "eplb.json"
    }
    resume(case)


def test_without_resume_the_run_starts_over(case, at):
    """As ever."""
    at(is_last(case), fail(errno.EBUSY))
    assert case.eplb(*case.arguments()).code == 6
    assert case.reshard("--format", "json").json["stage_bytes"]["write"] > 0


@pytest.fixture
def hugging_face(tmp_path, eplb):
    """The arguments of `shard`, `merge` and `bake`, each to the same output."""
    write_checkpoint(tmp_path / "hf", deepseek_v3(), "deepseek_v3")
    rows = [[3, 2, 1, 0]] * len(MOE_LAYERS)
    write_json(tmp_path / "map.json", placement(rows, layer_ids=list(MOE_LAYERS)))
    placed = ["--placement", tmp_path / "map.json"]
    shards = ["shard", tmp_path / "hf", tmp_path / "shards", *placed, "--engine", "sglang"]
    assert eplb(*shards).code == 0
    out = tmp_path / "o u t"
    return {
        "shard": ["shard", tmp_path / "hf", out, *placed, "--engine", "sglang"],
        "merge": ["merge", tmp_path / "shards", out],
        "bake": ["bake", tmp_path / "hf", out, *placed],
    }


def refuse_place(destination):
    raise OutputError("EP604", f"{destination} cannot be written: its parent has become read-only")


@pytest.mark.parametrize("name", ["shard", "merge", "bake"])
@pytest.mark.parametrize("is_early", [True, False])
def test_the_other_commands_that_publish(eplb, hugging_face, tmp_path, at, monkeypatch, name, is_early):
    """All is proved and kept: the message has the command that publishes it, whole, and it does."""
    out = tmp_path / "o u t"
    assert eplb(*hugging_face[name]).code == 0
    whole = contents(out)
    out.rename(tmp_path / "whole")
    if is_early:
        monkeypatch.setattr("eplb_cli.output.staging.require_place", refuse_place)
    else:
        at(lambda name, args: name == "rename" and args[1] == out, fail(errno.EBUSY))
    result = eplb(*hugging_face[name])
    assert result.code == 6
    assert not out.exists()
    command = shlex.split(result.err.split("`")[1])
    assert command == ["eplb", *map(str, hugging_face[name]), "--resume"]
    monkeypatch.undo()
    again = eplb(*command[1:])
    assert (again.code, re.search(r"(\S+ \w+) of \1 taken over, read again", again.out) is None) == (0, False)
    assert contents(out) == whole


def last(result):
    """The last line on stderr."""
    return result.err.splitlines(keepends=True)[-1]


class TestInterruptions:
    """SIGTERM, and what is said is true."""

    def end(self, call, *args):
        """Be told to end before the call, which is not made then."""
        os.kill(os.getpid(), signal.SIGTERM)
        return call(*args)

    def end_after(self, call, *args):
        """Be told to end when the call is done."""
        call(*args)
        os.kill(os.getpid(), signal.SIGTERM)

    def test_before_the_rename(self, case, at):
        """All is proved, and stays."""
        at(is_last(case), self.end)
        result = case.eplb(*case.arguments())
        assert (result.code, result.out, case.dst.exists()) == (130, "", False)
        command = shlex.join(["eplb", *map(str, case.arguments("--resume"))])
        assert last(result) == (
            f"interrupted: what was done (820 B, all of it proved) is kept in {staging_of(case)}: "
            f"`{command}` goes on from it\n"
        )
        resume(case)

    def test_after_the_rename(self, case, at):
        """DST is there."""
        at(is_last(case), self.end_after)
        result = case.eplb(*case.arguments())
        assert (result.code, last(result)) == (130, f"interrupted: {case.dst} is there and whole\n")
        assert case.eplb("verify", case.dst, "--against", case.src).code == 0
        assert not staging_of(case).exists()

    def test_while_the_result_is_printed(self, case, monkeypatch):
        """DST is there as well."""
        monkeypatch.setattr("eplb_cli.render.print_report", lambda *_, **__: self.end(int))
        result = case.eplb(*case.arguments())
        assert (result.code, last(result)) == (130, f"interrupted: {case.dst} is there and whole\n")

    def test_a_run_that_goes_on(self, case, at):
        """What was kept before it is kept."""
        at(is_last(case), fail(errno.EBUSY))
        assert case.eplb(*case.arguments()).code == 6
        at(lambda name, args: name == "open" and str(args[0]).endswith("journal-0"), self.end)
        result = case.eplb(*case.arguments("--resume"))
        assert (result.code, KEPT in result.err) == (130, True)
        resume(case)

    def test_before_anything(self, case, at):
        """Nothing was written, and the directory that was made first is gone."""
        before = fingerprint(case.home)
        for operation in ("mkdir", "lock"):
            for when in (self.end, self.end_after):
                at(lambda name, _, operation=operation: name == operation, when)
                result = case.eplb(*case.arguments())
                assert (result.code, last(result)) == (130, "interrupted: nothing was written\n")
                assert fingerprint(case.home) == before

    def test_a_single_file(self, case, at):
        """Before it is there, and after."""
        plan, out = ["plan", case.home / "old.json", case.home / "new.json", "--out"], case.home / "plan.json"
        for when, said in ((self.end, "nothing was written"), (self.end_after, f"{out} is written")):
            at(lambda name, _: name == "rename", when)
            result = case.eplb(*plan, out)
            assert (result.code, last(result)) == (130, f"interrupted: {said}\n")
            assert out.exists() == (when == self.end_after)


class TestPlace:
    """What no rename can replace is refused before the first byte, in dry runs as well."""

    def refuse(self, case, *says):
        case.refuse("EP604", *says, exit_code=6, options=("--dry-run",))
        case.refuse("EP604", *says, exit_code=6)

    def test_a_mount_point(self, case):
        """EP604, be it of another file system or of the same one."""
        with tmpfs(case.dst):
            self.refuse(case, "is a mount point")
        case.dst.rmdir()
        (case.home / "elsewhere").mkdir()
        with mounted(case.dst, "--bind", case.home / "elsewhere"):
            self.refuse(case, "is a mount point", "inside it")

    def test_a_mount_point_with_blanks(self, case):
        """Its name is written with octal numbers where mounts are listed."""
        dst, source = case.home / "d s\tt", case.home / "elsewhere"
        source.mkdir()
        with mounted(dst, "--bind", source):
            case.refuse("EP604", "is a mount point", exit_code=6, dst=dst)

    def test_staging_on_another_file_system(self, case):
        """EP604: it would have to be copied in the end."""
        with tmpfs(staging_of(case)):
            self.refuse(case, "is a mount point")

    def test_a_directory_of_somebody_else(self, case, monkeypatch):
        """EP604 where the sticky bit of its parent lets only its owner replace it."""
        case.dst.mkdir()
        case.home.chmod(0o1777)
        monkeypatch.setattr(os, "geteuid", lambda: case.home.stat().st_uid + 1)
        self.refuse(case, "not permitted")

    @pytest.mark.parametrize("mode", [0o700, 0o2750, 0o555])
    def test_the_mode_of_an_empty_dst(self, case, at, mode):
        """It is kept, and while the run goes on nobody reads what they could not read there."""
        case.dst.mkdir()
        case.dst.chmod(mode)
        seen = []

        def look(call, *args):
            seen.append(stat.S_IMODE(staging_of(case).stat().st_mode))
            return call(*args)

        at(lambda name, _: name == "allocate", look)
        case.reshard()
        assert stat.S_IMODE(case.dst.stat().st_mode) == mode
        assert seen == [mode | 0o700]
