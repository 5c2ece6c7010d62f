"""All that eplb knows of vLLM: what it touches there, and why.

===============================  =======================================================================
touched                          why
===============================  =======================================================================
register_model_loader            the only way to a new `--load-format`
BaseModelLoader.load_weights     comes before `process_weights_after_loading`: weights are as saved then
MoERunner, RoutedExperts         ranks, slots and rows of a layer, and whether its kernel asks the router
BaseRouter.eplb_state            maps ids of experts to slots, with EPLB or without: kernels take slots
BaseRouter._apply_eplb_mapping   tried once with every expert: on some platforms it does nothing
EplbState.add_model              always begins with vLLM's default map; ours follows with `update_mapping`
_commit_eplb_maps, _for_layer    a rearrangement ends there: the only place that knows the new map
VllmConfig.parallel_config       stages, microbatches, elastic ranks
===============================  =======================================================================

Run with the versions in `RUN_WITH`; with another one the loader warns. What is not there in a version, or
is called otherwise, is EP235 and nothing is loaded.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import vllm
from vllm.logger import init_logger
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from eplb_cli.arrays import Int
from eplb_cli.engines.vllm.admit import Admitted, Wanted, admit, require_mapped
from eplb_cli.engines.vllm.current import CurrentMap
from eplb_cli.engines.vllm.engine import Engine, Layer, Parameter
from eplb_cli.engines.vllm.options import read_options
from eplb_cli.engines.vllm.reading import KnownDigests, read_tensors
from eplb_cli.engines.vllm.tree import Tree, open_tree
from eplb_cli.errors import CheckpointError, EplbError

RUN_WITH = ("0.32.0",)
"""Versions of vLLM with which `scripts/serve-check` was run."""

LOAD_FORMAT = "eplb"

_DTYPES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.bool: "BOOL",
}

_logger = init_logger("vllm.eplb")


class NotServedError(RuntimeError):
    """An error of eplb as vLLM's log shows it: with its code and what to do about it."""


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """Say an error of the block in eplb's words; what vLLM no longer has is EP235."""
    try:
        yield
    except EplbError as error:
        raise NotServedError(f"{error.code}: {error.message}\nhint: {error.hint}") from None
    except (AttributeError, ImportError) as error:
        hint = f"eplb was run with vLLM {', '.join(RUN_WITH)}"
        message = f"EP235: vLLM {vllm.__version__} is not as eplb knows it: {error}\nhint: {hint}"
        raise NotServedError(message) from error


@functools.cache
def register_loader() -> None:
    """Register the load format, once in a process."""
    register_model_loader(LOAD_FORMAT)(EplbLoader)


class EplbLoader(BaseModelLoader):  # type: ignore[misc]
    """Loads each rank's own shard of a tree that eplb wrote, under the tree's own placement."""

    def __init__(self, load_config: Any) -> None:
        super().__init__(load_config)
        if vllm.__version__.partition("+")[0] not in RUN_WITH:
            warning = (
                "eplb was run with vLLM %s, and this is %s: look at what it answers before you rely on it"
            )
            _logger.warning(warning, ", ".join(RUN_WITH), vllm.__version__)
        with _in_words():
            self._options = read_options(load_config.model_loader_extra_config or {}, os.environ)
            _follow_eplb()
        self._parallel: Any = None

    def download_model(self, model_config: Any) -> None:
        """Nothing: a tree of eplb is a directory."""

    def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> Any:
        """The model with its weights, and with the maps of the placement where vLLM keeps none itself."""
        self._parallel = vllm_config.parallel_config
        model = super().load_model(vllm_config=vllm_config, model_config=model_config, prefix=prefix)
        with _in_words():
            served = _served[_told_of(model)]
            if served.admitted.must_map:
                for name, runner in _runners(model):  # some kernels are chosen only now
                    require_mapped(_layer(name, runner))
            if not served.has_eplb:
                served.write_map()
        return model

    def load_weights(self, model: Any, model_config: Any) -> None:
        """Fill the parameters of a model; whatever does not fit is found first."""
        with _in_words():
            tree = open_tree(Path(model_config.model_weights or model_config.model))
            engine = _engine(model, model_config, self._parallel)
            admitted = admit(tree, engine)
            known = KnownDigests(tree, admitted.rank) if self._options.verify else None
            if admitted.must_map and not engine.has_eplb:
                _set_maps(model, admitted.table, self._parallel.num_ubatches)
            state = model.state_dict(keep_vars=True)
            for wanted, content in read_tensors(tree, admitted.wanted, known):
                _fill(state[wanted.key], wanted, content)
            current = self._current(tree, admitted)
            _served[_told_of(model)] = _Served(admitted, engine.has_eplb, current)
        _logger.info_once("eplb: rank %d has read its own shard of %s", admitted.rank, tree.shards.path)

    def _current(self, tree: Tree, admitted: Admitted) -> CurrentMap | None:
        """The file for the map, on the one rank that writes it."""
        if self._options.current_map is None or admitted.rank != 0:
            return None
        return CurrentMap(self._options.current_map, tree.placement, admitted.layers)


