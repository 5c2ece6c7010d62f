"""Files that were damaged, lost, or changed since eplb wrote them, each in one way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

import numpy as np

from tests.support.oracle.cases import Case, Damage, Step
from tests.support.oracle.refusals import WAYS, Due, Way, said_of, say, way
from tests.support.oracle.truth import Kind, read_shard, shard_bytes


def _damaged(due: tuple[int, str], damage: Damage) -> Way:
    """A way in which files are damaged, of a case whose placements are good."""

    def refuse(case: Case, chance: Random) -> Due:
        say(case)
        case.damage = damage
        return due

    refuse.__doc__ = damage.__doc__
    return refuse


def _truncated(home: Path, src: Path, dst: Path) -> None:
    """A file was cut short."""
    file = max(src.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])


def _linked(home: Path, src: Path, dst: Path) -> None:
    """A file is a symbolic link."""
    file = min(src.glob("*.safetensors"))
    (home / "elsewhere").write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(home / "elsewhere")


def _there_already(home: Path, src: Path, dst: Path) -> None:
    """DST is there already."""
    dst.mkdir()
    (dst / "kept").write_bytes(b"kept")


def _foreign_name(home: Path, src: Path, dst: Path) -> None:
    """A file is named like no shard."""
    shutil.copy(min(src.glob("*.safetensors")), src / "weights.safetensors")


WAYS += [
    _damaged((3, "EP203"), _truncated),
    _damaged((3, "EP204"), _linked),
    _damaged((6, "EP601"), _there_already),
    _damaged((3, "EP206"), _foreign_name),
]


@way
def key_twice(case: Case, chance: Random) -> Due:
    """A tensor is in two files of a rank."""
    if "{part}" not in case.naming.file:
        return None

    def damage(home: Path, src: Path, dst: Path) -> None:
        files = [file for file in sorted(src.glob("*0.safetensors")) if read_shard(file)[0]]
        begin = chance.choice(files).name.removesuffix("0.safetensors")
        held = sorted(src.glob(f"{begin}*.safetensors"))
        tensors, _ = read_shard(src / f"{begin}0.safetensors")
        (src / f"{begin}{len(held)}.safetensors").write_bytes(shard_bytes(dict([tensors.popitem()]), {}, 8))

    say(case)
    case.damage = damage
    return 3, "EP205"


@way
def rank_lost(case: Case, chance: Random) -> Due:
    """The files of a rank are not there."""
    if case.first.num_ranks == 1:
        return None
    pattern = case.naming.file.format(
        rank=chance.randrange(case.first.num_ranks), part="*", stage="*", world="*"
    )

    def damage(home: Path, src: Path, dst: Path) -> None:
        for file in src.glob(pattern):
            file.unlink()

    say(case)
    case.damage = damage
    return 3, "EP202"


def _next_step(case: Case, **said: object) -> None:
    """One more step, from what the first has written."""
    step = case.steps[0]
    case.steps.append(Step(step.new, step.new, said.get("old"), said_of(step.new), ["--format", "json"]))


@way
def other_old(case: Case, chance: Random) -> Due:
    """--old is not what eplb.json says."""
    first, new = case.first, case.steps[0].new
    if first.slots == new.slots and np.array_equal(first.table, new.table):
        return None
    say(case)
    _next_step(case, old=said_of(first))
    return 3, "EP215"


@way
def changed_since(case: Case, chance: Random) -> Due:
    """A row that eplb wrote was changed since."""
    new = case.steps[0].new
    where = [(layer, kind) for layer, kinds in case.model.kinds.items() for kind in kinds if kind.row_nbytes]
    once = [
        (layer, expert)
        for layer, row in zip(new.layers, new.table, strict=True)
        for expert in range(new.experts)
        if (row == expert).sum() == 1
    ]
    found = [(kind, expert) for layer, kind in where for at, expert in once if at == layer]
    if not found:
        return None
    kind, expert = chance.choice(found)

    def damage(home: Path, src: Path, dst: Path) -> None:
        layer = next(layer for layer, kinds in case.model.kinds.items() if kind in kinds)
        row = case.model.rows[layer, kind.name][expert].tobytes()
        slot = int(np.flatnonzero(new.table[new.layers.index(layer)] == expert)[0])
        rank = int(np.searchsorted(np.cumsum(new.slots), slot, side="right"))
        number = slot - sum(new.slots[:rank])
        for file in src.glob("*.safetensors"):
            said, content = read_shard(file)[1], bytearray(file.read_bytes())
            if said["eplb.rank"] == str(rank):
                _flip(content, kind, number, expert, row)
                file.write_bytes(content)

    say(case)
    _next_step(case)
    case.damage = damage
    return 5, "EP506"


def _flip(content: bytearray, kind: Kind, number: int, expert: int, row: bytes) -> None:
    """Change the last byte of one row of a file that has its tensor."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    names = [kind.key, *(kind.key.replace("{number}", str(at)) for at in (number, expert))]
    for key in names:
        if key in header:
            begin = start + header[key]["data_offsets"][0] + (number * len(row) if key == kind.key else 0)
            if content[begin : begin + len(row)] == row:
                content[begin + len(row) - 1] ^= 1
                return
