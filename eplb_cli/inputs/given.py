"""What a plan for a checkpoint is made from: its shards, OLD and NEW, and the options that shape it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from eplb_cli.checkpoint.shards import Shards
from eplb_cli.hosts.hosts import ALONE, Hosts
from eplb_cli.inputs.everywhere import open_everywhere
from eplb_cli.inputs.old_and_new import read_new, read_old, refuse_guess, require_experts
from eplb_cli.inputs.options import PlacementOptions, model_of
from eplb_cli.placements.choice import NAMED_MAPS
from eplb_cli.placements.findings import Finding
from eplb_cli.placements.placement import Placement
from eplb_cli.plan.choice import RankScalars, Relabel, Senders
from eplb_cli.plan.moves import ReshardPlan
from eplb_cli.values import dataclass

if TYPE_CHECKING:
    from eplb_cli.inputs.saved_plan import SavedPlan


@dataclass(frozen=True, eq=False)
class Given:
    """All that a plan follows from, read and found good by itself.

    Attributes:
        warnings: what is odd about OLD or NEW.
        rank_scalars: what to do with numbers that ranks computed from their own experts; None to refuse them.
        saved: the plan that has to come of it, and its file; None where any will do.
        relabelled: what of NEW has changed places, and what NEW was before that; None where nothing has.
    """

    shards: Shards
    old: Placement
    new: Placement
    senders: Senders
    ranks_per_node: int | None
    warnings: tuple[Finding, ...] = ()
    rank_scalars: RankScalars | None = None
    saved: tuple[SavedPlan, Path] | None = None
    relabelled: tuple[Relabel, Placement] | None = None

    @property
    def num_ranks(self) -> int:
        """max(R, R')."""
        return max(self.old.num_ranks, self.new.num_ranks)

    def with_relabelled(self, how: Relabel) -> Given:
        """The same with NEW by other names. Raises EplbError where OLD and NEW are no pair."""
        if how == "none":
            return self
        from eplb_cli.balance.relabel import relabel
        from eplb_cli.checkpoint.sharded import with_layers, with_layers_beside

        old = with_layers(self.old, self.shards)
        asked = with_layers_beside(self.new, old, self.shards)
        new = relabel(old, asked, how, self.ranks_per_node)
        return replace(self, new=new, relabelled=(how, asked))

    def require_plan(self, plan: ReshardPlan) -> None:
        """EP304 unless a plan is the one that was saved, if one was."""
        if self.saved is not None:
            from eplb_cli.inputs.saved_plan import require_same_moves

            require_same_moves(*self.saved, plan)


def read_given(  # noqa: PLR0913, PLR0917 - what few callers have comes last
    source: Path,
    layout: str,
    names: tuple[str | None, str],
    options: PlacementOptions,
    senders: Senders,
    ranks_per_node: int | None,
    rank_scalars: RankScalars | None = None,
    hosts: Hosts = ALONE,
) -> Given:
    """What a command line says.

    Args:
        names: of OLD, None where the manifest of SRC says it, and of NEW.
        hosts: that see SRC.

    Raises:
        CheckpointError, PlacementError, UsageError: the shards, OLD or NEW cannot be used, or options
            contradict them.
        BytesError: EP506, the shards are not those of their manifest.
    """
    options.require_used(names[0], [names[1]])
    shards = open_everywhere(source, layout, hosts)
    options = options.beside(shards)
    old, old_warnings = read_old(shards, names[0], [names[1]], options)
    if names[0] not in NAMED_MAPS:
        refuse_guess(old_warnings)
    new, new_warnings = read_new(names[1], old, options)
    return Given(shards, old, new, senders, ranks_per_node, (*old_warnings, *new_warnings), rank_scalars)


def follow_plan(source: Path, layout: str, file: Path, hosts: Hosts = ALONE) -> Given:
    """What a saved plan says, for shards that hosts see.

    Raises:
        CheckpointError: the shards cannot be used.
        BytesError: EP506, the shards are not those of their manifest.
        PlacementError: EP109, OLD has another number of experts than config.json says.
        PlanError: EP303, the file is no plan; EP304, what it was made for has changed.
    """
    from eplb_cli.inputs.saved_plan import read_plan, require_unchanged

    saved = read_plan(file)
    planned_layout = saved.read_layout(file) if layout == "auto" else None
    shards = open_everywhere(source, planned_layout or layout, hosts)
    require_unchanged(saved, file, shards)
    old, new = saved.read_old(file), saved.read_new(file)
    require_experts(old, model_of(shards).num_logical_experts)
    return Given(
        shards,
        old,
        new,
        saved.senders,
        saved.ranks_per_node,
        rank_scalars=saved.read_rank_scalars(file),
        saved=(saved, file),
    )
