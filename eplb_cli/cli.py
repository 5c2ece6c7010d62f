"""The command line: options, and nothing else. A command is a few lines."""

from __future__ import annotations

import contextlib
import os
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
from eplb_cli.errors import EXIT_FINDINGS, EXIT_INTERRUPTED, EplbError, UsageError, WorkerError
from eplb_cli.sizes import parse_rates, parse_size

if TYPE_CHECKING:
    from eplb_cli.model import Model
    from eplb_cli.report import Report
    from eplb_cli.shard import Written

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


class DialectName(StrEnum):
    """--from and --to."""

    eplb = "eplb"
    vllm = "vllm"
    sglang = "sglang"
    tensorrt_llm = "tensorrt-llm"
    ascend = "ascend"
    deepseek = "deepseek"


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
        help="How tensors are named: sharded-state, per-row, deepseek, huggingface, or a TOML file.",
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
FromOption = Annotated[
    DialectName | None,
    typer.Option("--from", help="The dialect of NEW, where its content is not to say it."),
]
OldFromOption = Annotated[
    DialectName | None,
    typer.Option("--old-from", help="The dialect of OLD, where its content is not to say it."),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="PRESET|config.json",
        help="The model: its layers, experts and sizes; `eplb inspect --models` lists presets.",
    ),
]
NoFsyncOption = Annotated[
    bool, typer.Option("--no-fsync", help="Leave it to the system when bytes reach the disk.")
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
    dialect: FromOption = None,
    old_dialect: OldFromOption = None,
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
            dialect=dialect,
            old_dialect=old_dialect,
        ),
    )
    report = plan_request(request, full=full).report if dry_run else run(request, _progress)
    _print_report(report, output_format, full=full)


