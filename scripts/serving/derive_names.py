"""Which Hugging Face tensors make each tensor that vLLM saved, found by value alone.

    python derive_names.py HF_DIR SHARDS_DIR

HF_DIR is a tiny model whose tensors all differ; SHARDS_DIR is what vLLM saved of it with all experts on one
rank. Prints the table of `eplb_cli/huggingface/engines/vllm.toml` for the family. What cannot be told by
value is printed as a comment, and the exit code is 1: such a name must not go into the table.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

_LAYER = re.compile(r"^model\.layers\.\d+")
_EXPERT = re.compile(r"\.experts\.\d+\.")
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32"}


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a directory of safetensors."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= load_file(file)
    return found


def template(key: str) -> str:
    """A key as the table has it: without the number of its layer, and with {expert}."""
    return _EXPERT.sub(".experts.{expert}.", _LAYER.sub("", key))


_CONVERTED = (torch.float32, torch.bfloat16)
"""vLLM keeps some tensors in another of these, and its loader converts what it reads."""


class Sources:
    """Tensors of Hugging Face by the bytes of their first row, in each dtype that they may be kept in."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._by_first: dict[bytes, list[torch.Tensor]] = defaultdict(list)
        self._key_of: dict[int, str] = {}
        for key, tensor in tensors.items():
            kinds = _CONVERTED if tensor.dtype in _CONVERTED else (tensor.dtype,)
            for kind in kinds if tensor.dim() else ():
                kept = tensor.to(kind)
                self._by_first[_bytes(kept[:1])].append(kept)
                self._key_of[id(kept)] = key

    def joined(self, whole: torch.Tensor) -> list[str] | None:
        """The tensors that are `whole`, one behind the other along dim 0; None where there are none."""
        parts: list[str] = []
        at = 0
        while at < len(whole):
            part = self._next(whole, at)
            if part is None:
                return None
            parts.append(self._key_of[id(part)])
            at += len(part)
        return parts

    def _next(self, whole: torch.Tensor, at: int) -> torch.Tensor | None:
        for part in self._by_first[_bytes(whole[at : at + 1])]:
            found = whole[at : at + len(part)]
            if part.dtype == found.dtype and part.shape == found.shape and _bytes(part) == _bytes(found):
                return part
        return None


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


class Constant(NamedTuple):
    """A tensor without dimensions that vLLM makes for itself."""

    dtype: str
    data: str


Made = Constant | tuple[str, ...]
"""What one of vLLM's tensors is: a constant, or those of Hugging Face one behind the other."""


def derive(hf: dict[str, torch.Tensor], saved: dict[str, torch.Tensor]) -> tuple[dict[str, Made], list[str]]:
    """By vLLM's template what it is made of; and what nothing explains, of either side."""
    sources, table = Sources(hf), dict[str, Made]()
    used, open_ends = set[str](), list[str]()
    for key, tensor in sorted(saved.items()):
        value: Made
        if tensor.dim() == 0:
            value = Constant(_NAMES[tensor.dtype], _bytes(tensor.reshape(1)).hex())
        elif parts := sources.joined(tensor) or _rows(sources, tensor):
            used |= set(parts)
            value = tuple(dict.fromkeys(map(template, parts)))
        else:
            open_ends.append(f"{key} {tuple(tensor.shape)} {tensor.dtype}: made of nothing")
            continue
        if table.setdefault(template(key), value) != value:
            open_ends.append(f"{key}: {value}, and in another layer {table[template(key)]}")
    return table, open_ends + [f"{key}: in nothing that vLLM saved" for key in sorted(hf.keys() - used)]


def _rows(sources: Sources, stacked: torch.Tensor) -> list[str] | None:
    """What each row of a stacked tensor is made of."""
    rows = [sources.joined(row) for row in stacked] if stacked.dim() > 1 else [None]
    return None if any(row is None for row in rows) else [key for row in rows if row for key in row]


def show(family: str, table: dict[str, Made]) -> None:
    """The table as TOML."""
    kept, experts, fused, constants = list[str](), list[str](), list[str](), list[str]()
    for target, made in table.items():
        if isinstance(made, Constant):
            constants.append(f'"{target}" = ["{made.dtype}", "{made.data}"]')
        elif made == (target,):
            kept.append(f'    "{target}",')
        else:
            goal = experts if any("{expert}" in part for part in made) else fused
            goal.append(_joined(target, made))
    print(f"[{family}]", "kept = [", *kept, "]", sep="\n")
    for name, lines in (("experts", experts), ("fused", fused), ("constants", constants)):
        print(f"\n[{family}.{name}]", *lines, sep="\n")


def _joined(target: str, parts: tuple[str, ...]) -> str:
    return "\n".join([f'"{target}" = [', *(f'    "{part}",' for part in parts), "]"])


def main() -> int:
    """Print the table of a family."""
    hf, saved = Path(sys.argv[1]), Path(sys.argv[2])
    table, open_ends = derive(tensors_of(hf), tensors_of(saved))
    show(hf.name, table)
    print(*(f"# {line}" for line in open_ends), sep="\n")
    return 1 if open_ends else 0


if __name__ == "__main__":
    sys.exit(main())
