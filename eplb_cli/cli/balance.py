"""`eplb balance`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eplb_cli import render
from eplb_cli.cli import complete
from eplb_cli.cli.options import (
    A_PLACEMENT,
    Format,
    FormatOption,
    ModelOption,
    OldFromOption,
    OldNumRanks,
    RanksPerNode,
    named_model,
    whole_number,
)
from eplb_cli.cli.outputs import STDOUT, check_outputs, write_output
from eplb_cli.cli.repair import LostRanksOption, RepairOption
from eplb_cli.cli.repair import repair as repair_placement
from eplb_cli.errors import UsageError
from eplb_cli.placements.dialects.registry import DialectName
from eplb_cli.report.sizes import parse_limit, parse_size

if TYPE_CHECKING:
    from eplb_cli.models.model import Model
    from eplb_cli.placements.placement import Placement
    from eplb_cli.report.rebalance import Rebalance

EXAMPLES = """\b
Examples:
  eplb balance load.npy --num-ranks 8 --num-redundant-experts 8 --out new.json
  eplb balance load.pt --old old.json --out new.json --curve --model kimi-k2
  eplb balance load.pt --old old.json --out new.json --max-moved-bytes 9GB
  eplb balance --repair old.json --lost-ranks 5,17 --out new.json"""


def command(
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="NEW",
            help="A new file, with a suffix that the dialect has: mostly .json; - is stdout.",
        ),
    ],
    load: Annotated[
        str | None,
        typer.Argument(
            metavar="LOAD", help="How many tokens each expert got, in any form that `inspect` reads."
        ),
    ] = None,
    num_ranks: Annotated[
        int | None,
        typer.Option(
            "--num-ranks",
            "--ep-size",
            parser=whole_number(1),
            metavar="RANKS",
            help="How many ranks NEW has, if not as many as OLD.",
        ),
    ] = None,
    num_redundant_experts: Annotated[
        int | None,
        typer.Option(
            "--num-redundant-experts",
            parser=whole_number(0),
            metavar="SLOTS",
            help="How many more slots than experts NEW has, if not as many as OLD; none without OLD.",
        ),
    ] = None,
    ranks_per_node: RanksPerNode = None,
    num_groups: Annotated[
        int | None,
        typer.Option(
            "--num-groups",
            parser=whole_number(1),
            metavar="GROUPS",
            help="Groups of experts that the router chooses first, if the model does not say. With "
            "--ranks-per-node each is kept on one node, where as many fit on each.",
        ),
    ] = None,
    old: Annotated[
        str | None,
        typer.Option(
            "--old",
            metavar="OLD",
            autocompletion=complete.maps,
            help=f"The placement there is, to move little: {A_PLACEMENT}.",
        ),
    ] = None,
    max_moved_bytes: Annotated[
        str | None,
        typer.Option(
            "--max-moved-bytes",
            metavar="SIZE",
            help="Find the best balance for which no more comes from other ranks, as `plan` counts it.",
        ),
    ] = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Draw balance against the bytes that move, from OLD to the best.")
    ] = False,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="SRC", help="Shards under OLD, for sizes in bytes.")
    ] = None,
    expert_bytes: Annotated[
        str | None,
        typer.Option("--expert-bytes", metavar="SIZE", help="Bytes of one expert, for sizes without shards."),
    ] = None,
    to: Annotated[DialectName, typer.Option("--to", help="The dialect to write.")] = "eplb",
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write the report as one page for a browser; FILE is replaced; - is stdout.",
        ),
    ] = None,
    repair: RepairOption = None,
    lost_ranks: LostRanksOption = None,
    old_num_ranks: OldNumRanks = None,
    old_dialect: OldFromOption = None,
    model: ModelOption = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Make a placement NEW in which the busiest rank bears as little of the load as can be.

    With --old, ranks and rows get the names that OLD has for them, and what balance costs in bytes is shown,
    or limited. With --repair, ranks of OLD are lost.
    """
    from eplb_cli.inputs.balanced import Wanted, balanced
    from eplb_cli.inputs.options import PlacementOptions

    with_old = {
        "--max-moved-bytes": max_moved_bytes,
        "--curve": curve or None,
        "--old-num-ranks": old_num_ranks,
        "--old-from": old_dialect,
        "--expert-bytes": expert_bytes,
    }
    without_repair = {
        "--old": old,
        "--checkpoint": checkpoint,
        "--num-ranks": num_ranks,
        "--ranks-per-node": ranks_per_node,
        "--num-groups": num_groups,
        "--max-moved-bytes": max_moved_bytes,
        "--curve": curve or None,
        "--html": html,
    }
    options = PlacementOptions(
        old_num_ranks=old_num_ranks, old_dialect=old_dialect, model=named_model(model, checkpoint)
    )
    expert_nbytes = None if expert_bytes is None else parse_size(expert_bytes)
    if repair is not None:
        _refuse(without_repair, "is not for a repair, which keeps what is left as it is")
        repair_placement(
            repair,
            lost_ranks,
            out,
            to,
            options,
            output_format,
            load=load,
            num_redundant_experts=num_redundant_experts,
            expert_nbytes=expert_nbytes,
        )
        return
    _refuse({"--lost-ranks": lost_ranks}, "is about a repair, and there is no --repair")
    if load is None:
        raise UsageError("EP001", "there is no load to balance", "name LOAD; `eplb inspect LOAD` shows it")
    if old is None and checkpoint is None:
        _refuse(with_old, "is about OLD, and there is no --old")
    limit = None if max_moved_bytes is None else parse_limit("--max-moved-bytes", max_moved_bytes)
    wanted = Wanted(num_ranks, num_redundant_experts, ranks_per_node, num_groups, limit, with_curve=curve)
    _check(load, old, checkpoint, out, html, output_format)
    placement, report = balanced(
        load, wanted, options, old=old, checkpoint=checkpoint, expert_nbytes=expert_nbytes
    )
    report = _write(placement, report, out, to, options.model)
    if html is not None:
        from eplb_cli.render.html_rebalance import rebalance_html

        write_output(html, rebalance_html(report, ("eplb", *sys.argv[1:])), replace=True)
    _print(report, output_format, picture=curve, is_quiet=STDOUT in (out, html))


