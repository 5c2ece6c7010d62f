"""What `inspect`, `verify`, `shard`, `merge` and `bake` print."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eplb_cli.placements.own_format import placement_to_json
from eplb_cli.render.balance import show_balances
from eplb_cli.render.page import heading, show_list, show_pairs, table
from eplb_cli.render.text import format_bytes, format_rate, format_runs, format_seconds, plural, printable

if TYPE_CHECKING:
    from eplb_cli.models.model import Model
    from eplb_cli.placements.findings import Finding
    from eplb_cli.placements.placement import Placement
    from eplb_cli.report.identification import Identification
    from eplb_cli.report.inspection import ExpertTensor, Inspection
    from eplb_cli.report.load import LoadSummary
    from eplb_cli.report.verification import Verification
    from eplb_cli.report.written import Written


def show_inspection(console: Console, inspection: Inspection) -> None:
    """Print what the shards are in one line and in numbers, then their expert tensors and what is odd."""
    ranks, files = plural(inspection.num_ranks, "rank"), plural(inspection.num_files, "file")
    headline = f"{printable(inspection.layout)}: {ranks}, {files}, {format_bytes(inspection.nbytes)}"
    console.print(Text(headline, "bold", overflow="fold"))
    console.print()
    show_pairs(console, _facts(inspection))
    heading(console, "expert tensors (shape and bytes of one row)")
    console.print(_tensor_table(inspection.expert_tensors))
    if inspection.placement is not None:
        heading(console, "placement")
        show_pairs(console, _placement_facts(inspection.placement))
    if inspection.load is not None:
        show_balances(console, inspection.load)
    show_list(console, "other tensors that look sharded", inspection.sharded_others)
    show_list(console, "findings", map(_finding_line, inspection.findings))


def _facts(inspection: Inspection) -> Iterable[tuple[str, object]]:
    slots, layers = inspection.slots_per_rank, inspection.layers
    yield "slots per rank", slots[0] if len(set(slots)) == 1 else ", ".join(map(str, slots))
    yield "MoE layers", f"{len(layers)} ({format_runs(layers)})"
    if further := inspection.further_layers:
        yield (
            "of these",
            f"{printable(', '.join(further.values()))}: MTP or another module, which no map names",
        )
    yield "other tensors", f"{inspection.num_others:,}, {format_bytes(inspection.others_nbytes)}"


def _placement_facts(placement: Placement) -> Iterable[tuple[str, object]]:
    """All that a placement file says, but for its map only the size: a real one has a thousand lines."""
    for key, value in placement_to_json(placement).items():
        if key == "physical_to_logical_map":
            yield "map", f"{plural(placement.num_layers, 'layer')} × {plural(placement.num_slots, 'slot')}"
        else:
            yield key, format_runs(value) if key == "layer_ids" else value


def _tensor_table(tensors: Sequence[ExpertTensor]) -> Table:
    rows = [
        (
            printable(tensor.name),
            printable(tensor.dtype),
            " × ".join(map(str, tensor.row_shape)) or "scalar",
            format_bytes(tensor.row_nbytes),
            str(tensor.num_layers),
        )
        for tensor in tensors
    ]
    return table(["name", "dtype", "shape", "bytes", "layers"], rows)


def _finding_line(finding: Finding) -> str:
    hint = f" (hint: {finding.hint})" if finding.hint else ""
    return f"{finding.severity}[{finding.code}]: {finding.message}{hint}"


def show_models(console: Console, models: Sequence[Model]) -> None:
    """Print a line for each model preset."""
    rows = [
        (
            model.name,
            f"{len(model.moe_layers)} of {model.num_hidden_layers}",
            str(model.num_logical_experts),
            format_bytes(model.expert_nbytes),
            printable(model.description),
        )
        for model in models
    ]
    console.print(table(["model", "MoE layers", "experts", "bytes of one", "what it is"], rows, words=(0, 4)))


def show_load(console: Console, load: LoadSummary) -> None:
    """Print what a load dump is in one line, then its layers."""
    steps, layers = plural(load.num_steps, "step"), plural(len(load.layers), "layer")
    experts = plural(load.num_logical_experts, "expert")
    headline = f"{load.form}: {steps}, {layers}, {experts}, {load.tokens:,.0f} tokens"
    console.print(Text(headline, "bold", overflow="fold"))
    kind = "the model's own numbers" if load.layer_ids is not None else "counted from 0"
    heading(console, f"layers ({kind})")
    rows = [
        (
            str(layer.layer),
            f"{layer.tokens:,.0f}",
            str(layer.busiest_expert),
            f"{layer.busiest_over_mean:.2f}",
            str(layer.idle_experts),
        )
        for layer in load.layers
    ]
    console.print(table(["layer", "tokens", "busiest expert", "over the mean", "idle experts"], rows))
    show_list(console, "notes", load.notes)


def show_written(console: Console, what: str, done: Written) -> None:
    """Print what was made in one line, then its numbers and how it is served."""
    ranks, layers = plural(done.num_ranks, "rank"), plural(done.num_layers, "layer")
    come_of_it = (
        "would be written" if done.rows_proved is None else f"{plural(done.rows_proved, 'row')} proved"
    )
    headline = f"{what}: {done.output}, {come_of_it}"
    console.print(Text(printable(headline), "bold", overflow="fold"))
    console.print()
    pairs = {
        "names of": done.engine,
        "experts": f"{done.num_logical_experts:,} in {layers}, on {ranks}",
    }
    if done.rows_proved is None:
        pairs["would write"] = format_bytes(done.nbytes)
    else:
        pairs["wrote"] = format_bytes(done.nbytes)
        pairs["took"] = f"{format_seconds(done.seconds)}, {format_rate(done.nbytes, done.seconds)}"
    show_pairs(console, pairs.items())
    show_list(console, "notes", done.notes)
    show_list(console, "not in the placement", done.beside)
    show_list(console, "serving", done.serving)


def show_identification(console: Console, found: Identification) -> None:
    """Print that every row was told, and where the placement went."""
    placement = found.placement
    rows = placement.num_layers * placement.num_slots - found.num_empty
    headline = f"identified: {plural(rows, 'row')} are experts of {found.against}"
    console.print(Text(printable(headline), "bold", overflow="fold"))
    console.print()
    layers, ranks = plural(placement.num_layers, "layer"), plural(placement.num_ranks, "rank")
    pairs = {
        "shards": found.path,
        "experts": f"{placement.num_logical_experts:,} in {layers}, on {ranks}",
        "slots": f"{placement.num_slots:,} a layer; {found.num_empty:,} empty in all",
        "placement": found.output or "not written: name a file with --out",
    }
    show_pairs(console, pairs.items())
    show_list(console, "warnings", found.warnings)


_COMPARED = {
    "plan": "place by place, by the plan of the reshard that made it",
    "expert": "expert by expert, since it is not SRC's placement that the last step began with",
    "content": "layer by layer, as sets of rows: nothing says which experts those of SRC are",
}


def show_verification(console: Console, verification: Verification) -> None:
    """Print what was proved, and the numbers behind it."""
    proved = verification.rows_proved
    num_ranks, count = verification.num_ranks, len(verification.ranks)
    those = f", those of {count:,} of {plural(num_ranks, 'rank')}" if count < num_ranks else ""
    console.print(Text(f"verified: {proved:,} of {plural(proved, 'row')} proved{those}", "bold green"))
    console.print()
    nbytes, seconds = verification.nbytes, verification.seconds
    ranks = f"{format_runs(verification.ranks)}; files of the others were not looked at"
    pairs = {
        "checked": verification.path,
        **({"ranks": ranks} if those else {}),
        "against": verification.against or "its own manifest",
        **({"compared": _COMPARED[verification.compared]} if verification.compared else {}),
        "other tensors": f"{verification.others_proved:,} proved",
        "read": f"{plural(verification.num_files, 'file')}, {format_bytes(nbytes)}",
        "took": f"{format_seconds(seconds)}, {format_rate(nbytes, seconds)}",
    }
    show_pairs(console, pairs.items())
