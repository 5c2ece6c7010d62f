"""What a directory of shards holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eplb_cli.placements.findings import Finding
from eplb_cli.placements.own_format import placement_to_json
from eplb_cli.placements.placement import Placement
from eplb_cli.values import dataclass

if TYPE_CHECKING:
    from eplb_cli.report.balance import Balances


@dataclass(frozen=True)
class ExpertTensor:
    """One tensor of an expert, in all layers where a row of it looks alike.

    Attributes:
        name: its key in the shards, with {layer}, and {row} or {expert} where each row is a tensor.
        dtype: as safetensors calls it.
        row_shape: of one row; () for one number a row.
        row_nbytes: bytes of one row.
        num_layers: MoE layers that have it.
    """

    name: str
    dtype: str
    row_shape: tuple[int, ...]
    row_nbytes: int
    num_layers: int


@dataclass(frozen=True, eq=False)
class Inspection:
    """What a directory of shards holds.

    Attributes:
        path: the directory.
        layout: the name of the layout that its tensors follow.
        slots_per_rank: (R,) rows that each rank has of an expert tensor.
        layers: (L,) the model's own numbers of its MoE layers, ascending.
        further_layers: those of them that no map of an engine names, of MTP or another module: each by its
            number in words.
        expert_tensors: what an expert consists of.
        num_others: tensors that are no expert's, counted on every rank that has them.
        others_nbytes: their bytes.
        sharded_others: keys of those that look as if each rank had only a piece.
        num_files: shard files.
        nbytes: their bytes.
        placement: which expert each slot holds, as eplb.json or maps inside the shards say it; None without.
        distinct_rows: (L,) filled slots that differ in their bytes; None unless the rows were read.
        findings: what contradicts itself, and a warning where nothing says how many experts there are.
        load: the placement under a load, where one is given.
    """

    path: Path
    layout: str
    slots_per_rank: tuple[int, ...]
    layers: tuple[int, ...]
    further_layers: Mapping[int, str]
    expert_tensors: tuple[ExpertTensor, ...]
    num_others: int
    others_nbytes: int
    sharded_others: tuple[str, ...]
    num_files: int
    nbytes: int
    placement: Placement | None = None
    distinct_rows: tuple[int, ...] | None = None
    findings: tuple[Finding, ...] = ()
    load: Balances | None = None

    @property
    def num_ranks(self) -> int:
        """R."""
        return len(self.slots_per_rank)


def inspection_json(inspection: Inspection) -> dict[str, Any]:
    """An inspection as `--format json` shows it; "load" is there only where one is given."""
    placement, distinct = inspection.placement, inspection.distinct_rows
    result = {
        "format": "eplb-inspection/1",
        "path": str(inspection.path),
        "layout": inspection.layout,
        "num_ranks": inspection.num_ranks,
        "slots_per_rank": list(inspection.slots_per_rank),
        "layers": list(inspection.layers),
        "further_layers": {str(number): name for number, name in inspection.further_layers.items()},
        "expert_tensors": list(map(_tensor_json, inspection.expert_tensors)),
        "others": {"count": inspection.num_others, "bytes": inspection.others_nbytes},
        "sharded_others": list(inspection.sharded_others),
        "files": inspection.num_files,
        "bytes": inspection.nbytes,
        "placement": None if placement is None else placement_to_json(placement),
        "distinct_rows": None if distinct is None else list(distinct),
        "findings": [asdict(finding) for finding in inspection.findings],
    }
    if inspection.load:
        from eplb_cli.report.balance import balances_json

        result["load"] = balances_json(inspection.load)
    return result


def _tensor_json(tensor: ExpertTensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "row_shape": list(tensor.row_shape),
        "row_bytes": tensor.row_nbytes,
        "num_layers": tensor.num_layers,
    }