@app.command(
    short_help="Show what would move, without moving it.",
    epilog="""\b
Examples:
  eplb plan old.json new.json
  eplb plan old.json new.json --model deepseek-v3 --ranks-per-node 8
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
    dialect: FromOption = None,
    old_dialect: OldFromOption = None,
    model: ModelOption = None,
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
    if checkpoint is not None and model is not None:
        raise UsageError("EP001", "--checkpoint and --model both say what the model is", "leave one out")
    rates = None if bandwidth is None else parse_rates(bandwidth)
    answer = plan_command(
        old,
        new,
        PlacementOptions(
            num_ranks,
            old_num_ranks,
            num_logical_experts,
            num_redundant_experts,
            dialect,
            old_dialect,
            _find_model(model),
        ),
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
    dialect: FromOption = None,
    old_dialect: OldFromOption = None,
    model: ModelOption = None,
    output_format: Annotated[
        FindingsFormat, typer.Option("--format", help="What stdout gets.")
    ] = FindingsFormat.text,
) -> None:
    """Check placements, and say all that is wrong with them at once.

    Exits with 1 where there is an error among the findings; warnings alone are no reason.
    """
    from eplb_cli.inputs import PlacementOptions, hints_to_validate
    from eplb_cli.validate import validate_files

    if checkpoint is not None and model is not None:
        raise UsageError("EP001", "--checkpoint and --model both say what the model is", "leave one out")
    options = PlacementOptions(
        num_ranks,
        old_num_ranks,
        num_logical_experts,
        num_redundant_experts,
        dialect,
        old_dialect,
        _find_model(model),
    )
    hints, old_hints = hints_to_validate(options, against, checkpoint)
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


@app.command(short_help="Show what a directory of shards, or a load dump, holds.")
def inspect(
    src: Annotated[
        Path | None,
        typer.Argument(metavar="SRC", help="A directory of per-rank shards, or a file of expert loads."),
    ] = None,
    layout: LayoutOption = "auto",
    deep: Annotated[
        bool,
        typer.Option(
            "--deep", help="Read all rows: compare replicas, and what eplb.json says; exit 1 on findings."
        ),
    ] = False,
    models: Annotated[bool, typer.Option("--models", help="List the model presets instead.")] = False,
    model: ModelOption = None,
    baked: Annotated[
        Path | None,
        typer.Option(
            "--baked",
            metavar="DIR",
            help="The baked checkpoint that a load is of: show the model's own experts.",
        ),
    ] = None,
    identify: Annotated[
        Path | None,
        typer.Option(
            "--identify",
            metavar="HF_DIR",
            help="Tell which expert each row is, by the bytes of a checkpoint.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="With --identify: write the placement there.")
    ] = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Show what the shards in SRC hold: layout, ranks, slots, layers, and the tensors of an expert.

    Where SRC is a file, show the load it holds: how many tokens each expert got, layer by layer.
    """
    if models or src is None:
        _list_models(src, models, output_format)
    elif src.is_file():
        _inspect_load(src, model, baked, output_format)
    elif identify is not None:
        _identify(src, layout, identify, out, output_format)
    else:
        _inspect_shards(src, layout, deep, output_format)


def _list_models(src: Path | None, models: bool, output_format: Format) -> None:
    from eplb_cli.inspection import describe_models

    if src is not None or not models:
        raise UsageError("EP001", "inspect takes SRC, or --models", "name one of the two")
    described = describe_models()
    if output_format is Format.json:
        render.print_json(described)
    else:
        render.print_models(described)


def _identify(src: Path, layout: str, against: Path, out: Path | None, output_format: Format) -> None:
    from eplb_cli.inspection import identify_shards
    from eplb_cli.progress import accumulate

    total_nbytes = _tree_nbytes(src) + _tree_nbytes(against)
    with _progress(total_nbytes, "identify") as show:
        found = identify_shards(src, layout, against, out, accumulate(show))
        show(total_nbytes)
    if output_format is Format.json:
        render.print_json(found)
    else:
        render.print_identification(found)


def _inspect_load(path: Path, model: str | None, baked: Path | None, output_format: Format) -> None:
    from eplb_cli.load import describe_load, read_load, unbaked

    load = read_load(str(path), _find_model(model))
    if baked is not None:
        from eplb_cli.baked import read_baked

        load = unbaked(load, read_baked(baked))
    described = describe_load(str(path), load)
    if output_format is Format.json:
        render.print_json(described)
    else:
        render.print_load(described)


def _inspect_shards(src: Path, layout: str, deep: bool, output_format: Format) -> None:
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


@app.command(
    short_help="Write a placement in another engine's dialect.",
    epilog="""\b
Examples:
  eplb convert map.json new.json --to eplb --model deepseek-v3 --num-ranks 32
  eplb convert new.json map.json --to sglang --model deepseek-v3
  eplb convert new.json moe_load_balancer.yaml --to tensorrt-llm""",
)
def convert(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="A placement in any dialect, or linear, or round_robin.")
    ],
    output: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="A new file: .json, for vllm .jsonl too, for tensorrt-llm .yaml."),
    ],
    to: Annotated[DialectName, typer.Option("--to", help="The dialect to write.")],
    dialect: Annotated[
        DialectName | None,
        typer.Option("--from", help="The dialect of IN, where its content is not to say it."),
    ] = None,
    num_ranks: Annotated[
        int | None,
        typer.Option("--num-ranks", "--ep-size", min=1, metavar="R", help="Ranks, where IN does not say."),
    ] = None,
    num_logical_experts: NumExperts = None,
    num_redundant_experts: NumRedundant = None,
    model: ModelOption = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint", metavar="DIR", help="Whose config.json or shards say the model's layers."
        ),
    ] = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Write the placement IN to OUT in another dialect; refuse where that would lose something."""
    from eplb_cli.convert import convert as run
    from eplb_cli.convert import model_named
    from eplb_cli.inputs import PlacementOptions

    if checkpoint is not None and model is not None:
        raise UsageError("EP001", "--checkpoint and --model both say what the model is", "leave one out")
    options = PlacementOptions(
        num_ranks,
        None,
        num_logical_experts,
        num_redundant_experts,
        dialect,
        model=model_named(model, checkpoint),
    )
    done = run(source, output, to, options)
    for warning in done.warnings:
        render.print_warning(warning.message)
    placement = done.placement
    numbers = {
        "num_layers": placement.num_layers,
        "num_slots": placement.num_slots,
        "num_ranks": placement.num_ranks,
        "num_logical_experts": placement.num_logical_experts,
    }
    if output_format is Format.json:
        render.print_json({"format": "eplb-conversion/1", "output": str(output), "dialect": to, **numbers})
    else:
        said = ", ".join(
            f"{value:,} {name.removeprefix('num_').replace('_', ' ')}" for name, value in numbers.items()
        )
        sys.stdout.write(f"{output}: {to}, {said}\n")


def _find_model(name: str | None) -> Model | None:
    """The model of --model."""
    if name is None:
        return None
    from eplb_cli.model import find_model

    return find_model(name)


@app.command(
    short_help="Write a Hugging Face checkpoint as shards.",
    epilog="""\b