@dataclass(eq=False)
class _Served:
    """What a model was loaded with."""

    admitted: Admitted
    has_eplb: bool
    current: CurrentMap | None

    def write_map(self) -> None:
        """Write the file for the map, where this rank has one. Raises OutputError."""
        if self.current is not None:
            self.current.write()

    def rearranged(self, rows: Int, layers: slice = slice(None)) -> None:
        """Take over a new map. A file that cannot be written is no reason to stop serving."""
        if self.current is None:
            return
        self.current.rearrange(rows, layers)
        if layers.stop in {None, len(self.current.layers)}:
            try:
                self.current.write()
            except EplbError as error:
                _logger.warning("eplb: %s: the current map is not written: %s", error.code, error.message)


_served: WeakKeyDictionary[Any, _Served] = WeakKeyDictionary()
"""By the module that EPLB is told of."""


def _known_experts(model: Any) -> Any:
    """The model, or the text model in it, if EPLB can be told of it; else None."""
    from vllm.model_executor.models.interfaces import get_mixture_of_experts_model

    return get_mixture_of_experts_model(model)


def _told_of(model: Any) -> Any:
    """What EPLB is told of, or the model itself."""
    return _known_experts(model) or model


def _runners(model: Any) -> Iterator[tuple[str, Any]]:
    """The layers of experts in the order of the model, which is EPLB's too."""
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    return ((name, module) for name, module in model.named_modules() if isinstance(module, MoERunner))


def _engine(model: Any, model_config: Any, parallel: Any) -> Engine:
    layers = tuple(_layer(name, runner) for name, runner in _runners(model))
    return Engine(
        layers,
        tuple(_parameters(model)),
        model_config.hf_text_config.to_dict(),
        bool(parallel.enable_eplb),
        _known_experts(model) is not None,
        parallel.pipeline_parallel_size,
        bool(parallel.enable_elastic_ep),
    )


def _layer(name: str, runner: Any) -> Layer:
    experts = runner.routed_experts
    config, manager = experts.moe_config, experts.expert_map_manager
    ranks = config.moe_parallel_config
    return Layer(
        name,
        ranks.ep_size,
        ranks.ep_rank,
        config.num_experts,
        config.num_logical_experts,
        config.num_local_experts,
        manager.placement_strategy,
        _why_not(runner, manager),
    )


def _why_not(runner: Any, manager: Any) -> str:
    """What keeps ids of experts from becoming slots."""
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

    if runner.is_monolithic:
        return "its kernel routes by itself (monolithic), and takes ids of experts for slots"
    if getattr(type(runner.router), "_select_experts", None) is not BaseRouter._select_experts:
        return f"its router, {type(runner.router).__name__}, maps no ids"
    if manager.num_fused_shared_experts:
        return "shared experts are fused with the routed ones, and are in no map"
    return ""


def _parameters(model: Any) -> Iterator[Parameter]:
    """Parameters, and buffers that are saved; shared experts and tied tensors have two names."""
    state = model.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    for found in names.values():
        tensor = state[found[0]]
        yield Parameter(
            tuple(found),
            _DTYPES.get(tensor.dtype, ""),
            tuple(tensor.shape),
            hasattr(tensor, "weight_loader"),
            not tensor.is_meta,
        )


