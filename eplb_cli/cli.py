"""The command line: options, and nothing else. A command is a few lines."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from eplb_cli import __version__, render
from eplb_cli.errors import EXIT_FINDINGS, EXIT_INTERRUPTED, EplbError, UsageError, WorkerError
from eplb_cli.sizes import parse_rates, parse_size

if TYPE_CHECKING:
    from eplb_cli.placement import Hints
    from eplb_cli.report import Report

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Re-shard Mixture-of-Experts checkpoints offline, from one expert-parallel placement to another.",
    epilog="""\b
Exit codes: 0 done, 1 findings, 2 usage, 3 an input cannot be used,
4 a worker failed, 5 bytes differ, 6 the output cannot be written,
130 interrupted.""",
)


class Senders(StrEnum):
    """--senders."""

    balanced = "balanced"
    vllm = "vllm"


class Backend(StrEnum):
    """--backend."""

    auto = "auto"
    nccl = "nccl"
    gloo = "gloo"
    file = "file"


class Format(StrEnum):
    """--format of most commands."""

    text = "text"
    json = "json"


class FindingsFormat(StrEnum):
    """--format of `validate`."""

    text = "text"
    json = "json"
    github = "github"


SendersOption = Annotated[
    Senders,
    typer.Option(
        "--senders",
        help="Who sends an expert that several ranks hold: the busiest least, or as vLLM chooses.",
    ),
]
RanksPerNode = Annotated[
    int | None,
    typer.Option(
        "--ranks-per-node", min=1, max=1_000_000, metavar="G", help="Cross nodes no more than must be."
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", help="What stdout gets.")]
LayoutOption = Annotated[
    str,
    typer.Option(
        "--layout",
        metavar="auto|NAME|FILE",
        help="How files and tensors are named: sharded-state, per-row, deepseek, or a TOML file.",
    ),
]
NumRanks = Annotated[
    int | None,
    typer.Option("--num-ranks", "--ep-size", min=1, metavar="R", help="Ranks of NEW, where it does not say."),
]
OldNumRanks = Annotated[
    int | None,
    typer.Option("--old-num-ranks", min=1, metavar="R", help="Ranks of OLD, where it does not say."),
]
NumExperts = Annotated[
    int | None,
    typer.Option(
        "--num-logical-experts", min=1, metavar="E", help="Experts of the model, where nothing says."
    ),
]
NumRedundant = Annotated[
    int | None,
    typer.Option(
        "--num-redundant-experts", min=0, metavar="N", help="Redundant experts of the named map `linear`."
    ),
]
Full = Annotated[bool, typer.Option("--full", help="List all ranks, however many there are.")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Nothing but --version."""
    if version:
        sys.stdout.write(f"eplb {__version__}\n")
        raise typer.Exit


