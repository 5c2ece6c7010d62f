"""`eplb reshard`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from eplb_cli import render
from eplb_cli.cli import complete
from eplb_cli.cli.options import (
    A_PLACEMENT,
    Backend,
    DryRunOption,
    Format,
    FormatOption,
    FromOption,
    Full,
    LayoutOption,
    NoKeepOption,
    NumExperts,
    NumRanks,
    NumRedundant,
    OldFromOption,
    OldNumRanks,
    OutNewOption,
    RankScalarsOption,
    RanksPerNode,
    RelabelOption,
    ResumeOption,
    rank_numbers,
    seconds,
    whole_number,
)
from eplb_cli.cli.outputs import STDOUT, check_outputs, write_output
from eplb_cli.cli.relabelled import require_out_new, write_new
from eplb_cli.cli.show import print_host, print_report, print_warnings, progress_bar
from eplb_cli.errors import UsageError
from eplb_cli.machine import has_package
from eplb_cli.plan.choice import Senders
from eplb_cli.report.sizes import parse_size

EXAMPLES = """\b
Examples:
  eplb reshard SRC DST --old old.json --new new.json
  eplb reshard SRC DST --old linear --new new.json --backend file
  eplb reshard DST DST2 --new newer.json   (the eplb.json in DST says OLD)
  eplb reshard SRC DST --plan plan.json
  eplb reshard SRC DST --new new.json --nnodes 4 --node-rank 0 \\
    --rdzv-endpoint node0:29500"""

NO_TORCH = "torch is not installed: --backend auto is one process from file to file"
NO_WORKERS_NEEDED = (
    "one process can open SRC and DST here: `--backend file`, or EPLB_BACKEND=file, does the same "
    "without starting workers"
)
KEPT = "is the storage stuck? what was done is kept: --resume goes on from it"


def command(
    src: Annotated[
        Path, typer.Argument(metavar="SRC", help="Directory of per-rank shards; never written to.")
    ],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="Where the result appears: new, or empty.")],
    new: Annotated[
        str | None,
        typer.Option(
            "--new",
            metavar="FILE|MAP",
            autocompletion=complete.maps,
            help=f"The placement wanted, NEW: {A_PLACEMENT}.",
        ),
    ] = None,
    old: Annotated[
        str | None,
        typer.Option(
            "--old",
            metavar="FILE|MAP",
            autocompletion=complete.maps,
            help=f"The placement of SRC, OLD, if SRC has no eplb.json that says it: {A_PLACEMENT}.",
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
            "file to file; auto is nccl with a GPU for each worker, else gloo, and file without torch.",
        ),
    ] = Backend.auto,
    nproc_per_node: Annotated[
        int | None,
        typer.Option(
            "--nproc-per-node",
            parser=whole_number(1),
            metavar="WORKERS",
            help="Workers of the torchrun job; any number serves any number of ranks.",
        ),
    ] = None,
    nnodes: Annotated[
        int | None,
        typer.Option(
            "--nnodes",
            parser=whole_number(1, 1024),
            metavar="HOSTS",
            help="Hosts that take part: the same command runs on each, and reads and writes what lies there.",
        ),
    ] = None,
    node_rank: Annotated[
        int | None,
        typer.Option(
            "--node-rank",
            parser=whole_number(0, 1023),
            metavar="HOST",
            help="Which of the hosts this is, from 0.",
        ),
    ] = None,
    rdzv_endpoint: Annotated[
        str | None,
        typer.Option(
            "--rdzv-endpoint",
            metavar="HOST:PORT",
            help="Where host 0 listens for the others: an address of its own, on a network that is trusted.",
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
    rank_scalars: RankScalarsOption = None,
    lost_ranks: Annotated[
        str | None,
        typer.Option(
            "--lost-ranks",
            metavar="RANK,...",
            help="Ranks of OLD whose files are gone: those that are left close up, in their order.",
        ),
    ] = None,
    missing_from: Annotated[
        Path | None,
        typer.Option(
            "--missing-from",
            metavar="PATCH",
            help="What `shard --only` wrote: the experts that only the lost ranks had.",
        ),
    ] = None,
    relabel: RelabelOption = "none",
    out_new: OutNewOption = None,
    buffer_size: Annotated[
        str | None,
        typer.Option(
            "--buffer-size",
            metavar="SIZE",
            help="All send and receive buffers of one worker, 1MiB at least; default: from the machine "
            "and the rows.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            parser=whole_number(1, 1024),
            metavar="THREADS",
            help="Threads of a worker for its files; without it as many as pay, two at least.",
        ),
    ] = None,
    save_job: Annotated[
        Path | None,
        typer.Option(
            "--save-job",
            metavar="FILE",
            help="Do nothing but write this command to FILE, for processes that torchrun, srun or another "
            "launcher starts: `... -m eplb_cli.run.worker FILE`.",
        ),
    ] = None,
    dry_run: DryRunOption = False,
    resume: ResumeOption = False,
    no_keep: NoKeepOption = False,
    copy: Annotated[
        bool, typer.Option("--copy", help="Write DST also where OLD and NEW are the same.")
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
            "--timeout",
            parser=seconds,
            metavar="SECONDS",
            help="End a run that makes no progress for so long.",
        ),
    ] = 600.0,
    num_ranks: NumRanks = None,
    old_num_ranks: OldNumRanks = None,
    num_logical_experts: NumExperts = None,
    num_redundant_experts: NumRedundant = None,
    dialect: FromOption = None,
    old_dialect: OldFromOption = None,
    full: Full = False,
    output_format: FormatOption = Format.text,
) -> None:
    """Rearrange the shards in SRC for the placement NEW, into DST, and prove it.

    SRC is only read. DST appears whole, once every row has been read back and compared, or not at all.
    """
    said = (
        new,
        old,
        senders,
        ranks_per_node,
        rank_scalars,
        lost_ranks,
        missing_from,
        None if relabel == "none" else relabel,
        out_new,
        num_ranks,
        old_num_ranks,
        num_logical_experts,
        num_redundant_experts,
        dialect,
        old_dialect,
    )
    if plan_file is not None and any(option is not None for option in said):
        problem = "--plan FILE has the placements, --senders and --ranks-per-node"
        raise UsageError("EP001", problem, "leave out what is about these, or leave out --plan")
    require_out_new(relabel, out_new, is_made=True)
    if save_job is not None:
        _save_job(save_job, is_of_many=nnodes is not None, backend=backend)
        return
    from eplb_cli.run import judge

    judge.go_on_judged(timeout, "" if dry_run else KEPT)
    if out_new is not None:
        inputs = [*filter(None, (old, new, layout)), str(dst)]  # which is no file yet
        sources = [src, missing_from]
        check_outputs([out_new], output_format, inputs=inputs, sources=sources, destination=dst, replace=True)
    from eplb_cli.inputs.options import PlacementOptions
    from eplb_cli.run.request import AnyRequest, PlanRequest, Request

    common: dict[str, Any] = {
        "layout": layout,
        "backend": backend.value,
        "num_workers": nproc_per_node,
        "buffer_nbytes": None if buffer_size is None else parse_size(buffer_size),
        "threads": threads,
        "resume": resume,
        "copy": copy,
        "keep": not no_keep,
        "verify": not no_verify,
        "digests": not no_digest,
        "durable": not no_fsync,
        "timeout_s": timeout,
        "num_hosts": 1 if nnodes is None else nnodes,
        "host": node_rank,
        "rendezvous": rdzv_endpoint,
    }
    request: AnyRequest
    if plan_file is not None:
        request = PlanRequest(src, dst, plan_file, **common)
    elif new is not None:
        placements = PlacementOptions(
            num_ranks=num_ranks,
            old_num_ranks=old_num_ranks,
            num_logical_experts=num_logical_experts,
            num_redundant_experts=num_redundant_experts,
            dialect=dialect,
            old_dialect=old_dialect,
        )
        request = Request(
            src,
            dst,
            new,
            old,
            senders=senders or "balanced",
            ranks_per_node=ranks_per_node,
            rank_scalars=rank_scalars,
            relabel=relabel,
            lost_ranks=rank_numbers("--lost-ranks", lost_ranks),
            missing_from=missing_from,
            placements=placements,
            **common,
        )
    else:
        raise UsageError("EP001", "reshard needs either --new or --plan", "add one")
    if dry_run:
        from eplb_cli.run.dry_run import dry_run as try_it

        report = try_it(request, progress_bar, full=full)
    else:
        from eplb_cli.run.reshard import reshard as run

        if backend is Backend.auto:
            _note_choice(request.num_hosts)
        report = write_new(run(request, progress_bar, full=full), out_new)
    if report.run is not None and report.run.host and output_format is Format.text:
        print_host(report)
    elif out_new == STDOUT and not dry_run:
        print_warnings(report)
    else:
        print_report(report, output_format, full=full)


def _note_choice(num_hosts: int) -> None:
    """Say what `--backend auto` takes, where that is not the least; one process sees what one host has."""
    if num_hosts == 1:
        render.print_note(NO_WORKERS_NEEDED if has_package("torch") else NO_TORCH)


def _save_job(path: Path, *, is_of_many: bool, backend: Backend) -> None:
    """Write the words of this command, but for those that say where to. Raises EP001 and OutputError.

    What variables and a file have set here is among them: on other hosts there may be neither.
    """
    from eplb_cli.progress import command, unsaid
    from eplb_cli.run.launched import job_text

    if is_of_many or backend is Backend.file:
        what = "--nnodes is found out" if is_of_many else "--backend file has no workers"
        raise UsageError("EP001", f"{what} by the processes of a saved job", "leave it out")
    words, kept = iter([*command.get(), *unsaid.get(), "--config", "none"]), []
    for word in words:
        if word == "--save-job":
            next(words, None)
        elif not word.startswith("--save-job="):
            kept.append(word)
    check_outputs([path], Format.text, replace=True)
    write_output(path, job_text(kept), replace=True)