def _refuse(said: Mapping[str, object], why: str) -> None:
    """EP001 for an option that says nothing here."""
    for option, value in said.items():
        if value is not None:
            raise UsageError("EP001", f"{option} {why}", "leave one of the two out")


def _check(
    load: str,
    old: str | None,
    checkpoint: Path | None,
    out: Path,
    html: Path | None,
    output_format: Format,
) -> None:
    """Refuse outputs that cannot be, before anything is read."""
    if html is not None:
        from eplb_cli.render.html_page import require_plotly

        require_plotly()
    read = [load, *([] if old is None else [old])]
    check_outputs([out, html], output_format, inputs=read, sources=[checkpoint], replace=True)
    check_outputs([out], output_format, replace=False)


def _write(placement: Placement, report: Rebalance, out: Path, to: str, model: Model | None) -> Rebalance:
    """Write NEW in its dialect; the report with where it is, and with what the dialect leaves out."""
    from dataclasses import replace

    from eplb_cli.placements.convert import text_in_dialect
    from eplb_cli.placements.hints import Hints

    hints = Hints(num_logical_experts=placement.num_logical_experts, model=model)
    _, left_out, text = text_in_dialect(placement, None if out == STDOUT else out, to, hints)
    write_output(out, text, replace=False)
    warnings = [*report.warnings, *(finding.message for finding in left_out)]
    return replace(report, output=str(out), warnings=warnings)


def _print(report: Rebalance, output_format: Format, *, picture: bool, is_quiet: bool) -> None:
    """The report, unless stdout has something else; warnings on stderr where the page does not have them."""
    if is_quiet or output_format is Format.json or not sys.stdout.isatty():
        for warning in report.warnings:
            render.print_warning(warning)
    if is_quiet:
        return
    if output_format is Format.json:
        from eplb_cli.report.rebalance import rebalance_json

        render.print_json(rebalance_json(report))
    else:
        render.print_rebalance(report, picture=picture)