def _fill(parameter: Any, wanted: Wanted, content: bytearray) -> None:
    """Put a tensor into its parameter. Raises EP236 where that cannot cut its part out of it."""
    dtype = next(known for known, name in _DTYPES.items() if name == wanted.at.entry.dtype)
    tensor = torch.from_numpy(np.frombuffer(content, np.uint8)).view(dtype).reshape(wanted.at.entry.shape)
    if not wanted.is_whole:
        parameter.data.copy_(tensor)
        return
    try:
        parameter.weight_loader(parameter, tensor)
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        problem = f"{wanted.key!r} is {list(tensor.shape)}, of which vLLM cannot cut {list(parameter.shape)}"
        raise CheckpointError("EP236", f"{problem}: {error}") from error


def _set_maps(model: Any, table: Int, num_ubatches: int) -> None:
    """Give every router the map of its layer, where vLLM keeps none: one slot for each expert."""
    from vllm.distributed.eplb.eplb_state import EplbLayerState

    for (_, runner), row in zip(_runners(model), table, strict=True):
        device = next(runner.routed_experts.parameters()).device
        slots = torch.from_numpy(np.argsort(row)).to(device)
        runner.router.eplb_state = EplbLayerState(
            expert_load_view=torch.zeros(len(row), dtype=torch.int32, device=device),
            logical_to_physical_map=slots[:, None],
            logical_replica_count=torch.ones_like(slots),
            should_record_tensor=torch.zeros((), dtype=torch.bool, device=device),
            num_unpadded_tokens_tensors=[
                torch.zeros((), dtype=torch.int32, device=device) for _ in range(max(1, num_ubatches))
            ],
        )
    _try_maps(model, table)


def _try_maps(model: Any, table: Int) -> None:
    """EP235 unless every router sends every expert to a slot that has it."""
    for (name, runner), row in zip(_runners(model), table, strict=True):
        device = runner.router.eplb_state.logical_to_physical_map.device
        experts = torch.arange(int(row.max()) + 1, dtype=torch.int32, device=device)[:, None]
        slots = runner.router._apply_eplb_mapping(experts).flatten().tolist()
        if [row[slot] for slot in slots] != list(range(len(slots))):
            hint = "vLLM maps experts to slots on GPUs; its CPU build does not"
            raise CheckpointError("EP235", f"{name}: vLLM's router does not map experts to slots here", hint)


@functools.cache
def _follow_eplb() -> None:
    """Let EPLB begin where the tree is, and tell of what it rearranges; once in a process."""
    from vllm.distributed.eplb import eplb_state
    from vllm.distributed.eplb.eplb_state import EplbState

    add_model, commit, commit_layer = (
        EplbState.add_model,
        eplb_state._commit_eplb_maps,
        eplb_state._commit_eplb_maps_for_layer,
    )

    @functools.wraps(add_model)
    def begin(self: Any, model: Any, model_config: Any, *more: Any, **named: Any) -> None:
        add_model(self, model, model_config, *more, **named)
        served = _served.get(model)
        if served is not None:
            with _in_words():
                self.update_mapping(model_config, torch.from_numpy(served.admitted.table.copy()))
                _try_maps(model, served.admitted.table)
                served.write_map()

    @functools.wraps(commit)
    def rearranged(model_state: Any, new_physical_to_logical_map: Any) -> None:
        commit(model_state, new_physical_to_logical_map)
        if (served := _served.get(model_state.model)) is not None:
            served.rearranged(new_physical_to_logical_map.cpu().numpy())

    @functools.wraps(commit_layer)
    def rearranged_layer(model_state: Any, new_physical_to_logical_map: Any, layer: int) -> None:
        commit_layer(model_state, new_physical_to_logical_map, layer)
        if (served := _served.get(model_state.model)) is not None:
            served.rearranged(new_physical_to_logical_map.cpu().numpy()[None], slice(layer, layer + 1))

    EplbState.add_model = begin
    eplb_state._commit_eplb_maps = rearranged
    eplb_state._commit_eplb_maps_for_layer = rearranged_layer
