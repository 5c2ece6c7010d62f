"""`eplb plan`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from eplb_cli.cli import complete
from eplb_cli.cli.options import (
    A_PLACEMENT,
    Format,
    FormatOption,
    FromOption,
    Full,
    LayoutOption,
    LoadOption,
    ModelOption,
    NumExperts,
    NumRanks,
    NumRedundant,
    OldFromOption,
    OldNumRanks,
    OutNewOption,
    RankScalarsOption,
    RanksPerNode,
    RelabelOption,
    SendersOption,
    named_model,
)
from eplb_cli.cli.outputs import STDOUT, check_outputs, write_output
from eplb_cli.cli.relabelled import require_out_new, write_new
from eplb_cli.cli.show import print_report, print_warnings, progress_bar
from eplb_cli.errors import UsageError
from eplb_cli.report.sizes import parse_rates, parse_size

EXAMPLES = """\b
Examples:
  eplb plan old.json new.json
  eplb plan old.json new.json --model deepseek-v3 --ranks-per-node 8
  eplb plan old.json new.json --checkpoint SRC --bandwidth disk=3GB/s
  eplb plan linear new.json --checkpoint SRC --format json
  eplb plan linear new.json --checkpoint SRC --out plan.json
  eplb plan old.json new.json --load load.npy"""


def command(
    old: Annotated[
        str,
        typer.Argument(
            metavar="OLD", autocompletion=complete.maps, help=f"The placement there is: {A_PLACEMENT}."
        ),
    ],
    new: Annotated[
        str,
        typer.Argument(
            metavar="NEW", autocompletion=complete.maps, help=f"The placement wanted: {A_PLACEMENT}."
        ),
    ],
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="SRC", help="Shards under OLD, for sizes in bytes.")
    ] = None,
    expert_bytes: Annotated[
        str | None,
        typer.Option("--expert-bytes", metavar="SIZE", help="Bytes of one expert, for sizes without shards."),
    ] = None,
    layout: LayoutOption = "auto",
    bandwidth: Annotated[
        str | None,
        typer.Option(
            "--bandwidth",
            metavar="LINK=RATE,...",
            help="Say how long it will take, and what bounds it, at nvlink=370GB/s,network=50GB/s,disk=3GB/s "
            "or some of these: nvlink and network of a rank in each direction, disk of a node.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Write the plan to FILE, for `reshard --plan FILE`; it is replaced; - is stdout.",
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write the report as one page for a browser; FILE is replaced; - is stdout.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Changes nothing: a plan writes only --out, --html and --out-new."),
    ] = False,
    senders: SendersOption = "balanced",
    ranks_per_node: RanksPerNode = None,
    rank_scalars: RankScalarsOption = None,
    relabel: RelabelOption = "none",
    out_new: OutNewOption = None,
    num_ranks: NumRanks = None,
    old_num_ranks: OldNumRanks = None,
    num_logical_experts: NumExperts = None,
    num_redundant_experts: NumRedundant = None,
    dialect: FromOption = None,
    old_dialect: OldFromOption = None,
    model: ModelOption = None,
    load: LoadOption = None,
    full: Full = False,
    output_format: FormatOption = Format.text,
) -> None:
    """Show what would move from OLD to NEW, rank by rank, without moving it."""
    del dry_run
    from eplb_cli.inputs.options import PlacementOptions
    from eplb_cli.run.planning import plan_files

    if html is not None:
        from eplb_cli.render.html_page import require_plotly

        require_plotly()
    inputs = [old, new, layout, *([] if load is None else [load])]
    outputs = [out, html, out_new]
    check_outputs(outputs, output_format, inputs=inputs, sources=[checkpoint], replace=True)
    require_out_new(relabel, out_new, is_made=out is not None)
    if rank_scalars is not None and checkpoint is None and out is None:
        raise UsageError("EP001", "--rank-scalars is of shards, and there is no --checkpoint", "add it")
    rates = None if bandwidth is None else parse_rates(bandwidth)
    options = PlacementOptions(
        num_ranks,
        old_num_ranks,
        num_logical_experts,
        num_redundant_experts,
        dialect,
        old_dialect,
        named_model(model, checkpoint),
    )
    answer = plan_files(
        old,
        new,
        checkpoint=checkpoint,
        layout=layout,
        options=options,
        expert_nbytes=None if expert_bytes is None else parse_size(expert_bytes),
        senders=senders,
        ranks_per_node=ranks_per_node,
        rank_scalars=rank_scalars,
        relabel=relabel,
        full=full,
        load=load,
        progress=progress_bar,
    )
    if rates is not None:
        answer = answer.with_estimate(rates)
    answer = replace(answer, report=write_new(answer.report, out_new))
    if out is not None:
        from eplb_cli.inputs.old_and_new import refuse_guess
        from eplb_cli.inputs.saved_plan import saved_plan

        if checkpoint is None:
            refuse_guess(answer.warnings)

        shards = answer.prepared.checkpoint.shards if answer.prepared else None
        names = {"old": old, "new": str(out_new or new), "layout": layout}
        said = answer.said or (answer.plan.old, answer.plan.new)
        saved = saved_plan(answer.plan, said, answer.report, shards, names, rank_scalars)
        write_output(out, saved.to_bytes().decode(), replace=True)
    if html is not None:
        from eplb_cli.render.html_page import html_page

        write_output(
            html, html_page(answer.plan, answer.report, (old, new), ("eplb", *sys.argv[1:])), replace=True
        )
    if STDOUT in outputs:
        print_warnings(answer.report)
    else:
        print_report(answer.report, output_format, full=full)
