"""How an engine loads shards that lie under a placement, or what it would make of them without an error.

One place for `shard` and `reshard`, by engine, family, placement, ranks and tensor parallelism; which slots
an engine can have at all is in `placements/engines`, for `validate --engine` too. What engines do was read in
vLLM 0.32 and SGLang 0.5.23, and what was run besides stands in docs/serving.md.

From shards an engine takes rows as they come, and its own map decides which experts it believes them to be.
Where sizes fit, a wrong map is no error: such a placement is `misread`, and that is a warning.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property

import numpy as np

from eplb_cli.errors import EplbError
from eplb_cli.placements.choice import EngineName
from eplb_cli.placements.engines import engine_called, slot_findings
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.named_map import named_map
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.values import dataclass

VLLM: EngineName = "vllm"
SGLANG: EngineName = "sglang"
NO_ENGINE = "nothing loads this placement from shards; see docs/serving.md"

_STOPS_AT_MTP = "its loader of shards stops at tensors of MTP; `shard --mtp skip` leaves them out"

_WITH_MAPS = (
    "vLLM, a release that saves expert_map with the weights (read, not run; others stop at that tensor): "
    "vllm serve DST --load-format sharded_state"
)
_IN_ORDER = (
    "vLLM: --load-format sharded_state would load these shards without an error and answer nonsense: it "
    "takes their experts to be in order, whatever eplb.json says. --load-format eplb reads that"
)
_OTHER_BACKENDS = (
    "vLLM: with data parallelism and another --all2all-backend than deepep_low_latency or nixl_ep, "
    "--load-format sharded_state would load these shards without an error and answer nonsense: round_robin "
    "is linear then. --load-format eplb reads eplb.json"
)

_SGLANG_MAPS = {"deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe", "kimi_k2", "qwen2_moe", "qwen3_moe"}
"""Families whose models take a map in SGLang (`get_model_config_for_expert_location`), of those looked at."""


@dataclass(frozen=True)
class Served:
    """Shards as an engine gets them.

    Attributes:
        placement: what their rows are.
        layout: the name of their layout.
        engine: whose names their tensors have: "vllm", "sglang" or "huggingface"; empty where nothing says.
        family: the `model_type`, empty where nothing says.
        num_groups: groups of experts that the router chooses first; None where nothing says.
        is_whole: whether each rank has all of what is no expert's, as with data parallelism; None where
            nothing says.
        has_mtp: whether there are tensors of MTP.
        has_maps: whether vLLM's maps of experts are among the tensors.
    """

    placement: Placement
    layout: str
    engine: str = ""
    family: str = ""
    num_groups: int | None = None
    is_whole: bool | None = None
    has_mtp: bool = False
    has_maps: bool = False

    @cached_property
    def serving(self) -> Serving:
        """What to say of them."""
        return serving(self)

    @property
    def num_ranks(self) -> int:
        """R."""
        return self.placement.num_ranks

    @property
    def num_redundant(self) -> int:
        """Slots beyond one for each expert; less than 0 where experts have none."""
        return self.placement.num_slots - self.placement.num_logical_experts

    @property
    def is_full(self) -> bool:
        """Whether each slot has an expert, and each rank a slot.

        A rank without a slot has stacked tensors of no element, which vLLM neither saves nor loads.
        """
        placement = self.placement
        has_empty = bool((placement.physical_to_logical == EMPTY).any())
        return not has_empty and bool(placement.slots_per_rank.all())

    def has_slots_in(self, engine: EngineName) -> bool:
        """Whether an engine can have these slots, and enough of them."""
        return self.num_redundant >= 0 and not any(slot_findings(self.placement, engine_called(engine)))

    def is_named(self, name: str) -> bool:
        """Whether every layer is the named map, with as many redundant experts as there are."""
        placement = self.placement
        hints = Hints(
            num_ranks=placement.num_ranks,
            num_logical_experts=placement.num_logical_experts,
            num_layers=1,
            num_redundant_experts=max(self.num_redundant, 0),
        )
        if self.num_redundant < 0 or not self.is_full:
            return False
        try:
            same = named_map(name, hints)
        except EplbError:
            return False
        is_same = (placement.physical_to_logical == same.physical_to_logical).all()
        return np.array_equal(same.first_slot, placement.first_slot) and bool(is_same)


@dataclass(frozen=True)
class Serving:
    """What to say of shards.

    Attributes:
        notes: how each engine loads them, or that none does.
        misread: what an engine would load without an error, and wrongly.
    """

    notes: tuple[str, ...]
    misread: tuple[str, ...] = ()


def serving(served: Served) -> Serving:
    """How engines load shards of a placement, and how they would misread them."""
    if served.engine and served.engine not in (VLLM, SGLANG):
        return Serving(("shards with Hugging Face names: load them with a program that reads those",))
    if served.layout != "sharded-state":
        said = f"shards of layout {served.layout}: load them with the program that wrote their like"
        return Serving((said,))
    if served.has_maps:
        return _vllm_with_maps(served)
    found = [of_engine(served) for name, of_engine in _ENGINES.items() if served.engine in ("", name)]
    notes = (note for one in found for note in one.notes)
    return Serving(tuple(notes), tuple(said for one in found for said in one.misread))


def _vllm(served: Served) -> Serving:
    """Its own loader knows two maps, the plugin any that vLLM has slots for."""
    if problem := _vllm_lacks(served):
        return Serving((f"vLLM: {problem}",))
    options = _vllm_options(served)
    plugin = _line("vLLM with eplb installed: vllm serve DST --load-format eplb", options)
    if served.has_mtp:
        return Serving((plugin, f"vLLM as it is: {_STOPS_AT_MTP}"))
    if served.is_named("linear"):
        return Serving((plugin, _vllm_stock(served, options)))
    if served.is_named("round_robin") and _vllm_grants_round_robin(served):
        options.append("--expert-placement-strategy round_robin")
        if served.is_whole is False:
            return Serving((plugin, _vllm_stock(served, options)))
        options.append("--all2all-backend deepep_low_latency")
        return Serving((plugin, _vllm_stock(served, options)), (_OTHER_BACKENDS,))
    return Serving((plugin,), (_IN_ORDER,))


def _vllm_with_maps(served: Served) -> Serving:
    """Shards of the releases whose `expert_map` was saved with the weights: loaded, it is that of NEW."""
    if problem := _vllm_lacks(served):
        return Serving((f"vLLM: {problem}",))
    # With replicas the maps are by slot: which expert a slot has, vLLM's EPLB says, and begins in order.
    is_misread = served.num_redundant > 0 and not served.is_named("linear")
    return Serving((_line(_WITH_MAPS, _vllm_options(served)),), (_IN_ORDER,) if is_misread else ())


def _vllm_lacks(served: Served) -> str:
    """Why vLLM has no slots for a placement; nothing where it has."""
    if served.num_redundant > 0 and served.family in engine_called(VLLM).without_replicas:
        return f"it has no EPLB for {served.family}, and so no replicas"
    return "" if served.has_slots_in(VLLM) else NO_ENGINE


def _vllm_grants_round_robin(served: Served) -> bool:
    """As `determine_expert_placement_strategy` has it; elsewhere it is linear, and a line in vLLM's log."""
    return served.num_groups is not None and served.num_groups > 1


