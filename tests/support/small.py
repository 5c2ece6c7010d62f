"""The smallest checkpoint that has everything, for runs by the thousand."""

from __future__ import annotations

import shutil
import signal
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from eplb_cli.placements.own_format import format_placement
from tests.support.checkpoints import ExpertTensor, Model, OtherTensor, write_tree
from tests.support.faults import Ended, Fault, Recorder, expected_code, run_here
from tests.support.placements import placement
from tests.support.runs import contents

OLD = placement([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, -1]], 2, 4, [3, 4])
NEW = placement([[3, 0, 0, 1, 2, 2], [0, 1, -1, 3, 3, 2]], 2, 4, [3, 4])

MODEL = Model(
    "stacked",
    "model.layers.{layer}.mlp.experts.",
    {
        layer: (ExpertTensor("w13_weight", "BF16", (3, 2)), ExpertTensor("w2_weight", "BF16", (1, 2)))
        for layer in (3, 4)
    },
    (OtherTensor("model.norm.weight"), OtherTensor("model.embed_tokens.weight", own=True)),
    source_ranks=2,
)


@dataclass(frozen=True)
class SmallCase:
    """A checkpoint of 2 layers, 4 experts and 2 ranks of 3 slots, and what has to come out of it."""

    home: Path
    source_contents: dict[str, bytes]

    @property
    def source(self) -> Path:
        return self.home / "src"

    @property
    def destination(self) -> Path:
        return self.home / "dst"

    @property
    def staging(self) -> Path:
        return self.home / ".dst.eplb-staging"

    @property
    def new(self) -> Path:
        return self.home / "new.json"

    def command(self, *options: object, new: Path | None = None) -> list[object]:
        """The arguments of a run."""
        placements = ("--old", self.home / "old.json", "--new", new or self.new)
        return ["reshard", self.source, self.destination, *placements, *options]

    @cached_property
    def result(self) -> dict[str, bytes]:
        """The files of DST, after a run in which nothing failed."""
        assert self.calls
        found = contents(self.destination)
        self.remove_destination()
        return found

    @cached_property
    def calls(self) -> list[tuple[str, str]]:
        """Operation and path of every call of that run, which leaves DST behind."""
        calls: list[tuple[str, str]] = []
        ended = run_here(*self.command("--backend", "file"), fault=Recorder(calls))
        assert ended.code == 0, ended
        return calls

    def remove_destination(self) -> None:
        """Make room for another run."""
        shutil.rmtree(self.destination)


def small_case(home: Path) -> SmallCase:
    """Write the checkpoint below `home`, and see what comes out of it."""
    source = home / "src"
    source.mkdir()
    write_tree(source, MODEL, OLD, 1)
    (source / "config.json").write_text("{}")
    for name, side in (("old", OLD), ("new", NEW)):
        (home / f"{name}.json").write_text(format_placement(side))
    case = SmallCase(home, contents(source))
    assert case.result
    return case


def require_sound(
    case: SmallCase, fault: Fault, ended: Ended, *, resumed: bool = False, by_worker: bool = False
) -> None:
    """What has to hold after any fault; afterwards there is no DST again.

    A resumed run that ends before it holds the staging directory leaves it without a word, and so does one
    that was killed. A worker that cannot even say what is wrong is exit code 4.
    """
    where = f"{fault}: {ended}"
    assert "Traceback" not in ended.err, where
    assert contents(case.source) == case.source_contents, where
    was_killed = ended.code == -signal.SIGKILL
    expected = expected_code(fault, case.destination, by_worker=by_worker)
    assert ended.code in expected, (expected, where)
    if ended.code and not was_killed:
        assert ended.err.count("error[EP") == 1, where
        assert ended.out == "", where
    if case.destination.exists():
        require_whole(case, where)
        assert ended.code == 0 or was_killed or "is there and whole" in ended.err, where
    else:
        assert ended.code, where
        assert case.staging.exists() == ("--resume" in ended.err) or resumed or was_killed, where
        again = run_here(*case.command("--backend", "file", "--resume"))
        assert again.code == 0, (where, again)
        require_whole(case, where)


def require_whole(case: SmallCase, where: str) -> None:
    """DST is complete, and nothing is beside it; then it is removed."""
    assert not case.staging.exists(), where
    assert contents(case.destination) == case.result, where
    case.remove_destination()