@app.command(
    short_help="Rearrange shards for another placement.",
    epilog="""\b
Examples:
  eplb reshard SRC DST --old old.json --new new.json
  eplb reshard SRC DST --old linear --new new.json --backend file
  eplb reshard DST DST2 --new newer.json   (the eplb.json in DST says OLD)
  eplb reshard SRC DST --plan plan.json""",
)
def reshard(
    src: Annotated[
        Path, typer.Argument(metavar="SRC", help="Directory of per-rank shards; never written to.")
    ],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="Where the result appears: new, or empty.")],
    new: Annotated[
        str | None,
        typer.Option("--new", metavar="NEW", help="The placement wanted: a file, or linear, or round_robin."),
    ] = None,
    old: Annotated[
        str | None,
        typer.Option(
            "--old",
            metavar="OLD",
            help="The placement of SRC, where no eplb.json says it: a file, or linear, or round_robin.",
        ),
    ] = None,
    plan_file: Annotated[
        Path | None,
        typer.Option(
            "--plan", metavar="FILE", help="Do what `plan --out FILE` planned, instead of --new and --old."
        ),
    ] = None,
    layout: LayoutOption = "auto",
    backend: Annotated[
        Backend,
        typer.Option(
            "--backend",
            help="What moves bytes: nccl or gloo between the workers of a torchrun job, or one process from "
            "file to file; auto is nccl with a GPU for each worker, else gloo.",
        ),
    ] = Backend.auto,
    nproc_per_node: Annotated[
        int | None,
        typer.Option(
            "--nproc-per-node",
            min=1,
            metavar="N",
            help="Workers of the torchrun job; any number serves any number of ranks.",
        ),
    ] = None,
    senders: Annotated[
        Senders | None,
        typer.Option(
            "--senders",
            help="Who sends an expert that several ranks hold: balanced, so that the busiest sends least "
            "(the default), or as vLLM chooses.",
        ),
    ] = None,
    ranks_per_node: RanksPerNode = None,
    buffer_size: Annotated[
        str | None,
        typer.Option(
            "--buffer-size",
            metavar="SIZE",
            help="All send and receive buffers of one worker; default: from the machine and the rows.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            min=1,
            max=1024,
            metavar="N",
            help="Threads of a worker for its files; its share of the cores, two at least.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all inputs, plan, report, and write nothing.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with what a run that was ended has left; what it wrote is read again."
        ),
    ] = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not read the result back.")] = False,
    no_digest: Annotated[
        bool, typer.Option("--no-digest", help="Take no digests: no proof, now or later.")
    ] = False,
    no_fsync: Annotated[
        bool, typer.Option("--no-fsync", help="Leave it to the system when bytes reach the disk.")
    ] = False,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", min=1, metavar="SECONDS", help="End a run that makes no progress for so long."
        ),
    ] = 600.0,
    num_ranks: NumRanks = None,
    old_num_ranks: OldNumRanks = None,
    num_logical_experts: NumExperts = None,
    num_redundant_experts: NumRedundant = None,
    full: Full = False,
    output_format: FormatOption = Format.text,
) -> None:
    """Rearrange the shards in SRC for the placement NEW, into DST, and prove it.

    SRC is only read. DST appears whole, once every row has been read back and compared, or not at all.
    """
    if (new is None) == (plan_file is None):
        raise UsageError("EP001", "reshard needs either --new or --plan", "add one, or leave the other out")
    said = (
        old,
        senders,
        ranks_per_node,
        num_ranks,
        old_num_ranks,
        num_logical_experts,
        num_redundant_experts,
    )
    if plan_file is not None and any(option is not None for option in said):
        problem = "--plan FILE has the placements, --senders and --ranks-per-node"
        raise UsageError("EP001", problem, "leave out what is about these, or leave out --plan")
    from eplb_cli.inputs import PlacementOptions
    from eplb_cli.reshard import Request, plan_request
    from eplb_cli.reshard import reshard as run

    request = Request(
        source=src,
        destination=dst,
        new=new,
        old=old,
        plan=plan_file,
        layout=layout,
        backend=backend.value,
        num_workers=nproc_per_node,
        senders=(senders or Senders.balanced).value,
        ranks_per_node=ranks_per_node,
        buffer_nbytes=None if buffer_size is None else parse_size(buffer_size),
        threads=threads,
        resume=resume,
        verify=not no_verify,
        digests=not no_digest,
        durable=not no_fsync,
        timeout_s=timeout,
        placements=PlacementOptions(
            num_ranks=num_ranks,
            old_num_ranks=old_num_ranks,
            num_logical_experts=num_logical_experts,
            num_redundant_experts=num_redundant_experts,
        ),
    )
    report = plan_request(request, full=full).report if dry_run else run(request, _progress)
    _print_report(report, output_format, full=full)


