"""Which dialect a value is of."""

from __future__ import annotations

from eplb_cli.errors import PlacementError
from eplb_cli.placements.dialects.dialect import Dialect
from eplb_cli.placements.dialects.registry import NAMES, OWN, dialect_called
from eplb_cli.placements.dialects.strangers import stranger
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.keys import MAP


def find_dialect(value: object, hints: Hints) -> Dialect:
    """The dialect that the hints name, or the one that the value is of.

    Raises:
        PlacementError: EP116, it is not of the dialect that is named, or of several with other layers; EP103,
            it is of none, and the message says what it is instead.
    """
    if hints.dialect is not None:
        dialect = dialect_called(hints.dialect)
        if dialect.name != OWN and not dialect.fits(value):
            raise _not_of(dialect.name, value)
        return dialect
    fitting = [name for name in NAMES if dialect_called(name).fits(value)]
    if isinstance(value, dict) and fitting == ["vllm", "sglang"]:
        return dialect_called(_vllm_or_sglang(value[MAP], hints))
    if not fitting:
        raise stranger(value)
    if isinstance(value, dict) and len(fitting) > 1:
        problem = f"it has several maps, and looks like one of {' or '.join(fitting)}"
        raise PlacementError("EP116", problem, "say which is meant with --from")
    return dialect_called(fitting[0])  # vllm's and deepseek's bare lists of rows mean the same


def _not_of(name: str, value: object) -> PlacementError:
    """EP116 for a value that is not of the dialect that is named."""
    others = [other for other in NAMES if dialect_called(other).fits(value)]
    if not others:
        return stranger(value, name)
    problem = f"not a placement of {name}; it looks like one of {' or '.join(others)}"
    return PlacementError("EP116", problem, "see docs/dialects.md")


def _vllm_or_sglang(rows: object, hints: Hints) -> str:
    """Told apart by the number of rows: MoE layers, or all hidden layers."""
    layers = hints.own_layers
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
        f'{len(rows):,} rows under "{MAP}": vllm means MoE layers with them, sglang all hidden layers',
        "say which: --from vllm or --from sglang, or the model with --model PRESET|config.json",
    )
