"""Whether an expert has all it consists of: no scale, bias or projection goes missing without a word.

The name of a tensor says what it is of: a projection and a kind, `w13` and `_weight_scale` or `down_proj` and
`.qweight`. What a model's experts consist of is not known beforehand; what their like have is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from eplb_cli.errors import CheckpointError

_PROJECTIONS = (
    "gate_up_proj", "gate_proj", "up_proj", "down_proj",
    "w13", "w1", "w2", "w3",
)  # fmt: skip
"""A name that begins with another one comes before it."""

_PARTNERS = {
    "w13": ("w2",),
    "w2": ("w13", "w1"),
    "w1": ("w2",),
    "w3": ("w1",),
    "gate_up_proj": ("down_proj",),
    "down_proj": ("gate_up_proj", "up_proj"),
    "up_proj": ("down_proj",),
    "gate_proj": ("up_proj",),
}
"""Of these projections one has to be there where the first one is."""

_WEIGHTS = {"", "weight", "weight_packed", "qweight", "blocks"}
_SCALES = ("scale", "zero", "absmax", "quant_state")
_CALIBRATIONS = ("input", "alpha")
"""What belongs to activations: whether a layer has it is a choice of whoever quantised it."""


class _Part(NamedTuple):
    """A tensor's name taken apart: the projection, and what of it."""

    projection: str
    kind: str


class Group(NamedTuple):
    """The tensors of one module of experts in one layer, by name their dtype."""

    layer: int
    home: str
    dtypes: Mapping[str, str]


def is_weight(tensor: str) -> bool:
    """Whether a tensor is the weight of a projection, by its name."""
    part = _split(tensor)
    return part is not None and part.kind in _WEIGHTS


def _split(tensor: str) -> _Part | None:
    for projection in _PROJECTIONS:
        if tensor.startswith(projection):
            rest = tensor.removeprefix(projection)
            if not rest or rest[0] in "._":
                return _Part(projection, rest.lstrip("._"))
    return None


def is_scale(tensor: str) -> bool:
    """Whether a tensor is nothing without a weight beside it, by its name."""
    return any(word in tensor for word in _SCALES)


def check_complete(groups: Iterable[Group], name_of: Mapping[int, str]) -> list[str]:
    """Refuse experts that lack what they cannot do without, or what their like have.

    Like are the same projections with weights of the same kind and dtype in other layers. Any scale at all is
    expected where any other weight of the same kind and dtype has one.

    Args:
        name_of: layers in words.

    Returns:
        A sentence for each calibration of activations that some layers have and others lack.

    Raises:
        CheckpointError: EP210, a scale without its weight or a weight without the kind of scale that its like
            have; EP230, another tensor is missing.
    """
    known = list(groups)
    for group in known:
        _check_alone(group, name_of)
    return _check_like(known, name_of)


def _check_alone(group: Group, name_of: Mapping[int, str]) -> None:
    """What is missing whatever others have: a weight, or a projection that another one leads to."""
    parts = {tensor: part for tensor in group.dtypes if (part := _split(tensor))}
    weighed = {part.projection for part in parts.values() if part.kind in _WEIGHTS}
    where = f"layer {name_of[group.layer]}"
    for tensor, part in parts.items():
        if part.projection not in weighed:
            code = "EP210" if is_scale(tensor) else "EP230"
            problem = f"{group.home}.{tensor} is there without the weight of {part.projection}"
            raise CheckpointError(code, f"{where}: {problem}")
    for projection in weighed:
        partners = _PARTNERS[projection]
        if not weighed & {*partners}:
            problem = f"{group.home} has {projection} and no {' or '.join(partners)}"
            raise CheckpointError("EP230", f"{where}: {problem}")


class _Weight(NamedTuple):
    """A projection of a module of experts, by its weight."""

    group: Group
    projection: str
    tensor: str
    dtype: str
    kinds: Mapping[str, str]


def _weights(group: Group) -> list[_Weight]:
    """The projections of a group; of each by its kind the name of every tensor."""
    kinds: dict[str, dict[str, str]] = defaultdict(dict)
    for tensor in group.dtypes:
        if part := _split(tensor):
            kinds[part.projection][part.kind] = tensor
    return [
        _Weight(group, projection, tensor, group.dtypes[tensor], found)
        for projection, found in kinds.items()
        for kind, tensor in found.items()
        if kind in _WEIGHTS
    ]


def _scales(weight: _Weight) -> set[str]:
    """The kinds of scales of a weight itself."""
    return {kind for kind in weight.kinds if is_scale(kind) and not _is_calibration(kind)}


def _is_calibration(kind: str) -> bool:
    return any(word in kind for word in _CALIBRATIONS)


def _check_like(groups: list[Group], name_of: Mapping[int, str]) -> list[str]:
    weights = [weight for group in groups for weight in _weights(group)]
    scaled: set[tuple[str, str]] = set()
    of_projection: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for weight in weights:
        form = weight.tensor.removeprefix(weight.projection), weight.dtype
        scaled |= {form} if _scales(weight) else set()
        of_projection[weight.projection, *form] |= weight.kinds.keys()
    warnings = []
    for weight in weights:
        form = weight.tensor.removeprefix(weight.projection), weight.dtype
        lacking = sorted(of_projection[weight.projection, *form] - weight.kinds.keys())
        where = f"layer {name_of[weight.group.layer]}: {weight.group.home}.{weight.tensor}"
        for kind in lacking:
            if _is_calibration(kind):
                warnings.append(f"{where} is there without {kind}, which its like have")
                continue
            code = "EP210" if is_scale(kind) else "EP230"
            raise CheckpointError(code, f"{where} is there without {kind}")
        if form in scaled and not _scales(weight):
            raise CheckpointError(
                "EP210", f"{where} is there without any scale, and other {weight.dtype} has one"
            )
    _check_projections(groups, name_of)
    return warnings


def _check_projections(groups: list[Group], name_of: Mapping[int, str]) -> None:
    """EP230 for a layer that has some of another's projections: stacked and numbered ones are no like."""
    sets = [
        frozenset(part.projection for tensor in group.dtypes if (part := _split(tensor))) for group in groups
    ]
    distinct = {(group.home, has) for group, has in zip(groups, sets, strict=True)}
    for group, has in zip(groups, sets, strict=True):
        missing = [other - has for home, other in distinct if home == group.home and has < other]
        if has and missing:
            problem = f"{group.home} has no {min(missing[0])}, which other layers have"
            raise CheckpointError("EP230", f"layer {name_of[group.layer]}: {problem}")