@app.command(
    short_help="Show what would move, without moving it.",
    epilog="""\b
Examples:
  eplb plan old.json new.json
  eplb plan old.json new.json --expert-bytes 44050944 --ranks-per-node 8
  eplb plan old.json new.json --checkpoint SRC --bandwidth disk=3GB/s
  eplb plan linear new.json --checkpoint SRC --format json
  eplb plan linear new.json --checkpoint SRC --out plan.json""",
)
def plan(
    old: Annotated[str, typer.Argument(metavar="OLD", help="A placement file, or linear, or round_robin.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="A placement file, or linear, or round_robin.")],
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="SRC", help="Shards under OLD, for sizes in bytes.")
    ] = None,
    expert_bytes: Annotated[
        str | None,
        typer.Option("--expert-bytes", metavar="N", help="Bytes of one expert, for sizes without shards."),
    ] = None,
    layout: LayoutOption = "auto",
    bandwidth: Annotated[
        str | None,
        typer.Option(
            "--bandwidth",
            metavar="RATES",
            help="nvlink=370GB/s,network=50GB/s,disk=3GB/s, or some of them: how long it will take, and what "
            "bounds it. nvlink and network are of a rank in each direction, disk is of a node.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Write the plan to FILE, for `reshard --plan FILE`; it is replaced."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Write the report as one page for a browser; FILE is replaced."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Accepted, and changes nothing: a plan is one.")
    ] = False,
    senders: SendersOption = Senders.balanced,
    ranks_per_node: RanksPerNode = None,
    num_ranks: NumRanks = None,
    old_num_ranks: OldNumRanks = None,
    num_logical_experts: NumExperts = None,
    num_redundant_experts: NumRedundant = None,
    full: Full = False,
    output_format: FormatOption = Format.text,
) -> None:
    """Show what would move from OLD to NEW, rank by rank, without moving it."""
    del dry_run
    from eplb_cli.inputs import PlacementOptions
    from eplb_cli.planning import check_outputs, plan_command

    if html is not None:
        from eplb_cli.render.html_page import require_plotly

        require_plotly()
    check_outputs([path for path in (out, html) if path is not None], [old, new, layout], checkpoint)
    if checkpoint is not None and expert_bytes is not None:
        raise UsageError("EP001", "--checkpoint and --expert-bytes both say sizes", "leave one out")
    rates = None if bandwidth is None else parse_rates(bandwidth)
    answer = plan_command(
        old,
        new,
        PlacementOptions(num_ranks, old_num_ranks, num_logical_experts, num_redundant_experts),
        checkpoint=checkpoint,
        layout=layout,
        expert_nbytes=None if expert_bytes is None else parse_size(expert_bytes),
        senders=senders.value,
        ranks_per_node=ranks_per_node,
        rates=rates,
        full=full,
    )
    if out is not None:
        from eplb_cli.saved_plan import save_plan

        shards = answer.prepared.checkpoint.shards if answer.prepared else None
        save_plan(out, answer.plan, answer.report, shards, {"old": old, "new": new, "layout": layout})
    if html is not None:
        from eplb_cli.render.html_page import write_html

        write_html(html, answer.plan, answer.report, (old, new))
    _print_report(answer.report, output_format, full=full)


@app.command(
    short_help="Check placement files.",
    epilog="""\b
Examples:
  eplb validate maps/*.json
  eplb validate new.json --against old.json --format github""",
)
def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Placement files.")],
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="OLD", help="Check that OLD can be turned into each of them."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="DIR",
            help="Shards whose layers, ranks and slots each of them has to have; with --against, OLD.",
        ),
    ] = None,
    num_ranks: Annotated[
        int | None,
        typer.Option(
            "--num-ranks", "--ep-size", min=1, metavar="R", help="Ranks, where a file does not say."
        ),
    ] = None,
    old_num_ranks: OldNumRanks = None,
    num_logical_experts: NumExperts = None,
    num_redundant_experts: NumRedundant = None,
    output_format: Annotated[
        FindingsFormat, typer.Option("--format", help="What stdout gets.")
    ] = FindingsFormat.text,
) -> None:
    """Check placements, and say all that is wrong with them at once.

    Exits with 1 where there is an error among the findings; warnings alone are no reason.
    """
    from eplb_cli.placement import Hints
    from eplb_cli.validate import validate_files

    old_ranks = old_num_ranks or (num_ranks if against in ("linear", "round_robin") else None)
    hints = Hints(num_ranks, None, num_logical_experts, num_redundant_experts=num_redundant_experts)
    old_hints = replace(hints, num_ranks=old_ranks)
    if checkpoint is not None:
        hints, old_hints = _with_checkpoint(checkpoint, hints, old_hints, compares_old=against is not None)
    findings = validate_files(files, hints, against, old_hints)
    render.print_findings(findings, files, output_format.value)
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(EXIT_FINDINGS)


