"""Re-shard Mixture-of-Experts checkpoints offline, from one expert-parallel placement to another.

What is named here, and in `eplb_cli.live`, is the interface for programs; everything else may change.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eplb_cli.audit.verify import verify
    from eplb_cli.errors import EplbError
    from eplb_cli.placements.placement import Placement
    from eplb_cli.placements.read import read_placement
    from eplb_cli.plan.plan import plan_reshard
    from eplb_cli.run.request import PlanRequest, Request
    from eplb_cli.run.reshard import reshard

__all__ = [
    "EplbError",
    "Placement",
    "PlanRequest",
    "Request",
    "plan_reshard",
    "read_placement",
    "reshard",
    "verify",
]

__version__ = "0.1.0"

_HOMES = {
    "EplbError": "errors",
    "Placement": "placements.placement",
    "PlanRequest": "run.request",
    "Request": "run.request",
    "plan_reshard": "plan.plan",
    "read_placement": "placements.read",
    "reshard": "run.reshard",
    "verify": "audit.verify",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever has the name
    if name not in _HOMES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