def _vllm_options(served: Served) -> list[str]:
    """What makes R expert-parallel ranks, of which each reads what it has, and slots for replicas."""
    options = []
    if served.num_ranks > 1:
        kind = "data" if served.is_whole else "tensor"
        options = ["--enable-expert-parallel", f"--{kind}-parallel-size {served.num_ranks}"]
    if served.num_redundant:
        config = json.dumps({"num_redundant_experts": served.num_redundant})
        options += ["--enable-eplb", f"--eplb-config '{config}'"]
    return options


def _vllm_stock(served: Served, options: Iterable[str]) -> str:
    """Its loader takes the file of the tensor-parallel rank: with data parallelism that is 0 for all."""
    line = _line("vLLM as it is: vllm serve DST --load-format sharded_state", options)
    if served.num_ranks == 1 or served.is_whole is False:
        return line
    pattern = json.dumps({"pattern": "model-rank-RANK-part-{part}.safetensors"})
    if served.is_whole is None:
        line += f"; where they were saved with data parallelism --data-parallel-size {served.num_ranks}"
    return (
        f"{line} --data-parallel-rank RANK --model-loader-extra-config '{pattern}', a process for each RANK "
        f"from 0 to {served.num_ranks - 1}: without the pattern all would read rank 0's file, and no error"
    )


def _sglang(served: Served) -> Serving:
    """It takes any map, for models that know of maps, with as many slots on each rank."""
    is_default, family, engine = served.is_named("trivial"), served.family, engine_called(SGLANG)
    no_maps = family in engine.without_maps and not (is_default and served.num_ranks == 1)
    no_replicas = family in engine.without_replicas and served.num_redundant > 0
    if no_maps or no_replicas or not served.has_slots_in(SGLANG):
        return Serving((f"SGLang: {NO_ENGINE}",))
    if served.has_mtp:
        return Serving((f"SGLang: {_STOPS_AT_MTP}",))
    options = _sglang_ranks(served)
    if served.num_redundant:
        options.append(f"--ep-num-redundant-experts {served.num_redundant}")
    if not is_default:
        options.append("--init-expert-location FILE")
    line = _line("SGLang: --load-format sharded_state", options)
    if served.engine != SGLANG:
        line += ", and all else as where SGLang saved these shards"
    if is_default:
        return Serving((line,))
    line += "; FILE is what `eplb convert NEW FILE --to sglang --model DST/config.json` writes"
    if family not in _SGLANG_MAPS:
        line += ". Make sure that SGLang's model takes a map: those without one stop, or ignore it"
    misread = (
        "SGLang: without --init-expert-location it would load these shards without an error and answer "
        "nonsense: it takes their experts to be in order"
    )
    return Serving((line,), (misread,))


def _sglang_ranks(served: Served) -> list[str]:
    """Everything but experts whole on each rank, as `shard` writes it; nothing where SGLang wrote it."""
    ranks = served.num_ranks
    if served.engine != SGLANG or ranks == 1:
        return []
    sizes = f"--tp-size {ranks} --attn-dp-size {ranks} --ep-size {ranks}"
    return [
        f"{sizes} --enable-dp-lm-head --moe-dense-tp-size 1 --moe-a2a-backend deepep",
        "--disable-shared-experts-fusion",
    ]


_ENGINES = {VLLM: _vllm, SGLANG: _sglang}


def _line(start: str, options: Iterable[str]) -> str:
    return " ".join([start, *options])
