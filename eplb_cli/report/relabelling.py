"""What relabelling has saved: the plan for NEW beside the one for NEW as it was given."""

from __future__ import annotations

from dataclasses import replace

from eplb_cli.placements.placement import Placement
from eplb_cli.plan.choice import Relabel
from eplb_cli.plan.moves import ReshardPlan
from eplb_cli.plan.plan import plan_reshard
from eplb_cli.report.report import Relabelled
from eplb_cli.report.tally import plan_report


def relabelling(plan: ReshardPlan, asked: Placement, new: Placement, how: Relabel) -> Relabelled:
    """What has become of the layers that NEW names.

    Args:
        plan: the plan for NEW, perhaps with further layers, which nobody relabels.
        asked: NEW as it was given.
        new: NEW as it is planned, with the layers of `asked` in their order.
    """
    table = plan.new.physical_to_logical.copy()
    if plan.new.layer_ids is None or asked.layer_ids is None:
        table[:] = asked.physical_to_logical
    else:
        row = {number: row for row, number in enumerate(plan.new.layer_ids.tolist())}
        table[[row[number] for number in asked.layer_ids.tolist()]] = asked.physical_to_logical
    as_asked = replace(plan.new, physical_to_logical=table)
    sizes = plan.expert_nbytes
    before = plan_reshard(plan.old, as_asked, plan.senders, expert_nbytes=sizes, nodes=plan.nodes)
    return Relabelled(how, new, plan_report(before, sizes).totals)
