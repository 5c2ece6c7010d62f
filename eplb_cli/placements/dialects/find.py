"""Which dialect a value is of."""

from __future__ import annotations

from eplb_cli.errors import PlacementError
from eplb_cli.placements.dialects.dialect import Dialect, known_layers
from eplb_cli.placements.dialects.registry import NAMES, OWN, dialect_called
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.keys import MAP


def find_dialect(value: object, hints: Hints) -> Dialect:
    """The dialect that the hints name, or the one that the value is of; eplb's own where it is of none.

    Raises:
        PlacementError: EP116, it is not of the dialect that is named, or of several with other layers.
    """
    if hints.dialect is not None:
        dialect = dialect_called(hints.dialect)
        if dialect.name != OWN and not dialect.fits(value):
            others = [name for name in NAMES if dialect_called(name).fits(value)]
            looks = f"; it looks like one of {' or '.join(others)}" if others else ""
            raise PlacementError("EP116", f"not a placement of {dialect.name}{looks}", "see docs/dialects.md")
        return dialect
    fitting = [name for name in NAMES if dialect_called(name).fits(value)]
    if isinstance(value, dict) and fitting == ["vllm", "sglang"]:
        return dialect_called(_vllm_or_sglang(value[MAP], hints))
    return dialect_called(
        fitting[0] if fitting else OWN
    )  # vllm's and deepseek's bare lists of rows mean the same


def _vllm_or_sglang(rows: object, hints: Hints) -> str:
    """Told apart by the number of rows: MoE layers, or all hidden layers."""
    layers = known_layers(hints)
    counted = hints.num_layers if layers is None else len(layers)
    hidden = None if hints.model is None else hints.model.num_hidden_layers
    if not isinstance(rows, list) or len(rows) == counted:
        return "vllm"
    if len(rows) == hidden or (hidden is None and layers and len(rows) > max(layers)):
        return "sglang"
    if counted is not None:
        of_model = "" if hidden is None else f" or {hidden:,} hidden"
        raise PlacementError("EP109", f"the map has {len(rows):,} rows, for {counted:,} MoE{of_model} layers")
    raise PlacementError(
        "EP116",
        f'{len(rows):,} rows under only "{MAP}": vllm means MoE layers with them, sglang all hidden layers',
        "say which: --from vllm or --from sglang, or the model with --model PRESET|config.json",
    )