Examples:
  eplb shard HF_DIR DST --placement map.json --num-ranks 32 --engine sglang
  eplb shard HF_DIR DST --placement linear --num-ranks 4 --engine huggingface""",
)
def shard(
    source: Annotated[Path, typer.Argument(metavar="HF_DIR", help="A Hugging Face checkpoint; only read.")],
    destination: Annotated[
        Path, typer.Argument(metavar="DST", help="Where the shards appear: new, or empty.")
    ],
    placement: Annotated[
        str,
        typer.Option("--placement", metavar="FILE", help="In any dialect, or linear, or round_robin."),
    ],
    engine: Annotated[
        str,
        typer.Option(
            "--engine", metavar="NAME", help="Whose names tensors get: sglang, vllm, or huggingface."
        ),
    ],
    num_ranks: NumRanks = None,
    num_redundant_experts: NumRedundant = None,
    dialect: FromOption = None,
    no_fsync: NoFsyncOption = False,
    output_format: FormatOption = Format.text,
) -> None:
    """Write the experts of a Hugging Face checkpoint to the ranks that a placement names, and prove it.

    Every byte is read once. Tensors that are no experts' are on all ranks, in one file under many names.
    """
    from eplb_cli.inputs import PlacementOptions
    from eplb_cli.shard import shard as run

    options = PlacementOptions(num_ranks, num_redundant_experts=num_redundant_experts, dialect=dialect)
    done = run(source, destination, placement, engine, options, durable=not no_fsync, progress=_progress)
    _print_written("shards", done, output_format)


@app.command(short_help="Write shards as the Hugging Face checkpoint they were made of.")
def merge(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="What `eplb shard` wrote, resharded or not.")],
    destination: Annotated[
        Path, typer.Argument(metavar="HF_DIR", help="Where the checkpoint appears: new, or empty.")
    ],
    bake: Annotated[
        bool,
        typer.Option("--bake", help="Leave the experts in the order of the shards, as `eplb bake` does."),
    ] = False,
    no_fsync: NoFsyncOption = False,
    output_format: FormatOption = Format.text,
) -> None:
    """Write the Hugging Face checkpoint that shards were made of: the same files, byte for byte."""
    from eplb_cli.bake import bake_shards
    from eplb_cli.merge import merge as run

    made = bake_shards if bake else run
    done = made(source, destination, durable=not no_fsync, progress=_progress)
    _print_written("checkpoint", done, output_format)


@app.command(
    short_help="Write a placement into a Hugging Face checkpoint.",
    epilog="""\b
Example:
  eplb bake HF_DIR OUT --placement new.json --num-ranks 16""",
)
def bake(
    source: Annotated[Path, typer.Argument(metavar="HF_DIR", help="A Hugging Face checkpoint; only read.")],
    destination: Annotated[
        Path, typer.Argument(metavar="OUT", help="Where the checkpoint appears: new, or empty.")
    ],
    placement: Annotated[
        str,
        typer.Option("--placement", metavar="FILE", help="Without replicas, in any dialect."),
    ],
    num_ranks: NumRanks = None,
    dialect: FromOption = None,
    no_fsync: NoFsyncOption = False,
    output_format: FormatOption = Format.text,
) -> None:
    """Write a Hugging Face checkpoint that any engine serves under a placement, without being told of it.

    Experts get the numbers of their slots, and the rows of routers move with them: what the model computes is
    the same, and the engine's default placement is the one that was wanted.
    """
    from eplb_cli.bake import bake as run
    from eplb_cli.inputs import PlacementOptions

    options = PlacementOptions(num_ranks, dialect=dialect)
    done = run(source, destination, placement, options, durable=not no_fsync, progress=_progress)
    _print_written("checkpoint", done, output_format)


def _print_written(what: str, done: Written, output_format: Format) -> None:
    from dataclasses import asdict

    for warning in done.warnings:
        render.print_warning(warning)
    if output_format is Format.json:
        render.print_json({"format": f"eplb-{what}/1", **asdict(done), "output": str(done.output)})
    else:
        render.print_written(what, done)


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
