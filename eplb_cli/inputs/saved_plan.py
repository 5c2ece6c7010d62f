"""`plan --out`: a plan as a file, which `reshard --plan` carries out exactly or refuses.

The file has both placements, the options, and digests of all that the plan was made for. A reshard derives
the plan anew from these and goes on only if it comes to the same table of moves.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from eplb_cli import __version__
from eplb_cli.checkpoint.layout import Layout
from eplb_cli.checkpoint.layout_file import layout_from_json, read_layout
from eplb_cli.checkpoint.sharded import with_layers
from eplb_cli.checkpoint.shards import Shards
from eplb_cli.errors import EplbError, PlanError
from eplb_cli.formats.reading import read_json
from eplb_cli.inputs.sample import sample_digests
from eplb_cli.placements.choice import NAMED_MAPS
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.own_format import placement_from_json, placement_to_json
from eplb_cli.placements.placement import Placement
from eplb_cli.placements.read import read_placement
from eplb_cli.plan.choice import RankScalars, Senders, is_rank_scalars, is_senders
from eplb_cli.plan.moves import MoveTable, ReshardPlan
from eplb_cli.report.report import Report, report_json
from eplb_cli.values import dataclass

FORMAT = "eplb-plan/1"
MAX_PLAN_NBYTES = 1 << 28


@dataclass(frozen=True)
class SavedPlan:
    """The content of a plan file.

    Attributes:
        old, new: the placements in the `eplb-placement/1` form.
        senders, ranks_per_node: the options that shaped the plan.
        moves_digest: sha256 of the table of moves.
        sources: absolute paths of the files that "old", "new" and "layout" were read from, if they were.
        totals: as in the report.
        layout: as `Layout.as_json` gives it; None where the plan was made without a checkpoint.
        shards: per file of the checkpoint its bytes and a digest of its header; likewise.
        samples: per file a digest of some of its blocks; None also where an older eplb made the plan.
        rank_scalars: what to do with numbers of ranks.
    """

    tool: str
    old: Mapping[str, Any]
    new: Mapping[str, Any]
    senders: Senders
    ranks_per_node: int | None
    moves_digest: str
    sources: Mapping[str, str]
    totals: Mapping[str, int | None]
    layout: Mapping[str, Any] | None
    shards: Mapping[str, Mapping[str, Any]] | None
    samples: Mapping[str, str] | None = None
    rank_scalars: str | None = None

    def to_bytes(self) -> bytes:
        """The plan as its file holds it, with a digest of everything else in it."""
        content = {"format": FORMAT} | {field.name: getattr(self, field.name) for field in fields(self)}
        return _text({**content, "digest": _digest(content)}) + b"\n"

    def read_old(self, where: Path) -> Placement:
        """OLD. Raises PlacementError."""
        return placement_from_json(dict(self.old), f"OLD in {where}")

    def read_new(self, where: Path) -> Placement:
        """NEW. Raises PlacementError."""
        return placement_from_json(dict(self.new), f"NEW in {where}")

    def read_rank_scalars(self, where: Path) -> RankScalars | None:
        """What to do with numbers of ranks. Raises EP303 for what this version does not know."""
        if self.rank_scalars is None or is_rank_scalars(self.rank_scalars):
            return self.rank_scalars
        raise _unusable(where, f"there is no rule {self.rank_scalars!r} for rank_scalars")

    def read_layout(self, where: Path) -> Layout | None:
        """The layout, None where there was no checkpoint. Raises EP206."""
        return None if self.layout is None else layout_from_json(self.layout, where)


def saved_plan(
    plan: ReshardPlan,
    said: tuple[Placement, Placement],
    report: Report,
    shards: Shards | None,
    names: Mapping[str, str],
    rank_scalars: RankScalars | None = None,
) -> SavedPlan:
    """What a plan file has to say of a plan.

    Args:
        said: OLD and NEW, from which with the shards the plan follows.
        names: what the command line calls "old", "new" and "layout".

    Raises:
        CheckpointError: EP201 or EP220, a shard cannot be read, or has changed.
    """
    sources = {
        role: str(Path(name).absolute())
        for role, name in names.items()
        if name not in NAMED_MAPS and Path(name).is_file()
    }
    return SavedPlan(
        tool=f"eplb {__version__}",
        old=placement_to_json(said[0]),
        new=placement_to_json(said[1]),
        senders=plan.senders,
        ranks_per_node=plan.ranks_per_node,
        moves_digest=moves_digest(plan.moves),
        sources=sources,
        totals=report_json(report)["totals"],
        layout=None if shards is None else shards.layout.as_json(),
        shards=None if shards is None else _identity(shards),
        samples=None if shards is None else sample_digests(shards),
        rank_scalars=rank_scalars,
    )


def read_plan(path: Path) -> SavedPlan:
    """Read a plan file.

    Raises:
        PlanError: EP303, it is none, or was changed.
        CheckpointError: EP201 or EP204, it cannot be read.
    """
    raw = read_json(path, MAX_PLAN_NBYTES, partial(_not_json, path))
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise _unusable(path, f"its format is not {FORMAT}")
    content = {key: value for key, value in raw.items() if key != "digest"}
    if raw.get("digest") != _digest(content):
        raise _unusable(path, "it was changed or damaged after it was written")
    names = {field.name for field in fields(SavedPlan)}
    if missing := names - content.keys() - {"samples", "rank_scalars"}:
        raise _unusable(path, f'"{min(missing)}" is missing')
    if not is_senders(content["senders"]):
        raise _unusable(path, f"there are no senders {content['senders']!r}")
    return SavedPlan(**{name: content[name] for name in names & content.keys()})


def require_unchanged(saved: SavedPlan, where: Path, shards: Shards) -> None:
    """Check that all the plan was made for is as it was: shards, layout, and the files of the placements.

    Raises:
        PlanError: EP304, naming what changed.
        CheckpointError: EP201 or EP220, a shard cannot be read, or changes meanwhile.
    """
    layout = saved.read_layout(where)
    if layout is not None and shards.layout != layout:
        raise _changed(where, f"the layout of {shards.path} is another one")
    if saved.shards is not None:
        _require_shards(saved.shards, where, shards)
    if shards.manifest is not None:
        recorded = shards.manifest.read_placement(shards.path)
        if recorded.digest != with_layers(saved.read_old(where), shards).digest:
            raise _changed(where, f"OLD is not the placement in {shards.path / 'eplb.json'}")
    for role, planned in (("old", saved.read_old(where)), ("new", saved.read_new(where))):
        name = saved.sources.get(role)
        if name is not None and os.path.lexists(name) and not _says(name, planned):
            raise _changed(where, f"{name} has another placement")
    name = saved.sources.get("layout")
    if name is not None and os.path.lexists(name) and _layout_in(name) != layout:
        raise _changed(where, f"{name} has another layout")
    if saved.samples is not None:
        _require_samples(saved.samples, where, shards)


def moves_digest(moves: MoveTable) -> str:
    """Hexadecimal sha256 of a table of moves, whatever its layers are called."""
    sha = hashlib.sha256()
    for column in moves.columns:
        sha.update(column.astype("<i8").tobytes())
    return sha.hexdigest()


def require_same_moves(saved: SavedPlan, where: Path, plan: ReshardPlan) -> None:
    """EP304 unless planning again comes to the table that was saved."""
    if moves_digest(plan.moves) != saved.moves_digest:
        hint = "make it again with `eplb plan --checkpoint SRC --out FILE`, and this version of eplb"
        problem = f"{where} has other moves than its placements give for these shards with eplb {__version__}"
        raise PlanError("EP304", problem, hint)


def _require_shards(planned: Mapping[str, Mapping[str, Any]], where: Path, shards: Shards) -> None:
    found = _identity(shards)
    if differing := sorted(planned.keys() ^ found.keys()):
        what = "is new" if differing[0] in found else "is gone"
        raise _changed(where, f"{shards.path / differing[0]} {what}")
    if differing := [name for name in sorted(found) if found[name] != planned[name]]:
        raise _changed(where, f"{shards.path / differing[0]} is another file")


def _require_samples(planned: Mapping[str, str], where: Path, shards: Shards) -> None:
    found = sample_digests(shards)
    if differing := [name for name in sorted(found) if found[name] != planned.get(name)]:
        raise _changed(where, f"{shards.path / differing[0]} has other bytes")


def _identity(shards: Shards) -> dict[str, dict[str, Any]]:
    """Size and header of each file."""
    result = {}
    for file in shards.files:
        header = [file.header.data_start, dict(file.header.metadata), list(file.header.tensors.items())]
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
        result[file.path.name] = {"nbytes": file.nbytes, "header_digest": digest}
    return result


def _says(name: str, planned: Placement) -> bool:
    """Whether a file still has the placement that was planned, given what else was known of it."""
    hints = Hints(
        slots_per_rank=planned.slots_per_rank,
        num_logical_experts=planned.num_logical_experts,
        layer_ids=planned.layer_ids,
        num_layers=planned.num_layers,
    )
    try:
        placement, _ = read_placement(name, hints)
    except EplbError:
        return False
    return placement.digest == planned.digest


def _layout_in(name: str) -> Layout | None:
    try:
        return read_layout(Path(name))
    except EplbError:
        return None


def _text(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(content)).hexdigest()


def _unusable(where: Path, reason: str) -> PlanError:
    return PlanError("EP303", f"{where} is no plan to carry out: {reason}")


def _not_json(where: Path, reason: str) -> PlanError:
    return _unusable(where, f"it is not JSON: {reason}")


def _changed(where: Path, what: str) -> PlanError:
    return PlanError("EP304", f"{where} is out of date: {what}")
