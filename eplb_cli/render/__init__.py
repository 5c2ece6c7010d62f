"""What a person, a script or GitHub gets to read: the only package that may import rich.

::

    text          numbers and untrusted words as text; writing to any stream
    messages      json, errors, warnings
    findings      what `validate` found: text and json; github, sarif and junit have its other forms
    explanation   what `explain` says of a code
    progress      bytes done, on stderr
    words         what the numbers of a report are called and mean
    page          rich: the console and the table all pages share
    report_page   rich: what `plan` and `reshard` print
    run_page      rich: what a run took and proved
    heat_map      rich: who sends how much to whom
    bars          rich: what ranks send and receive, and the layers that move most
    balance       rich: how evenly placements spread a load
    html_page     plotly: what `plan --html` writes, with the pictures of html_figures and html_balance, into
                  the frame of html_text
    inspection    rich: what `inspect`, `verify`, `shard`, `merge` and `bake` print

Importing rich costs as much as importing typer, so it is imported by the first page that is printed,
and by nothing else: json, errors and annotations never need it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from eplb_cli.render.findings import print_findings
from eplb_cli.render.messages import (
    print_detail,
    print_error,
    print_interrupted,
    print_json,
    print_json_error,
    print_note,
    print_warning,
)
from eplb_cli.render.progress import Progress
from eplb_cli.render.text import write

if TYPE_CHECKING:
    from eplb_cli.errors import EplbError
    from eplb_cli.models.model import Model
    from eplb_cli.report.balance import Balances
    from eplb_cli.report.explanation import Explanation
    from eplb_cli.report.identification import Identification
    from eplb_cli.report.inspection import Inspection
    from eplb_cli.report.load import LoadSummary
    from eplb_cli.report.rebalance import Rebalance
    from eplb_cli.report.repair import Repair
    from eplb_cli.report.report import Report
    from eplb_cli.report.verification import Verification
    from eplb_cli.report.written import Written

__all__ = [
    "Progress",
    "annotate_error",
    "print_balances",
    "print_detail",
    "print_error",
    "print_explanation",
    "print_explanations",
    "print_findings",
    "print_identification",
    "print_inspection",
    "print_interrupted",
    "print_json",
    "print_json_error",
    "print_load",
    "print_models",
    "print_note",
    "print_rebalance",
    "print_repair",
    "print_report",
    "print_verification",
    "print_warning",
    "print_written",
]


def print_report(report: Report, stream: TextIO | None = None, *, full: bool = False) -> None:
    """Print what a plan moves or a run has moved; `full` lists every rank, however many there are."""
    from eplb_cli.render.page import page
    from eplb_cli.render.report_page import show_report

    with page(stream or sys.stdout) as console:
        show_report(console, report, full=full)


def print_balances(found: Balances, stream: TextIO | None = None) -> None:
    """Print how evenly placements spread a load."""
    from eplb_cli.render.balance import show_balances
    from eplb_cli.render.page import page

    with page(stream or sys.stdout) as console:
        show_balances(console, found)


def print_repair(found: Repair, stream: TextIO | None = None) -> None:
    """Print what `balance --repair` has made."""
    from eplb_cli.render.page import page
    from eplb_cli.render.repair_page import show_repair

    with page(stream or sys.stdout) as console:
        show_repair(console, found)


def print_rebalance(found: Rebalance, stream: TextIO | None = None, *, picture: bool = False) -> None:
    """Print what `balance` has made; `picture` adds balance against bytes as one."""
    from eplb_cli.render.page import page
    from eplb_cli.render.rebalance_page import show_rebalance

    with page(stream or sys.stdout) as console:
        show_rebalance(console, found, picture=picture)


def print_inspection(inspection: Inspection, stream: TextIO | None = None) -> None:
    """Print what a directory of shards holds, as `inspect` found it."""
    from eplb_cli.render.inspection import show_inspection
    from eplb_cli.render.page import page

    with page(stream or sys.stdout) as console:
        show_inspection(console, inspection)


def print_written(what: str, done: Written, stream: TextIO | None = None) -> None:
    """Print what `shard`, `merge` or `bake` has made; `what` is shards or a checkpoint."""
    from eplb_cli.render.inspection import show_written
    from eplb_cli.render.page import page

    with page(stream or sys.stdout) as console:
        show_written(console, what, done)


def print_identification(found: Identification, stream: TextIO | None = None) -> None:
    """Print what the rows of shards turned out to be."""
    from eplb_cli.render.inspection import show_identification
    from eplb_cli.render.page import page

    with page(stream or sys.stdout) as console:
        show_identification(console, found)


def print_load(load: LoadSummary, stream: TextIO | None = None) -> None:
    """Print the load that a file holds."""
    from eplb_cli.render.inspection import show_load
    from eplb_cli.render.page import page

    with page(stream or sys.stdout) as console:
        show_load(console, load)


def annotate_error(error: EplbError) -> None:
    """Print an annotation of what ended the command, for GitHub, beside its message on stderr."""
    from eplb_cli.render.github import error_command

    write(sys.stdout, error_command(error) + "\n")


def print_explanation(found: Explanation, output_format: str = "text") -> None:
    """Print what is known of a code."""
    from eplb_cli.render.explanation import explanation_text
    from eplb_cli.report.explanation import explanation_json

    if output_format == "json":
        print_json(explanation_json(found))
    else:
        write(sys.stdout, explanation_text(found))


def print_explanations(found: Sequence[Explanation], output_format: str = "text") -> None:
    """Print all codes: a line for each, and for a program all that is known."""
    from eplb_cli.render.explanation import list_text
    from eplb_cli.report.explanation import explanation_json

    if output_format == "json":
        print_json({"format": "eplb-codes/1", "codes": list(map(explanation_json, found))})
    else:
        write(sys.stdout, list_text())


def print_models(models: Sequence[Model], stream: TextIO | None = None) -> None:
    """Print the model presets."""
    from eplb_cli.render.inspection import show_models
    from eplb_cli.render.page import page

    with page(stream or sys.stdout) as console:
        show_models(console, models)


def print_verification(verification: Verification, stream: TextIO | None = None) -> None:
    """Print what `verify` proved."""
    from eplb_cli.render.inspection import show_verification
    from eplb_cli.render.page import page

    with page(stream or sys.stdout) as console:
        show_verification(console, verification)
