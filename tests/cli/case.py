"""A checkpoint to run `eplb reshard` on, and what has to hold whenever it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cli.tree import Rank, Result, fingerprint, write_json, write_tree

Run = Callable[..., Result]


@dataclass
class Case:
    """A good checkpoint under OLD in `src`, and OLD and NEW in files; DST is free."""

    home: Path
    eplb: Run

    @property
    def src(self) -> Path:
        return self.home / "src"

    @property
    def dst(self) -> Path:
        return self.home / "dst"

    def file(self, rank: int = 0) -> Path:
        """The shard of a rank."""
        return self.src / f"model-rank-{rank}-part-0.safetensors"

    def old(self, content: object) -> Path:
        """Replace old.json."""
        return write_json(self.home / "old.json", content)

    def new(self, content: object) -> Path:
        """Replace new.json."""
        return write_json(self.home / "new.json", content)

    def write(self, ranks: list[Rank], **how: Any) -> None:
        """Replace the shards."""
        for file in self.src.glob("*.safetensors"):
            file.unlink()
        write_tree(self.src, ranks, **how)

    def arguments(self, *options: object, **changes: object) -> list[object]:
        """The arguments of the good run; `src`, `dst`, `new` and `old` say otherwise, None leaves out."""
        said: dict[str, object] = {
            "src": self.src,
            "dst": self.dst,
            "new": self.home / "new.json",
            "old": self.home / "old.json",
            **changes,
        }
        named = [part for key in ("new", "old") if said[key] is not None for part in (f"--{key}", said[key])]
        return ["reshard", said["src"], said["dst"], *named, "--backend", "file", *options]

    def reshard(self, *options: object, **changes: object) -> Result:
        """A run that has to succeed, and to be proved again by `verify` unless it was a dry one."""
        result = self.eplb(*self.arguments(*options, **changes))
        assert result.code == 0, result.err
        if "--dry-run" not in options:
            src, dst = changes.get("src", self.src), changes.get("dst", self.dst)
            again = self.eplb("verify", dst, "--against", src)
            assert again.code == 0, again.err
        return result

    def refuse(
        self, code: str, *says: str, exit_code: int = 3, options: tuple[object, ...] = (), **changes: object
    ) -> Result:
        """A run that has to fail with `code`: with a hint, no DST, nothing left behind, SRC untouched."""
        before = fingerprint(self.home)
        result = self.eplb(*self.arguments(*options, **changes))
        assert_error(result, code, *says, exit_code=exit_code)
        assert ("error" in result.json) == bool(result.out)
        assert fingerprint(self.home) == before
        return result


def forget_kept(home: Path, result: Result) -> None:
    """Remove the staging directory of a run that says that it keeps it; no other run may leave one."""
    kept = list(home.glob(".*.eplb-staging"))
    assert bool(kept) == ("--resume` goes on" in result.err), result.err
    for path in kept:
        shutil.rmtree(path)


def assert_error(result: Result, code: str, *says: str, exit_code: int = 3) -> None:
    """One coded error with a hint, and its exit code: on stderr, or as JSON on stdout."""
    assert result.code == exit_code
    if "error" in result.json:
        error = result.json["error"]
        assert (error["code"], list(error)[:4]) == (code, ["code", "message", "hint", "where"])
        assert error["hint"]
        assert "error[" not in result.err
        for part in says:
            assert part in error["message"] + error["hint"], error
        return
    lines = [line for line in result.err.splitlines() if line.startswith("error")]
    assert [line.split(":")[0] for line in lines] == [f"error[{code}]"], result.err
    assert "\n  hint: " in result.err
    for part in says:
        assert part in result.err, result.err
