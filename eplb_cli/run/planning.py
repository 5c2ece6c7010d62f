"""`eplb plan`: two placements and perhaps sizes in, a plan and its report out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eplb_cli.errors import OutputError, UsageError
from eplb_cli.inputs.old_and_new import read_pair
from eplb_cli.inputs.options import PlacementOptions
from eplb_cli.plan.choice import Senders
from eplb_cli.plan.moves import ReshardPlan
from eplb_cli.plan.plan import plan_reshard
from eplb_cli.progress import ProgressBar
from eplb_cli.report.report import Report
from eplb_cli.report.sizes import Rates
from eplb_cli.report.tally import plan_report

if TYPE_CHECKING:
    from eplb_cli.inputs.given import Given
    from eplb_cli.output.prepared import Prepared


@dataclass(frozen=True, eq=False)
class Answer:
    """A plan and the report on it; `prepared` is None where there is no checkpoint."""

    plan: ReshardPlan
    report: Report
    prepared: Prepared | None = None

    def with_estimate(self, rates: Rates) -> Answer:
        """The same, with how long it will take."""
        from eplb_cli.report.estimate import estimate

        totals = self.report.totals
        took = estimate(self.plan, rates, totals.other_bytes or 0, totals.output_bytes)
        return replace(self, report=replace(self.report, estimate=took))


def plan_placements(
    names: tuple[str, str],
    options: PlacementOptions,
    senders: Senders,
    ranks_per_node: int | None,
    expert_nbytes: int | None,
    *,
    full: bool,
) -> Answer:
    """Plan from two placements alone.

    Args:
        names: of OLD and of NEW.
        expert_nbytes: bytes of an expert; None where the model says it, or nothing does.

    Raises:
        EplbError: the placements cannot be used.
    """
    old, new, warnings = read_pair(*names, options)
    if expert_nbytes is None and options.model is not None:
        expert_nbytes = options.model.expert_nbytes
    sizes = None if expert_nbytes is None else np.full(old.num_layers, expert_nbytes, np.int64)
    plan = plan_reshard(old, new, senders, expert_nbytes=sizes, ranks_per_node=ranks_per_node)
    messages = [finding.message for finding in warnings]
    return Answer(plan, plan_report(plan, sizes, full=full, warnings=messages))


def plan_checkpoint(given: Given, progress: ProgressBar, *, full: bool) -> Answer:
    """Plan for a checkpoint, and refuse what a reshard of it would.

    Raises:
        EplbError: the placements, or the checkpoint, cannot be used.
    """
    from eplb_cli.checkpoint.recorded import require_digests
    from eplb_cli.machine import default_threads
    from eplb_cli.run.clock import Clock
    from eplb_cli.run.preparing import prepare_given, prepared_report

    prepared, _ = prepare_given(given, default_threads(1), progress, Clock(), compare=False)
    require_digests(prepared.checkpoint)
    return Answer(prepared.plan, prepared_report(given, prepared, full=full), prepared)


def check_outputs(outputs: list[Path], inputs: list[str], checkpoint: Path | None) -> None:
    """Refuse to write over what is read, or two things to one place, before anything is planned.

    Raises:
        UsageError: EP001.
        OutputError: EP602, inside SRC.
    """
    places = [path.resolve() for path in outputs]
    for number, (path, place) in enumerate(zip(outputs, places, strict=True)):
        if place in [Path(name).resolve() for name in inputs] or place in places[:number]:
            raise UsageError("EP001", f"{path} would be written over", "name another file")
        if checkpoint is not None and checkpoint.resolve() in place.parents:
            raise OutputError(
                "EP602", f"{path} is inside {checkpoint}, which is only read", "name another place"
            )
