"""What `balance --repair` prints: which ranks are left, what was lost with the others, what to do next."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from eplb_cli.render.balance import show_balances
from eplb_cli.render.page import show_list, show_pairs
from eplb_cli.render.text import format_bytes, format_runs, plural, printable
from eplb_cli.report.repair import Repair


def show_repair(console: Console, found: Repair) -> None:
    """Print the whole page."""
    left = found.survivors.placement
    said = f"repaired for {plural(left.num_ranks, 'rank')}: {printable(found.output)}"
    console.print(Text(said, style="bold", overflow="fold"))
    console.print()
    show_pairs(console, _summary(found))
    lost = [f"layer {layer}: {format_runs(experts)}" for layer, experts in found.lost_experts]
    show_list(console, "experts that no rank has any more", lost)
    if found.load:
        show_balances(console, found.load)
    show_list(console, "what to do", _steps(found))
    show_list(console, "warnings", found.warnings)


def _summary(found: Repair) -> Iterator[tuple[str, str]]:
    survivors = found.survivors
    moved = [f"{old} is {new}" for new, old in enumerate(survivors.old_rank.tolist()) if old != new]
    if moved:
        yield "ranks of OLD", f"{', '.join(moved)} in NEW"
    redundant = found.num_slots - survivors.placement.num_logical_experts
    yield "redundant experts", f"{redundant:,}, in {plural(found.num_slots, 'slot')} a layer"
    size = "" if found.missing_bytes is None else f"{format_bytes(found.missing_bytes)}, "
    yield "from the checkpoint", f"{size}{plural(survivors.num_lost, 'row')}; no other slot changes"
    if found.replicated_rows:
        yield "from other ranks", f"{plural(found.replicated_rows, 'more replica')} at most"


def _steps(found: Repair) -> Iterator[str]:
    """The commands that follow; DST is the shards that NEW is for."""
    lost = ",".join(map(str, found.lost_ranks))
    patch = ""
    if found.survivors.num_lost:
        yield f"eplb shard HF_DIR PATCH --placement {found.name} --engine ENGINE --only {lost}"
        patch = " --missing-from PATCH"
    yield f"eplb reshard SRC DST --old {found.name} --new {found.output} --lost-ranks {lost}{patch}"
