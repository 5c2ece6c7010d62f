"""The command line: options, and nothing else. A command is a few lines."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from eplb_cli import __version__, render
from eplb_cli.errors import EXIT_FINDINGS, EXIT_INTERRUPTED, EplbError, UsageError
from eplb_cli.report import Report, report_json

if TYPE_CHECKING:
    from eplb_cli.placement import Hints

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Re-shard Mixture-of-Experts checkpoints offline, from one expert-parallel placement to another.",
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
        "--senders", help="Who sends an expert that several ranks hold: evenly, or as vLLM chooses."
    ),
]
RanksPerNode = Annotated[
    int | None, typer.Option("--ranks-per-node", min=1, metavar="G", help="Prefer senders on the same node.")
]
FormatOption = Annotated[Format, typer.Option("--format", help="What stdout gets.")]
LayoutOption = Annotated[
    str, typer.Option("--layout", metavar="auto|NAME|FILE", help="How files and tensors are named.")
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


def parse_size(text: str) -> int:
    """Bytes in "256MiB", "1GB" or "65536".

    Raises:
        UsageError: EP001, it is no size.
    """
    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,3})?)\s*([kmg]i?)?b?", text.strip().lower())
    nbytes = int(float(match[1]) * units[match[2] or ""]) if match else 0
    if nbytes < 1:
        raise UsageError("EP001", f"{text!r} is not a size", "sizes look like 65536, 256MiB or 1GB")
    return nbytes


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Nothing but --version."""
    if version:
        sys.stdout.write(f"eplb {__version__}\n")
        raise typer.Exit


@app.command()
def reshard(
    src: Annotated[
        Path, typer.Argument(metavar="SRC", help="Directory of per-rank shards; never written to.")
    ],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="Where the result appears: new, or empty.")],
    new: Annotated[
        str, typer.Option("--new", metavar="NEW", help="The placement wanted: a file, or a named map.")
    ],
    old: Annotated[
        str | None,
        typer.Option(
            "--old", metavar="OLD", help="The placement of SRC, where its eplb.json does not say it."
        ),
    ] = None,
    layout: LayoutOption = "auto",
    backend: Annotated[
        Backend, typer.Option("--backend", help="What moves bytes between workers.")
    ] = Backend.auto,
    nproc_per_node: Annotated[
        int | None, typer.Option("--nproc-per-node", min=1, metavar="N", help="Workers of the torchrun job.")
    ] = None,
    senders: SendersOption = Senders.balanced,
    ranks_per_node: RanksPerNode = None,
    buffer_size: Annotated[
        str, typer.Option("--buffer-size", metavar="SIZE", help="All send and receive buffers of one worker.")
    ] = "256MiB",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan, report, and stop.")] = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not read the result back.")] = False,
    no_digest: Annotated[
        bool, typer.Option("--no-digest", help="Take no digests: no proof, now or later.")
    ] = False,
    no_fsync: Annotated[
        bool, typer.Option("--no-fsync", help="Leave it to the system when bytes reach the disk.")
    ] = False,
    timeout: Annotated[
        float,
        typer.Option("--timeout", min=1, metavar="SECONDS", help="End a run that makes no progress so long."),
    ] = 600.0,
    num_ranks: NumRanks = None,
    num_logical_experts: NumExperts = None,
    num_redundant_experts: NumRedundant = None,
    full: Full = False,
    output_format: FormatOption = Format.text,
) -> None:
    """Rearrange the shards in SRC for the placement NEW, into DST, and prove it."""
    from eplb_cli.inputs import PlacementOptions
    from eplb_cli.reshard import Request, plan_request
    from eplb_cli.reshard import reshard as run

    request = Request(
        source=src,
        destination=dst,
        new=new,
        old=old,
        layout=layout,
        backend=backend.value,
        num_workers=nproc_per_node,
        senders=senders.value,
        ranks_per_node=ranks_per_node,
        buffer_nbytes=parse_size(buffer_size),
        verify=not no_verify,
        digests=not no_digest,
        durable=not no_fsync,
        timeout_s=timeout,
        placements=PlacementOptions(
            num_ranks=num_ranks,
            num_logical_experts=num_logical_experts,
            num_redundant_experts=num_redundant_experts,
        ),
    )
    report = plan_request(request, full=full).report if dry_run else run(request, _progress)
    _print_report(report, output_format, full=full)


