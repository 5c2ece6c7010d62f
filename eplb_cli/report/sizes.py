"""Sizes and rates as people write them."""

from __future__ import annotations

import re

from eplb_cli.errors import UsageError
from eplb_cli.values import dataclass

MAX_SIZE_NBYTES = 1 << 40
"""The largest size an option takes: a sum over all rows of a placement still fits 64 bits."""


_UNITS = {"": 1, **{letter: 1000**power for power, letter in enumerate("kmgt", 1)}}
_UNITS |= {f"{letter}i": 1 << 10 * power for power, letter in enumerate("kmgt", 1)}


def parse_size(text: str) -> int:
    """Bytes in "256MiB", "1GB" or "65536".

    Raises:
        UsageError: EP001, it is no size, or larger than `MAX_SIZE_NBYTES`.
    """
    nbytes = _nbytes(text)
    if nbytes is None or not 1 <= nbytes <= MAX_SIZE_NBYTES:
        hint = "sizes look like 65536, 256MiB or 1GB, and go up to 1024GiB"
        raise UsageError("EP001", f"{text!r} is not a size", hint)
    return nbytes


def parse_limit(option: str, text: str) -> int:
    """Bytes that are not to be exceeded, 0 or as many as one likes. Raises EP001, with the option."""
    nbytes = _nbytes(text)
    if nbytes is None:
        problem = f"{option}: {text!r} is no number of bytes"
        raise UsageError("EP001", problem, "limits look like 0, 500MiB, 40GB or 1.5TB")
    return nbytes


def _nbytes(text: str) -> int | None:
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,3})?)\s*([kmgt]i?)?b?", text.strip().lower())
    return int(float(match[1]) * _UNITS[match[2] or ""]) if match else None


@dataclass(frozen=True)
class Rates:
    """Bytes per second, None where nothing says.

    Attributes:
        nvlink: of one rank, in each direction, to ranks on its node.
        network: of one rank, in each direction, to other nodes.
        disk: of one node, reads and writes together.
    """

    nvlink: int | None = None
    network: int | None = None
    disk: int | None = None


RATES_HINT = "rates look like nvlink=370GB/s,network=50GB/s,disk=3GB/s; any of the three may be left out"


def parse_rates(text: str) -> Rates:
    """Rates in "nvlink=370GB/s,network=50GB/s,disk=3GB/s".

    Raises:
        UsageError: EP001, a name is unknown or there twice, or what it has is no rate.
    """
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, rate = (word.strip() for word in part.partition("="))
        if name not in Rates.__dataclass_fields__:
            raise UsageError("EP001", f"--bandwidth: {name!r} is no link", RATES_HINT)
        if name in found:
            raise UsageError("EP001", f"--bandwidth: {name} has two rates", RATES_HINT)
        try:
            found[name] = parse_size(re.sub(r"/\s*s$", "", rate))
        except UsageError as error:
            raise UsageError("EP001", f"--bandwidth: {rate!r} is not a rate", RATES_HINT) from error
    return Rates(**found)