@app.command(short_help="Prove again that an output is what it should be.")
def verify(
    dst: Annotated[Path, typer.Argument(metavar="DST", help="A directory that eplb wrote.")],
    against: Annotated[
        Path | None, typer.Option("--against", metavar="SRC", help="The shards it was made from.")
    ] = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Prove again, from the files alone, that DST holds what it should.

    Every byte of DST is read and compared with the digests taken while it was written; with --against, also
    with SRC. Exits with 5 where a byte differs.
    """
    from eplb_cli.progress import accumulate
    from eplb_cli.verify import verify as run

    total_nbytes = _tree_nbytes(dst) + (_tree_nbytes(against) if against else 0)
    with _progress(total_nbytes, "verify") as show:
        result = run(dst, against, accumulate(show))
        show(total_nbytes)  # headers are read, and not counted
    for warning in result["warnings"]:
        render.print_warning(warning)
    if output_format is Format.json:
        render.print_json({"format": "eplb-verification/1", **result})
    else:
        render.print_verification(result)


@app.command(short_help="Show what a directory of shards holds.")
def inspect(
    src: Annotated[Path, typer.Argument(metavar="SRC", help="A directory of per-rank shards.")],
    layout: LayoutOption = "auto",
    deep: Annotated[
        bool,
        typer.Option(
            "--deep", help="Read all rows: compare replicas, and what eplb.json says; exit 1 on findings."
        ),
    ] = False,
    output_format: FormatOption = Format.text,
) -> None:
    """Show what the shards in SRC hold: layout, ranks, slots, layers, and the tensors of an expert."""
    from eplb_cli.inspection import inspect_shards
    from eplb_cli.progress import accumulate

    total_nbytes = _tree_nbytes(src) if deep else 0
    with _progress(total_nbytes, "inspect") as show:
        found = inspect_shards(src, layout, deep=deep, advance=accumulate(show))
        show(total_nbytes)
    if output_format is Format.json:
        render.print_json(found)
    else:
        render.print_inspection(found)
    if found["findings"]:
        raise typer.Exit(EXIT_FINDINGS)


def _with_checkpoint(
    path: Path, hints: Hints, old_hints: Hints, *, compares_old: bool
) -> tuple[Hints, Hints]:
    """The hints together with what the shards say: of OLD where there is one, else of each placement."""
    import numpy as np

    from eplb_cli.checkpoint import open_shards

    shards = open_shards(path)
    layer_ids, slots = np.array(shards.moe_layers, np.int64), shards.slots_per_rank
    of_old = replace(old_hints, layer_ids=layer_ids, slots_per_rank=slots)
    return replace(hints, layer_ids=layer_ids, slots_per_rank=None if compares_old else slots), of_old


def _print_report(report: Report, output_format: Format, *, full: bool) -> None:
    if output_format is Format.json or not sys.stdout.isatty():  # on a terminal the page has them
        for warning in report.warnings:
            render.print_warning(warning)
    if output_format is Format.json:
        from eplb_cli.report import report_json

        render.print_json(report_json(report))
    else:
        render.print_report(report, full=full)


@contextlib.contextmanager
def _progress(total_nbytes: int, description: str) -> Iterator[Callable[[int], None]]:
    if total_nbytes == 0:
        yield lambda _: None
        return
    with render.Progress(total_nbytes, description) as bar:
        yield bar.update


def _tree_nbytes(path: Path) -> int:
    """Bytes of the shards in a directory, 0 where it cannot be read: the command itself will say why."""
    with contextlib.suppress(OSError):
        return sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return 0


class _Interrupted(BaseException):
    """SIGINT or SIGTERM."""


def _interrupt(signal_number: int, frame: FrameType | None) -> NoReturn:
    del frame
    # A second one must not cut the cleaning up short.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise _Interrupted(signal_number)


def main() -> None:
    """Run the command line; every error is one message and one exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    _replace_closed_streams()
    try:
        app()
    except EplbError as error:
        _fail(error)
    except _Interrupted:
        sys.stderr.write("interrupted: nothing was written\n")
        sys.exit(EXIT_INTERRUPTED)
    except MemoryError:
        _fail(WorkerError("EP401", "memory is short", "a smaller --buffer-size needs less"))
    except OSError as error:  # stdout itself, or a file of the run that no one else speaks for
        from eplb_cli.files import output_error

        _fail(output_error(error, error.filename or "stdout"))
    except Exception as error:  # noqa: BLE001 - the last resort: even a bug in eplb has a code and no traceback
        problem = f"unexpected {type(error).__name__}: {error}"
        _fail(
            WorkerError("EP401", problem, "this is a bug in eplb, please report it; EPLB_DEBUG=1 shows where")
        )


def _replace_closed_streams() -> None:
    """What a caller closed (`>&-`) takes everything and keeps nothing."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - open until the end


def _fail(error: EplbError) -> NoReturn:
    """End with the error's message and exit code."""
    if os.environ.get("EPLB_DEBUG") == "1":
        traceback.print_exc()
    with contextlib.suppress(BrokenPipeError):
        render.print_error(error)
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
