"""Arguments that no rank may pass: their names, the code of each refusal, and the functions that get them.

Nothing here needs torch; `flaws` has what the names stand for.
"""

from __future__ import annotations

IN_PLACE, PLANNED, PROFILE = "rearrange_expert_weights_inplace", "Rearrangement", "profile"
TRANSFER, MOVE = "transfer_layer", "move_to_buffer"
FUNCTIONS = (IN_PLACE, PLANNED, TRANSFER, MOVE, PROFILE)
"""All functions that talk to the group; `profile` is the first with `is_profile`."""

_AT_ONCE, _BY_LAYER = (IN_PLACE, PLANNED), (TRANSFER, MOVE)
_TO_PLAN = _AT_ONCE + _BY_LAYER

NO_MEMORY = (
    "meta",
    "fake",
    "sparse",
    "sparse rows",
    "mkldnn",
    "quantised",
    "nested",
    "a wrapper",
    "negated lazily",
    "freed",
    "cut off",
    "none",
    "an array",
    "a number",
)
NO_ROWS = ("expanded", "transposed", "rows that share elements")
OTHER_SHAPES = ("a scalar", "no rows")
NO_INTEGERS = (
    "float",
    "bf16",
    "requires grad",
    "bool",
    "complex",
    "float array",
    "bool array",
    "objects",
    "words",
    "ragged",
    "none",
    "meta",
    "sparse",
    "fake",
)
NO_MAPPING = (
    "a list",
    "a number",
    "words",
    "none",
    "halves",
    "a set",
    "two become one",
    "an old rank that is not there",
    "words for ranks",
)
ERRORS = {
    "ValueError": "EP401",
    "StopIteration": "EP401",
    "OSError": "EP401",
    "AssertionError": "EP401",
    "MemoryError": "EP401",
    "long": "EP401",
    "unprintable": "EP401",
    "no memory on a device": "EP406",
    "EplbError": "EP220",
    "EplbError of no code": "EP401",
}
"""What an iterator of weights may raise."""

Flaws = dict[str, tuple[str, tuple[str, ...]]]


def _of(kind: str, names: tuple[str, ...], code: str, functions: tuple[str, ...]) -> Flaws:
    return {f"{kind}: {name}": (code, functions) for name in names}


FLAWS: Flaws = {
    **_of("weight", NO_MEMORY, "EP228", FUNCTIONS),
    **_of("weight", NO_ROWS, "EP221", _TO_PLAN),
    **_of("weight", OTHER_SHAPES, "EP208", _TO_PLAN),
    **_of("buffer", NO_MEMORY, "EP228", _BY_LAYER),
    **_of("buffer", NO_ROWS, "EP221", _BY_LAYER),
    **_of("buffer", OTHER_SHAPES, "EP222", _BY_LAYER),
    **_of("old", NO_INTEGERS, "EP104", _TO_PLAN),
    **_of("new", NO_INTEGERS, "EP104", _TO_PLAN),
    **_of("old", ("too large", "too large without sign"), "EP105", _TO_PLAN),
    **_of("new", ("too large", "too large without sign"), "EP105", _TO_PLAN),
    **_of("mapping", NO_MAPPING, "EP115", (*_AT_ONCE, TRANSFER)),
    **{f"error: {name}": (code, FUNCTIONS) for name, code in ERRORS.items()},
    "error of planning: MemoryError": ("EP401", _TO_PLAN),
    "error of planning: no memory on a device": ("EP406", _TO_PLAN),
    "a tensor twice in a layer": ("EP221", _TO_PLAN),
    "tensors of a layer that overlap": ("EP221", _TO_PLAN),
    "a tensor in two layers": ("EP221", _AT_ONCE),
    "a buffer that is a weight": ("EP221", _BY_LAYER),
    "a buffer twice": ("EP221", _BY_LAYER),
    "no weights": ("EP401", FUNCTIONS),
    "a number for a layer": ("EP401", FUNCTIONS),
    "weights that raise": ("EP401", (*_AT_ONCE, TRANSFER)),
    "no buffers": ("EP401", _BY_LAYER),
    "a word for a layer's number": ("EP401", (TRANSFER,)),
    "half a layer": ("EP401", (TRANSFER,)),
    "the layer beside it": ("EP302", (TRANSFER,)),
    "a number for a stream": ("EP401", _BY_LAYER),
    "unknown senders": ("EP401", _AT_ONCE),
    "a word for a size": ("EP401", _AT_ONCE),
    "half a size": ("EP401", _AT_ONCE),
    "a size beyond all": ("EP401", _AT_ONCE),
    "a row too many in a number": ("EP108", (MOVE,)),
    "another function": ("EP302", FUNCTIONS),
}
"""Code and functions of each flaw; "kind: which" where a kind has many."""
