"""What OLD and NEW may leave out, as the command line or a program says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eplb_cli.errors import EplbError, UsageError
from eplb_cli.models.model import Model
from eplb_cli.placements.choice import NAMED_MAPS
from eplb_cli.placements.hints import Hints
from eplb_cli.report.sizes import MAX_SIZE_NBYTES
from eplb_cli.values import dataclass

if TYPE_CHECKING:
    from eplb_cli.checkpoint.shards import Shards


@dataclass(frozen=True)
class PlacementOptions:
    """What OLD and NEW may leave out; a placement that says it too has to say the same.

    Attributes:
        num_ranks: ranks of NEW.
        old_num_ranks: ranks of OLD.
        num_logical_experts: E, of both.
        num_redundant_experts: P - E, for the named map "linear" only.
        dialect: of NEW, where its content is not to say it.
        old_dialect: of OLD, likewise.
        model: whose layers and experts both have.
    """

    num_ranks: int | None = None
    old_num_ranks: int | None = None
    num_logical_experts: int | None = None
    num_redundant_experts: int | None = None
    dialect: str | None = None
    old_dialect: str | None = None
    model: Model | None = None

    def __post_init__(self) -> None:
        """Refuse what is no number of anything. Raises EP001."""
        for option, count, least in (
            ("--num-ranks", self.num_ranks, 1),
            ("--old-num-ranks", self.old_num_ranks, 1),
            ("--num-logical-experts", self.num_logical_experts, 1),
            ("--num-redundant-experts", self.num_redundant_experts, 0),
        ):
            if count is not None and count < least:
                raise UsageError("EP001", f"{option} is {count:,}, and {least} is the least", "leave it out")

    @property
    def hints(self) -> Hints:
        """What is said of both placements. Raises EP001 where the model has another number of experts."""
        experts, model = self.num_logical_experts, self.model
        if model is None:
            return Hints(num_logical_experts=experts, num_redundant_experts=self.num_redundant_experts)
        if experts is not None and model.num_logical_experts not in (None, experts):
            raise UsageError(
                "EP001",
                f"--num-logical-experts is {experts:,}, and {model.name} has {model.num_logical_experts:,}",
            )
        return Hints(
            num_logical_experts=experts or model.num_logical_experts,
            num_redundant_experts=self.num_redundant_experts,
            layer_ids=np.array(model.moe_layers, np.int64),
            model=model,
        )

    def beside(self, shards: Shards) -> PlacementOptions:
        """The options together with what shards say of their model.

        Raises:
            UsageError: EP001, `old_num_ranks` or the number of experts is not that of the shards.
        """
        self._require("--old-num-ranks", self.old_num_ranks, f"{shards.path} has files of", shards.num_ranks)
        beside = model_of(shards)
        who = "--num-logical-experts" if self.num_logical_experts else "the number of experts of the model"
        said, where = self.hints.num_logical_experts, f"{beside.name}/config.json says"
        self._require(who, said, where, beside.num_logical_experts)
        return self if self.model is not None else replace(self, model=beside)

    def require_used(self, old: str | None, new: Sequence[str]) -> None:
        """Refuse what says something of a file or a map that is not there.

        Args:
            old: OLD; None without one, or where shards say it.
            new: NEW, or all that OLD is compared with.

        Raises:
            UsageError: EP001, naming the option.
        """
        named = [name for name in (old, *new) if name in NAMED_MAPS]
        for option, said, is_used, what in (
            ("--old-from", self.old_dialect, old not in {None, *NAMED_MAPS}, "is of OLD, which is no file"),
            ("--from", self.dialect, {*new} - {*NAMED_MAPS}, f"is of a file, and {' '.join(new)} is none"),
            (
                "--num-redundant-experts",
                self.num_redundant_experts,
                named,
                "is of the map linear, which is not named",
            ),
        ):
            if said is not None and not is_used:
                raise UsageError("EP001", f"{option} {said} {what} here", "leave it out")

    @staticmethod
    def _require(option: str, count: int | None, where: str, found: int | None) -> None:
        """EP001 where an option and something else say two numbers."""
        if None not in (count, found) and count != found:
            raise UsageError("EP001", f"{option} is {count:,}, and {where} {found:,}", "leave it out")


NO_OPTIONS = PlacementOptions()


def expert_size(said: int | None, model: Model | None) -> int | None:
    """Bytes of an expert, from --expert-bytes or the model; None where neither says them. Raises EP001."""
    if said is not None and not 1 <= said <= MAX_SIZE_NBYTES:
        problem = f"--expert-bytes is {said:,}, not from 1 to {MAX_SIZE_NBYTES:,}"
        raise UsageError("EP001", problem, "leave it out where sizes are not known")
    known = None if model is None else model.expert_nbytes
    if None not in (said, known) and said != known:
        problem = f"--expert-bytes is {said:,}, and an expert of the model has {known:,} bytes"
        raise UsageError("EP001", problem, "leave one of the two out")
    return said or known


def model_of(shards: Shards) -> Model:
    """What shards show of their model: MoE layers, beyond the hidden ones those of MTP, and E if said."""
    layers, config = shards.layers, shards.config
    experts = None if config is None else config.num_logical_experts
    family = "" if config is None else config.model_type
    return Model(
        str(shards.path), layers.hidden, tuple(layers.placed), tuple(layers.beside), experts, family=family
    )


def model_in(checkpoint: Path | None) -> Model | None:
    """The model that --checkpoint says: that of its config.json, or the layers of its shards.

    Raises:
        EplbError: the directory shows none; EP506, config.json is not what the manifest beside it says.
    """
    if checkpoint is None:
        return None
    from eplb_cli.checkpoint.manifest import file_beside, is_baked, read_manifest
    from eplb_cli.models.config import CONFIG_NAME
    from eplb_cli.models.preset import find_model
    from eplb_cli.models.weights import holds_checkpoint

    manifest = None if is_baked(checkpoint) else read_manifest(checkpoint)

    def read(path: Path, limit: int) -> bytes:
        return file_beside(path.parent, path.name, manifest).read(limit)

    try:
        return find_model(str(checkpoint), read)
    except EplbError as error:
        is_described = (checkpoint / CONFIG_NAME).is_file() and holds_checkpoint(checkpoint)
        if error.code != "EP118" or is_described:
            raise
    from eplb_cli.checkpoint.shards import open_shards

    return model_of(open_shards(checkpoint))
