"""OLD and the ranks that are lost in, NEW and what it comes to out: what `balance --repair` writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from eplb_cli.balance.fit import counted, fitted
from eplb_cli.balance.repair import repair
from eplb_cli.inputs.load import GivenLoad, given_load
from eplb_cli.inputs.old_and_new import refuse_guess
from eplb_cli.inputs.options import PlacementOptions
from eplb_cli.placements.findings import check_placement, raise_first
from eplb_cli.placements.placement import Placement
from eplb_cli.placements.read import read_placement
from eplb_cli.report.repair import Repair


def repaired(
    name: str,
    lost: Sequence[int],
    options: PlacementOptions,
    *,
    load: str | None = None,
    num_redundant_experts: int | None = None,
    expert_nbytes: int | None = None,
) -> tuple[Placement, Repair]:
    """A placement for the ranks that are left; the report does not know its file yet.

    Args:
        name: of OLD.
        lost: the numbers of its ranks that are lost.
        load: a dump, which says what is missed least where a slot has to be made free.
        num_redundant_experts: P - E of NEW, where each rank is to have more slots than it had.

    Raises:
        PlacementError: OLD or the load cannot be read, or do not fit.
        UsageError: EP001, there is no such rank, or the slots do not suffice.
    """
    options.require_used(name, [])
    hints = replace(options.hints, num_ranks=options.old_num_ranks, dialect=options.old_dialect)
    old, warnings = read_placement(name, hints)
    refuse_guess(warnings)
    raise_first(check_placement(old))
    given = None if load is None else given_load(load, options.model, None)
    weights = None if given is None else _weights(given, old)
    done = repair(old, lost, weights, num_redundant_experts)
    new, survivors = done.new, done.survivors
    return new, Repair(
        name,
        "",
        tuple(sorted({*lost})),
        survivors,
        new.num_slots,
        done.num_replicated,
        expert_nbytes,
        None if given is None else given.together(given.judge("OLD", old), given.judge("NEW", new)),
        [finding.message for finding in warnings],
    )


def _weights(given: GivenLoad, old: Placement) -> NDArray[np.float64]:
    """(L, E) the load of each expert; all alike in layers, as of MTP, that it does not count."""
    main = counted(given.load, old, given.mtp_layers)
    weights = np.ones((old.num_layers, old.num_logical_experts))
    rows = slice(None) if main.layer_ids is None else np.isin(_numbers(old), _numbers(main))
    weights[rows] = fitted(given.load, main, given.name, "OLD")
    return weights


def _numbers(placement: Placement) -> list[int]:
    return [] if placement.layer_ids is None else placement.layer_ids.tolist()
