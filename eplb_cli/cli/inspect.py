"""`eplb inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eplb_cli import render
from eplb_cli.cli.options import Format, FormatOption, LayoutOption, LoadOption, ModelOption, named_model
from eplb_cli.cli.outputs import STDOUT, check_outputs, write_output
from eplb_cli.cli.show import progress_bar
from eplb_cli.errors import EXIT_FINDINGS, CheckpointError, UsageError

if TYPE_CHECKING:
    from eplb_cli.report.inspection import Inspection


EXAMPLES = """\b
Examples:
  eplb inspect SRC
  eplb inspect SRC --deep --format json
  eplb inspect load.npy --model deepseek-v3
  eplb inspect SRC --identify HF_DIR --out old.json
  eplb inspect --models"""


def command(
    src: Annotated[
        Path | None,
        typer.Argument(metavar="SRC", help="A directory of per-rank shards, or a load dump."),
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
    load: LoadOption = None,
    baked: Annotated[
        Path | None,
        typer.Option(
            "--baked",
            metavar="DIR",
            help="The baked checkpoint that the load in SRC is of: show the model's own experts.",
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
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="With --identify: write the placement there; - is stdout."
        ),
    ] = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Show what the shards in SRC hold: layout, ranks, slots, layers, and the tensors of an expert.

    Where SRC is a load dump, show how many tokens each expert got, layer by layer.
    """
    from eplb_cli.models.load import is_load

    said = {
        "--layout": layout != "auto",
        "--deep": deep,
        "--model": model is not None,
        "--load": load is not None,
        "--baked": baked is not None,
        "--identify": identify is not None,
        "--out": out is not None,
    }
    if models or src is None:
        _refuse_unused(said, set(), "a list of models")
        _list_models(src, models, output_format)
    elif is_load(src):
        _refuse_unused(said, {"--model", "--baked"}, "a load dump")
        _inspect_load(src, model, baked, output_format)
    elif identify is not None:
        _refuse_unused(said, {"--layout", "--identify", "--out"}, "shards with --identify")
        _identify(src, layout, identify, out, output_format)
    else:
        used = {"--layout", "--deep", "--load", *(["--model"] if load is not None else [])}
        _refuse_unused(said, used, "shards without --identify")
        _inspect_shards(src, layout, deep, output_format, load, model)


def _refuse_unused(said: Mapping[str, bool], used: set[str], what: str) -> None:
    """EP001 for an option that says nothing of what is looked at."""
    unused = [option for option, is_said in said.items() if is_said and option not in used]
    if unused:
        raise UsageError("EP001", f"{unused[0]} is not for {what}", "leave it out")


def _list_models(src: Path | None, models: bool, output_format: Format) -> None:
    from eplb_cli.models.preset import presets

    if src is not None or not models:
        raise UsageError("EP001", "inspect takes SRC, or --models", "name one of the two")
    if output_format is Format.json:
        from eplb_cli.report.models import models_json

        render.print_json(models_json(presets()))
    else:
        render.print_models(presets())


def _identify(src: Path, layout: str, against: Path, out: Path | None, output_format: Format) -> None:
    from dataclasses import replace

    from eplb_cli.audit.identify import identify
    from eplb_cli.placements.own_format import format_placement

    check_outputs([out], output_format, sources=[src, against], replace=False)
    found = identify(src, against, layout=layout, progress=progress_bar)
    if out is not None:
        write_output(out, format_placement(found.placement), replace=False)
        found = replace(found, output=out)
    if out == STDOUT:
        return
    if output_format is Format.json:
        from eplb_cli.report.identification import identification_json

        render.print_json(identification_json(found))
    else:
        render.print_identification(found)


def _inspect_load(path: Path, model: str | None, baked: Path | None, output_format: Format) -> None:
    from eplb_cli.models.load import read_load
    from eplb_cli.report.load import load_json, summarize_load

    load = read_load(str(path), named_model(model))
    if baked is not None:
        from eplb_cli.huggingface.reordered import read_baked, unbaked

        load = unbaked(load, read_baked(baked))
    summary = summarize_load(path, load)
    if output_format is Format.json:
        render.print_json(load_json(summary))
    else:
        render.print_load(summary)


def _inspect_shards(
    src: Path, layout: str, deep: bool, output_format: Format, load: str | None, model: str | None
) -> None:
    from eplb_cli.audit.inspection import inspect

    found = inspect(src, layout=layout, deep=deep, progress=progress_bar)
    if load is not None:
        found = _under_load(found, load, model)
    if output_format is Format.json:
        from eplb_cli.report.inspection import inspection_json

        render.print_json(inspection_json(found))
    else:
        render.print_inspection(found)
    if any(finding.severity == "error" for finding in found.findings):
        raise typer.Exit(EXIT_FINDINGS)


def _under_load(found: Inspection, load: str, model: str | None) -> Inspection:
    """What shards hold, with their placement under a load. Raises EP216 where nothing says the placement."""
    from dataclasses import replace

    from eplb_cli.inputs.load import given_load

    if found.placement is None:
        problem = f"{found.path} has no eplb.json, so nothing says what its rows are"
        hint = "`eplb validate FILE --load LOAD` judges the placement in a file"
        raise CheckpointError("EP216", problem, hint)
    given = given_load(load, named_model(model), found.path)
    judged = given.judge(str(found.path), found.placement, found.further_layers)
    return replace(found, load=given.together(judged))
