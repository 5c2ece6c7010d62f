"""Files that hold placements or loads, as plain values: JSON, JSON lines, YAML, CSV, arrays and tensors.

A file is taken for what its suffix says, and for JSON where that says nothing. Whatever it is, it has been
held to the budget before anything is built from it.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from eplb_cli.formats.budget import NotReadableError
from eplb_cli.formats.json_text import JsonText, parse_json, require_budget
from eplb_cli.machine import needed
from eplb_cli.values import dataclass

if TYPE_CHECKING:
    from eplb_cli.formats.yaml_text import YamlText

MAX_RECORDS = 100_000
"""Lines of a .jsonl file that are read."""


@dataclass(frozen=True)
class Document:
    """A file and what it says.

    Attributes:
        value: objects, lists, numbers and strings as Python has them; tensors as arrays, CSV as a `Table`.
        text: where it is one text in JSON or YAML, with the places of its values.
    """

    name: str
    value: Any
    text: JsonText | YamlText | None = None


def parse_document(name: str, data: bytes) -> Document:
    """The value in the content of a file.

    Raises:
        NotReadableError: it is not what its suffix says, or more of it than is read.
        UsageError: EP002, torch or yaml is not installed, and only that reads files of its kind.
    """
    suffix = PurePath(name).suffix.lower()
    if suffix in {".pt", ".pth"}:
        from eplb_cli.formats.tensor_file import parse_tensors

        return Document(name, parse_tensors(data))
    if suffix == ".npy":
        from eplb_cli.formats.array_file import parse_array

        return Document(name, parse_array(data))
    if suffix in {".yaml", ".yml"}:
        with needed("yaml", "a YAML file"):
            from eplb_cli.formats.yaml_text import parse_yaml

        yaml_text = parse_yaml(data)
        return Document(name, yaml_text.value, yaml_text)
    if suffix == ".csv":
        from eplb_cli.formats.csv_text import parse_csv

        return Document(name, parse_csv(data))
    if suffix == ".jsonl":
        return Document(name, _json_lines(data))
    text = parse_json(data)
    return Document(name, text.value, text)


def _json_lines(data: bytes) -> list[Any]:
    """The value of each line that is not empty. A record has each of its keys once.

    The budget is that of one text: brackets and commas count the same, whatever lines they are on.
    """
    lines = data.split(b"\n")
    if len(lines) > MAX_RECORDS:
        raise NotReadableError(f"more than {MAX_RECORDS:,} lines are not read")
    require_budget(data)
    values = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            values.append(_record(line, number))
    return values


def _record(line: bytes, number: int) -> Any:  # noqa: ANN401 - JSON is anything
    try:
        text = parse_json(line)
    except NotReadableError as error:
        raise NotReadableError(error.message, number) from error
    if text.repeated_keys:
        raise NotReadableError(f"more than once in one object: {text.repeated_keys[0]!r}", number)
    return text.value
