"""Re-shard Mixture-of-Experts checkpoints offline, from one expert-parallel placement to another.

What is named here, and in `eplb_cli.live`, is the interface for programs; everything else may change. Each
name is imported when it is first asked for, and none of them imports torch.

Shapes are in the words of the design: L MoE layers, E experts, R ranks, P slots over all ranks, S of them
on one rank. OLD is the placement that shards are under, NEW the one that is wanted. What goes wrong is an
`EplbError` with a code, and nothing is left behind.

Examples:
    >>> import eplb_cli
    >>> from pathlib import Path
    >>> found = eplb_cli.validate(["new.json"], against="old.json")
    >>> any(finding.severity == "error" for finding in found)
    False
    >>> request = eplb_cli.Request(Path("src"), Path("out"), new="new.json", old="old.json", backend="file")
    >>> report = eplb_cli.reshard(request)
    >>> report.totals.remote_bytes, report.run.rows_proved
    (614400, 60)
    >>> eplb_cli.verify("out", against="src").rows_proved
    60
    >>> try:
    ...     eplb_cli.reshard(request)
    ... except eplb_cli.EplbError as error:
    ...     print(error.code, error.hint)
    EP601 remove it, or choose another DST
"""

# Nothing is imported here: `python -m eplb_cli` mends the path after this and before anything else.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from eplb_cli.audit.inspection import inspect
    from eplb_cli.audit.verify import verify
    from eplb_cli.balance.relabel import relabel
    from eplb_cli.balance.repair import Repaired, repair
    from eplb_cli.errors import (
        BytesError,
        CheckpointError,
        EplbError,
        OutputError,
        PlacementError,
        PlanError,
        UsageError,
        WorkerError,
    )
    from eplb_cli.huggingface.bake import bake
    from eplb_cli.huggingface.merge import merge
    from eplb_cli.huggingface.shard import shard
    from eplb_cli.inputs.options import PlacementOptions
    from eplb_cli.inputs.validate import validate
    from eplb_cli.placements.convert import convert
    from eplb_cli.placements.findings import Finding
    from eplb_cli.placements.hints import Hints
    from eplb_cli.placements.own_format import format_placement
    from eplb_cli.placements.placement import Placement
    from eplb_cli.placements.read import read_placement
    from eplb_cli.plan.moves import MoveTable, ReshardPlan
    from eplb_cli.plan.plan import plan_reshard
    from eplb_cli.report.inspection import Inspection
    from eplb_cli.report.report import Report
    from eplb_cli.report.verification import Verification
    from eplb_cli.report.written import Written
    from eplb_cli.run.planning import Answer, plan_files
    from eplb_cli.run.request import PlanRequest, Request
    from eplb_cli.run.reshard import reshard

__all__ = [
    "Answer",
    "BytesError",
    "CheckpointError",
    "EplbError",
    "Finding",
    "Hints",
    "Inspection",
    "MoveTable",
    "OutputError",
    "Placement",
    "PlacementError",
    "PlacementOptions",
    "PlanError",
    "PlanRequest",
    "Repaired",
    "Report",
    "Request",
    "ReshardPlan",
    "UsageError",
    "Verification",
    "WorkerError",
    "Written",
    "bake",
    "convert",
    "format_placement",
    "inspect",
    "merge",
    "plan_files",
    "plan_reshard",
    "read_placement",
    "relabel",
    "repair",
    "reshard",
    "shard",
    "validate",
    "verify",
]

__version__ = "0.2.0"

_HOMES = {
    "Answer": "run.planning",
    "BytesError": "errors",
    "CheckpointError": "errors",
    "EplbError": "errors",
    "Finding": "placements.findings",
    "Hints": "placements.hints",
    "Inspection": "report.inspection",
    "MoveTable": "plan.moves",
    "OutputError": "errors",
    "Placement": "placements.placement",
    "PlacementError": "errors",
    "PlacementOptions": "inputs.options",
    "PlanError": "errors",
    "PlanRequest": "run.request",
    "Repaired": "balance.repair",
    "Report": "report.report",
    "Request": "run.request",
    "ReshardPlan": "plan.moves",
    "UsageError": "errors",
    "Verification": "report.verification",
    "WorkerError": "errors",
    "Written": "report.written",
    "bake": "huggingface.bake",
    "convert": "placements.convert",
    "format_placement": "placements.own_format",
    "inspect": "audit.inspection",
    "merge": "huggingface.merge",
    "plan_files": "run.planning",
    "plan_reshard": "plan.plan",
    "read_placement": "placements.read",
    "relabel": "balance.relabel",
    "repair": "balance.repair",
    "reshard": "run.reshard",
    "shard": "huggingface.shard",
    "validate": "inputs.validate",
    "verify": "audit.verify",
}
"""The module of each name, imported when it is first asked for: a command starts with none of them."""


def __getattr__(name: str) -> "Any":  # noqa: ANN401 - whatever has the name
    from importlib import import_module

    if name not in _HOMES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
