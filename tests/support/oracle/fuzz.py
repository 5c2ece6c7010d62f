"""The fuzz: cases by number, each taken through the command line, and what they were in the end."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.support.oracle import refused_files, refused_placements, refused_shards
from tests.support.oracle.cases import Case, draw_case
from tests.support.oracle.judge import WrongError, as_process, clear, in_process, judge
from tests.support.oracle.refusals import WAYS

ILLEGAL = 0.35
"""The share of cases that have to be refused."""

__all__ = ["WAYS", "refused_files", "refused_placements", "refused_shards"]


class Failure(NamedTuple):
    """A case that came out wrong; everything it was given, and its commands, are in `kept`."""

    number: int
    message: str
    kept: Path


@dataclass
class Tally:
    """How many cases there were of each kind."""

    cases: int = 0
    commands: int = 0
    seconds: float = 0.0
    kinds: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, case: Case, backend: str) -> None:
        self.cases += 1
        self.commands += len(case.steps)
        self._count("backends", backend)
        self._count("layouts", case.naming.name)
        self._count("refused" if case.refusal else "legal", *(case.traits or ["one step"]))

    def _count(self, kind: str, *values: str) -> None:
        self.kinds.setdefault(kind, Counter()).update(values)

    def lines(self) -> Iterator[str]:
        yield f"{self.cases:,} cases, {self.commands:,} commands, {self.seconds:.0f} s"
        for kind, counts in sorted(self.kinds.items()):
            between = "\n  " if kind == "refused" else ", "
            said = between.join(f"{name} {count:,}" for name, count in sorted(counts.items()))
            yield f"{kind} ({counts.total():,}):\n  {said}" if kind == "refused" else f"{kind}: {said}"


def case_of(seed: object, number: int) -> Case:
    """The case of a seed and a number, whatever was run before."""
    case = draw_case(seed, number)
    if case.chance.random() < ILLEGAL:
        make_illegal(case)
    return case


def make_illegal(case: Case) -> bool:
    """Change a case so that its one step has to be refused; False where it was left as it is."""
    chance = case.chance
    if any(isinstance(said, str) for said in (case.steps[0].old_said, case.steps[0].new_said)):
        return False
    del case.steps[1:]
    case.traits = [trait for trait in case.traits if not trait.startswith("chain")]
    for refuse in chance.sample(WAYS, len(WAYS)):
        case.refusal = refuse(case, chance)
        if case.refusal:
            case.traits = [f"{case.refusal[1]}: {(refuse.__doc__ or '').rstrip('.')}"]
            return True
    return False


def run_case(
    seed: object, number: int, home: Path, keep: Path, tally: Tally, *, gloo: bool = False
) -> Failure | None:
    """Run one case in the directory `home`, which is emptied first; what failed is copied into `keep`."""
    began = time.monotonic()
    clear(home)
    case = case_of(seed, number)
    workers = Random(f"{seed} {number} workers").choice([2, 3])
    backend = ["--backend", "gloo", "--nproc-per-node", str(workers)] if gloo else ["--backend", "file"]
    tally.add(case, backend[1])
    try:
        judge(case, home, backend, as_process if gloo else in_process)
        return None
    except WrongError as error:
        kept = keep / f"seed-{seed}-case-{number}"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(home, kept, symlinks=True)
        return Failure(number, f"{case.naming.name}, {', '.join(case.traits)}: {error}", kept)
    finally:
        tally.seconds += time.monotonic() - began
