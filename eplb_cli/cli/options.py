"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eplb_cli.checkpoint.layouts import LAYOUTS
from eplb_cli.errors import UsageError
from eplb_cli.placements.dialects.registry import NAMES
from eplb_cli.plan.choice import RankScalars, Senders

if TYPE_CHECKING:
    from eplb_cli.models.model import Model


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


def dialect_option(flag: str, help_text: str) -> Any:  # noqa: ANN401 - what typer.Option returns
    """An option that takes the name of a dialect, and lists them all for any other word."""

    def dialect(word: str) -> str:
        if word not in NAMES:
            listed = ", ".join(map(repr, NAMES))
            raise typer.BadParameter(f"{word!r} is not one of {listed}.")
        return word

    return typer.Option(flag, parser=dialect, metavar=f"<{'|'.join(NAMES)}>", help=help_text)


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
        "--ranks-per-node", min=1, max=1_000_000, metavar="G", help="Cross nodes no more than must be."
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", help="What stdout gets.")]
LayoutOption = Annotated[
    str,
    typer.Option(
        "--layout",
        metavar="auto|NAME|FILE",
        help=f"How tensors are named: {', '.join(LAYOUTS.names)}, or a TOML file.",
    ),
]
KeysOption = Annotated[
    str,
    typer.Option(
        "--layout",
        metavar="auto|NAME|FILE",
        help="What the names of tensors in HF_DIR mean, where their shape does not say it: a TOML file.",
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
    str | None, dialect_option("--from", "The dialect of NEW, where its content is not to say it.")
]
OldFromOption = Annotated[
    str | None, dialect_option("--old-from", "The dialect of OLD, where its content is not to say it.")
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


def named_model(name: str | None, checkpoint: Path | None = None) -> Model | None:
    """The model of --model. Raises EP001 where there is a --checkpoint too, EP118."""
    if name is None:
        return None
    if checkpoint is not None:
        raise UsageError("EP001", "--checkpoint and --model both say what the model is", "leave one out")
    from eplb_cli.models.preset import find_model

    return find_model(name)
