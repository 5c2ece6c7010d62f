"""Whether the files of all ranks are there: the last ones are missed by the number of experts alone."""

from __future__ import annotations

from eplb_cli.checkpoint.shards import Shards
from eplb_cli.errors import CheckpointError
from eplb_cli.placements.findings import Finding


def missing_ranks(shards: Shards, experts: int | None) -> str | None:
    """A sentence where the ranks that are there have fewer slots than there are experts; E may be unknown.

    Seven ranks of 8 slots cannot hold 64 experts: rank 7 is missing.
    """
    slots = shards.slots_per_rank
    lacking = 0 if experts is None else experts - int(slots.sum())
    if lacking <= 0:
        return None
    first = shards.num_ranks
    last = first - 1 - (-lacking // int(slots.max()))
    who = f"rank {first} is" if first == last else f"ranks {first} to {last} are"
    return f"{shards.path} has {slots_in_words(shards)}, and there are {experts:,} experts: {who} missing"


def require_all_ranks(shards: Shards, experts: int | None) -> None:
    """EP202 where ranks are missing, as `missing_ranks` has it."""
    if problem := missing_ranks(shards, experts):
        raise CheckpointError("EP202", problem, "copy the files of all ranks; or is the number another one?")


def one_in_each_slot(shards: Shards, who: str) -> Finding:
    """EP111 for shards of which only their rows say how many experts there are.

    Args:
        who: what is taken to have them, with its verb.
    """
    experts = int(shards.slots_per_rank.sum())
    message = (
        f"{who} taken to have {experts:,} experts, one in each slot of a layer: there are "
        f"{slots_in_words(shards)}, and no config.json says how many experts the model has"
    )
    hint = (
        "say it with --num-logical-experts E (`inspect --deep` counts the rows that differ): otherwise "
        "replicas, or a last rank that is missing, are not noticed"
    )
    return Finding("EP111", "warning", message, hint)


def slots_in_words(shards: Shards) -> str:
    """How many ranks there are, with how many slots."""
    slots = shards.slots_per_rank
    each = f"{slots[0]:,}" if (slots == slots[0]).all() else f"{slots.min():,} to {slots.max():,}"
    ranks = f"{len(slots):,} ranks" if len(slots) > 1 else "1 rank"
    return f"{ranks} of {each} slots"
