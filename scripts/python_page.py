"""docs/python.md: the interface for programs, from its docstrings.

Usage: python -m scripts.python_page > docs/python.md

Nothing is imported: the docstrings are read by griffe and written as Markdown by griffe2md. What is done
here is the order of the page, and links that lead somewhere.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from pathlib import Path

import griffe
from griffe2md import ConfigDict, render_object_docs

ROOT = Path(__file__).parents[1]

SECTIONS = {
    "Placements": (
        "read_placement",
        "format_placement",
        "validate",
        "convert",
        "plan_reshard",
        "plan_files",
        "relabel",
        "repair",
    ),
    "Shards": ("Request", "PlanRequest", "reshard", "verify", "inspect"),
    "Hugging Face checkpoints": ("shard", "merge", "bake"),
    "Values": (
        "Placement",
        "Hints",
        "PlacementOptions",
        "Finding",
        "MoveTable",
        "ReshardPlan",
        "Repaired",
        "Answer",
        "Report",
        "Verification",
        "Inspection",
        "Written",
    ),
    "Errors": (
        "EplbError",
        "UsageError",
        "PlacementError",
        "CheckpointError",
        "PlanError",
        "WorkerError",
        "BytesError",
        "OutputError",
    ),
}
"""All names of `eplb_cli`, in the order in which they are needed."""

WITHOUT_MEMBERS = {"Hints", "PlacementOptions", "Request", "PlanRequest", *SECTIONS["Errors"]}
"""Classes of which only the fields matter to a program."""

LIVE = "Live tensors: `eplb_cli.live`"

CONFIG: ConfigDict = {
    "heading_level": 3,
    "inherited_members": False,
    "members_order": "source",
    "show_if_no_docstring": False,
    "show_object_full_path": False,
    "show_root_full_path": False,
    "show_root_members_full_path": False,
    "show_signature_annotations": True,
    "summary": False,
}
MAX_SIGNATURE = 100
"""Characters of a signature on one line."""

NOTE = "<!-- Made by scripts/docs from the docstrings: change those. -->"


class _Dataclasses(griffe.Extension):
    """Classes of `eplb_cli.values` have fields and signatures as those of the standard library."""

    def on_alias_instance(self, *, alias: griffe.Alias, **_: object) -> None:
        """Let the name stand for what griffe knows."""
        if alias.target_path == "eplb_cli.values.dataclass":
            alias.target_path = "dataclasses.dataclass"


def page() -> str:
    """The whole page."""
    package = griffe.load(
        "eplb_cli",
        search_paths=[ROOT],
        docstring_parser="google",
        allow_inspection=False,
        extensions=griffe.load_extensions(_Dataclasses()),
    )
    live = package["live"]
    sections = {title: [package[name] for name in names] for title, names in SECTIONS.items()}
    sections[LIVE] = [live[str(name)] for name in live.exports]
    intros = {LIVE: _module(live)}
    parts = [NOTE, "# Python", _module(package)]
    for title, objects in sections.items():
        parts += [f"## {title}", intros.get(title, ""), *map(_object, objects)]
    names = {member.name for objects in sections.values() for member in objects}
    return _linked(_wrapped(_spaced("\n\n".join(parts))), names)


def _module(module: griffe.Object | griffe.Alias) -> str:
    """What a module says of itself, without its members."""
    return _render(module, {**CONFIG, "show_root_heading": False, "members": False})


def _object(member: griffe.Object | griffe.Alias) -> str:
    """A name, how it is called, and its docstring."""
    is_error, has_members = member.name in SECTIONS["Errors"], member.name not in WITHOUT_MEMBERS
    text = _render(member, {**CONFIG, "show_bases": is_error, "members": None if has_members else False})
    return text.replace(") -> None\n", ")\n", 1) if member.is_class else text


def _render(member: griffe.Object | griffe.Alias, config: ConfigDict) -> str:
    target = member.final_target if isinstance(member, griffe.Alias) else member
    return str(render_object_docs(target, config))


def _spaced(text: str) -> str:
    """One blank line between two blocks, and none at the end of a line."""
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip() + "\n"


def _wrapped(text: str) -> str:
    """Signatures that are too long for a line, one argument a line."""
    block = re.compile(r"^```python\n(.+)\n```$", re.MULTILINE)
    return block.sub(lambda match: f"```python\n{_signature(match[1])}\n```", text)


def _signature(text: str) -> str:
    if len(text) <= MAX_SIGNATURE or ")" not in text:
        return text
    head, _, rest = text.partition("(")
    arguments, _, result = rest.rpartition(")")
    lines = re.split(r", (?![^\[(]*[\])])", arguments)
    return "\n".join([f"{head}(", *(f"    {line}," for line in lines), f"){result}"])


def _linked(text: str, names: Collection[str]) -> str:
    """Links to what is on the page; the others become the words they were on."""

    def link(match: re.Match[str]) -> str:
        words, name = match[1], match[2].rpartition(".")[2]
        return f"[{words}](#{name.lower()})" if name in names else words

    return re.sub(r"\[([^\[\]]+)\]\(#([\w.]+)\)", link, text)


if __name__ == "__main__":
    sys.stdout.write(page())
