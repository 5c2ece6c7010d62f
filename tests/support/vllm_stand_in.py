"""The few objects of vLLM that the loader touches, with as much behaviour as it relies on."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

PACKAGE = "vllm"
MODULE = "eplb_cli.engines.vllm.vllm_internals"


@dataclass
class Told:
    """What vLLM was told: loaders by load format, lines for its log, the table that EPLB took over."""

    loaders: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    table: list[list[int]] = field(default_factory=list)
    is_processed: bool = False

    def warning(self, text: str, *values: object) -> None:
        """A line of the log."""
        self.said.append(text % values)

    info_once = warning

    def register(self, name: str) -> Any:
        """A decorator for loaders."""
        return lambda loader: self.loaders.setdefault(name, loader)


class BaseModelLoader:
    """Builds a model, loads its weights, and processes them."""

    def __init__(self, load_config: Any) -> None:
        self.load_config = load_config

    def load_weights(self, model: Any, model_config: Any) -> None:
        raise NotImplementedError

    def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> Any:
        del prefix
        self.load_weights(model_config.empty, model_config)
        vllm_config.told.is_processed = True
        return model_config.empty


class BaseRouter:
    """Sends each expert to the slot in its first column."""

    eplb_state: Any = None

    def _select_experts(self) -> None:
        """Only its identity matters."""

    def _apply_eplb_mapping(self, ids: Any) -> Any:
        return self.eplb_state.logical_to_physical_map[ids.long(), 0].to(ids.dtype)


class MoERunner(torch.nn.Module):  # type: ignore[name-defined,misc]
    """A layer of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.router: Any = BaseRouter()
        self.is_monolithic = False


def eplb_module(told: Told) -> dict[str, Any]:
    """What is touched of `eplb_state`: it begins with a map of its own and takes over any other."""

    class EplbState:
        def add_model(self, model: Any, model_config: Any) -> None:
            del model_config
            self.model = model
            for runner in model.runners:
                runner.router.eplb_state = SimpleNamespace(logical_to_physical_map=torch.zeros(4, 1).long())

        def update_mapping(self, model_config: Any, table: Any) -> None:
            del model_config
            told.table = table.tolist()
            for runner, row in zip(self.model.runners, told.table, strict=True):
                slots = torch.tensor([[row.index(expert)] for expert in range(max(row) + 1)])
                runner.router.eplb_state.logical_to_physical_map = slots

    return {
        "EplbState": EplbState,
        "EplbLayerState": SimpleNamespace,
        "_commit_eplb_maps": lambda *_: None,
        "_commit_eplb_maps_for_layer": lambda *_: None,
    }


def install(patch: pytest.MonkeyPatch, version: str = "0.32.0") -> Told:
    """Put the stand-in in vLLM's place, and eplb's module for it back to before its import."""
    told = Told()
    experts = f"{PACKAGE}.model_executor.layers.fused_moe"
    modules: dict[str, dict[str, Any]] = {
        PACKAGE: {"__version__": version},
        f"{PACKAGE}.logger": {"init_logger": lambda _: told},
        f"{PACKAGE}.model_executor.model_loader": {"register_model_loader": told.register},
        f"{PACKAGE}.model_executor.model_loader.base_loader": {"BaseModelLoader": BaseModelLoader},
        f"{PACKAGE}.model_executor.models.interfaces": {
            "get_mixture_of_experts_model": lambda model: model if model.is_known else None
        },
        f"{experts}.runner.moe_runner": {"MoERunner": MoERunner},
        f"{experts}.router.base_router": {"BaseRouter": BaseRouter},
        f"{PACKAGE}.distributed.eplb": {},
        f"{PACKAGE}.distributed.eplb.eplb_state": eplb_module(told),
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        patch.setitem(sys.modules, name, module)
    vars(sys.modules[f"{PACKAGE}.distributed.eplb"])["eplb_state"] = eplb_state()
    patch.delitem(sys.modules, MODULE, raising=False)
    return told


def eplb_state() -> Any:
    """The module of that name in the stand-in."""
    return sys.modules[f"{PACKAGE}.distributed.eplb.eplb_state"]


class Model(torch.nn.Module):  # type: ignore[name-defined,misc]
    """A module of modules."""

    is_known = True

    @property
    def runners(self) -> list[MoERunner]:
        """Its layers of experts."""
        return [module for module in self.modules() if isinstance(module, MoERunner)]


def build(
    tensors: Mapping[str, tuple[Any, tuple[int, ...]]], rank: int, slots: int, num_ranks: int = 2
) -> Model:
    """A model for one of several ranks and four experts, with zeros for parameters.

    Args:
        tensors: by key, dtype and shape as torch has them.
    """
    model = Model()
    for key, (dtype, shape) in tensors.items():
        *path, name = key.split(".")
        home = model
        for part in path:
            if part not in dict(home.named_children()):
                home.add_module(part, MoERunner() if part == "experts" else torch.nn.Module())
            home = getattr(home, part)
        zeros = torch.nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=False)
        home.register_parameter(name, zeros)
    for runner in model.runners:
        config = SimpleNamespace(
            moe_parallel_config=SimpleNamespace(ep_size=num_ranks, ep_rank=rank),
            num_experts=slots,
            num_logical_experts=4,
            num_local_experts=slots // num_ranks,
        )
        manager = SimpleNamespace(placement_strategy="linear", num_fused_shared_experts=0)
        runner.routed_experts = SimpleNamespace(
            moe_config=config, expert_map_manager=manager, parameters=runner.parameters
        )
    return model