@app.command()
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Planning is all this command does.")] = False,
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
    from eplb_cli.planning import plan_command

    if checkpoint is not None and expert_bytes is not None:
        raise UsageError("EP001", "--checkpoint and --expert-bytes both say sizes", "leave one out")
    report = plan_command(
        old,
        new,
        PlacementOptions(num_ranks, old_num_ranks, num_logical_experts, num_redundant_experts),
        checkpoint=checkpoint,
        layout=layout,
        expert_nbytes=None if expert_bytes is None else parse_size(expert_bytes),
        senders=senders.value,
        ranks_per_node=ranks_per_node,
        full=full,
    )
    _print_report(report, output_format, full=full)


@app.command()
def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Placement files.")],
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="OLD", help="Check that OLD can be turned into each of them."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="DIR", help="Shards that each of them has to fit.")
    ] = None,
    num_ranks: NumRanks = None,
    num_logical_experts: NumExperts = None,
    output_format: Annotated[
        FindingsFormat, typer.Option("--format", help="What stdout gets.")
    ] = FindingsFormat.text,
) -> None:
    """Check placements, and say all that is wrong with them at once."""
    from eplb_cli.placement import Hints
    from eplb_cli.validate import validate_files

    hints = Hints(num_ranks=num_ranks, num_logical_experts=num_logical_experts)
    if checkpoint is not None:
        hints = _checkpoint_hints(hints, checkpoint)
    findings = validate_files(files, hints, against)
    render.print_findings(findings, files, output_format.value)
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(EXIT_FINDINGS)


@app.command()
def verify(
    dst: Annotated[Path, typer.Argument(metavar="DST", help="A directory that eplb wrote.")],
    against: Annotated[
        Path | None, typer.Option("--against", metavar="SRC", help="The shards it was made from.")
    ] = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Prove again, from the files alone, that DST holds what it should."""
    from eplb_cli.verify import verify as run

    with _progress(_tree_nbytes(dst) + (_tree_nbytes(against) if against else 0), "verify") as show:
        result = run(dst, against, _accumulate(show))
    for warning in result["warnings"]:
        render.print_warning(warning)
    if output_format is Format.json:
        render.print_json({"format": "eplb-verification/1", **result})
    else:
        render.print_verification(result)


@app.command()
def inspect(
    src: Annotated[Path, typer.Argument(metavar="SRC", help="A directory of per-rank shards.")],
    layout: LayoutOption = "auto",
    deep: Annotated[
        bool, typer.Option("--deep", help="Read all rows, and check what eplb.json says of them.")
    ] = False,
    output_format: FormatOption = Format.text,
) -> None:
    """Show what the shards in SRC hold."""
    from eplb_cli.inspection import inspect_shards

    with _progress(_tree_nbytes(src) if deep else 0, "inspect") as show:
        found = inspect_shards(src, layout, deep=deep, advance=_accumulate(show))
    if output_format is Format.json:
        render.print_json(found)
    else:
        render.print_inspection(found)
    if found["findings"]:
        raise typer.Exit(EXIT_FINDINGS)


def _checkpoint_hints(hints: Hints, path: Path) -> Hints:
    """What the shards say of every placement they are to have."""
    import numpy as np

    from eplb_cli.checkpoint import open_shards
    from eplb_cli.placement import Hints

    shards = open_shards(path)
    num_ranks = hints.num_ranks or shards.num_ranks
    layer_ids = np.array(shards.moe_layers)
    return Hints(num_ranks=num_ranks, num_logical_experts=hints.num_logical_experts, layer_ids=layer_ids)


def _print_report(report: Report, output_format: Format, *, full: bool) -> None:
    for warning in report.warnings:
        render.print_warning(warning)
    if output_format is Format.json:
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


def _accumulate(show: Callable[[int], None]) -> Callable[[int], None]:
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        show(done)

    return advance


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
    try:
        app()
    except EplbError as error:
        if os.environ.get("EPLB_DEBUG") == "1":
            traceback.print_exc()
        render.print_error(error)
        sys.exit(error.exit_code)
    except _Interrupted:
        sys.stderr.write("interrupted: nothing was written\n")
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
