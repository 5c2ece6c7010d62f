"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eplb_cli.checkpoint.layouts import LAYOUTS
from eplb_cli.cli import complete
from eplb_cli.errors import UsageError
from eplb_cli.placements.choice import NAMED_MAPS
from eplb_cli.placements.dialects.registry import DialectName
from eplb_cli.plan.choice import RankScalars, Relabel, Senders

if TYPE_CHECKING:
    from eplb_cli.models.model import Model


A_PLACEMENT = f"a file, or the map {', '.join(NAMED_MAPS[:-1])} or {NAMED_MAPS[-1]}"
"""What an argument or option takes that is a placement."""


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
    sarif = "sarif"
    junit = "junit"


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """What turns the word of an option into a number from `least` on, and says so of any other word."""
    span = f"from {least:,} on" if most is None else f"from {least:,} to {most:,}"

    def whole(word: str) -> int:
        number = int(word) if re.fullmatch(r"-?[0-9]{1,1000}", word) else None
        if number is None or number < least or (most is not None and number > most):
            raise typer.BadParameter(f"{word!r} is not a whole number {span}.")
        return number

    return whole


def rank_numbers(option: str, words: str | None) -> tuple[int, ...]:
    """The numbers in a value like `5,17` or `0-7,12`, ascending; none without a value. Raises EP001."""
    found: set[int] = set()
    for part in [] if words is None else words.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,7})(?:-([0-9]{1,7}))?\s*", part)
        if match is None:
            raise UsageError("EP001", f"{option} {words!r} is no list of ranks", "write 5,17 or 0-7,12")
        found |= {*range(int(match[1]), int(match[2] or match[1]) + 1)}
    return tuple(sorted(found))


def seconds(word: str | float) -> float:
    """A number of seconds; that it is none of the odd ones (nan, inf) is for whoever waits to say."""
    try:
        number = float(word)
    except ValueError:
        number = 0.0
    if number < 1:
        raise typer.BadParameter(f"{str(word)!r} is not a number of seconds from 1 on.")
    return number


SendersOption = Annotated[
    Senders,
    typer.Option(
        "--senders",
        help="Who sends an expert that several ranks hold: the busiest least, or as vLLM chooses.",
    ),
]
RankScalarsOption = Annotated[
    RankScalars | None,
    typer.Option(
        "--rank-scalars",
        help="Of a number that each rank computed from its own experts, as their largest activation scale, "
        "give every rank the largest. Such numbers are refused without it.",
    ),
]
RanksPerNode = Annotated[
    int | None,
    typer.Option(
        "--ranks-per-node",
        parser=whole_number(1, 1_000_000),
        metavar="RANKS",
        help="How many ranks a node has: as little as possible goes from one node to another.",
    ),
]
RelabelOption = Annotated[
    Relabel,
    typer.Option(
        "--relabel",
        help="Let less move: rows of a rank of NEW change places, or whole ranks as well (nodes stay whole), "
        "layer by layer. No rank gets more to do by it.",
    ),
]
OutNewOption = Annotated[
    Path | None,
    typer.Option(
        "--out-new",
        metavar="FILE",
        help="Where NEW is written as --relabel leaves it; FILE is replaced; - is stdout.",
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", help="What stdout gets.")]
LayoutOption = Annotated[
    str,
    typer.Option(
        "--layout",
        metavar="auto|NAME|FILE",
        autocompletion=complete.layouts,
        help=f"How tensors are named: {', '.join(LAYOUTS.names)}, or a TOML file.",
    ),
]
KeysOption = Annotated[
    str,
    typer.Option(
        "--layout",
        metavar="auto|NAME|FILE",
        autocompletion=complete.layouts,
        help="A TOML file that says what the names of tensors in HF_DIR mean, if their shapes do not.",
    ),
]
NumRanks = Annotated[
    int | None,
    typer.Option(
        "--num-ranks",
        "--ep-size",
        parser=whole_number(1),
        metavar="RANKS",
        help="How many ranks the placement wanted (NEW) has, if its file does not say.",
    ),
]
OldNumRanks = Annotated[
    int | None,
    typer.Option(
        "--old-num-ranks",
        parser=whole_number(1),
        metavar="RANKS",
        help="How many ranks OLD has, if its file does not say.",
    ),
]
NumExperts = Annotated[
    int | None,
    typer.Option(
        "--num-logical-experts",
        parser=whole_number(1),
        metavar="EXPERTS",
        help="How many experts a layer of the model has, if neither a file nor a checkpoint says.",
    ),
]
NumRedundant = Annotated[
    int | None,
    typer.Option(
        "--num-redundant-experts",
        parser=whole_number(0),
        metavar="SLOTS",
        help="How many more slots than experts the map linear or trivial has.",
    ),
]
FromOption = Annotated[
    DialectName | None,
    typer.Option("--from", help="The dialect of the placement wanted (NEW), if its content fits several."),
]
OldFromOption = Annotated[
    DialectName | None,
    typer.Option("--old-from", help="The dialect of OLD, if its content fits several."),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="PRESET|config.json",
        autocompletion=complete.models,
        help="The model: its layers, experts and sizes; `eplb inspect --models` lists presets.",
    ),
]
LoadOption = Annotated[
    str | None,
    typer.Option(
        "--load",
        metavar="LOAD",
        help="A load dump: show how evenly it is spread over the ranks, beside the least possible.",
    ),
]
NoFsyncOption = Annotated[
    bool, typer.Option("--no-fsync", help="Leave it to the system when bytes reach the disk.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check all inputs, plan, report, and write nothing.")
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with what a run that was ended has left; what it wrote is read again."
    ),
]
NoKeepOption = Annotated[
    bool,
    typer.Option(
        "--no-keep",
        help="Keep nothing of a run that is interrupted, or that fails; otherwise a second Ctrl-C within a "
        "second removes what is done.",
    ),
]
Full = Annotated[bool, typer.Option("--full", help="List all ranks, however many there are.")]


def named_model(name: str | None, checkpoint: Path | None = None) -> Model | None:
    """The model of --model. Raises EP001 where there is a --checkpoint too, EP118."""
    if name is None:
        return None
    if checkpoint is not None:
        raise UsageError("EP001", "--checkpoint and --model both say what the model is", "leave one out")
    from eplb_cli.models.preset import find_model

    return find_model(name)
