"""docs/formats.md: every key of the files and the JSON of eplb, from the descriptions in its JSON Schemas.

Run as `python -m scripts.formats_page > docs/formats.md`; a test holds the page to what this makes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

SCHEMAS = files("eplb_cli") / "schemas"
KINDS = ("placement", "plan", "report", "checkpoint", "layout")
"""In the order of the page."""

_HEAD = """<!-- Made by scripts/docs from eplb_cli/schemas: change those. -->

# File formats and JSON keys

Each format has a [JSON Schema](https://json-schema.org/draft/2020-12) in the package, and the tests hold all
that the commands print and write to it. Keys may be added later, and are never changed or given another
meaning; so the schemas allow keys that they do not name, and a program should too. Where one schema names
another it is the file beside it.

```python
from importlib.resources import files
import json

schema = json.loads((files("eplb_cli") / "schemas" / "eplb-report-1.json").read_text())
```

Bytes are integers, and a row is an expert in a slot, with all its tensors. In the tables `a.b` is the key `b`
in the object `a`, `a[]` each element of a list, and `a.*` what stands under any name. A key in **bold** is
always there, if what it is in is.

| format | file | what it is |
| --- | --- | --- |
"""

_TAIL = """
## Others

These have a `format` too, and no schema yet. They keep the same promise; the
[Python interface](python.md) describes the values behind them.

| format | printed by |
| --- | --- |
| `eplb-findings/1` | `eplb validate --format json` |
| `eplb-verification/1` | `eplb verify --format json` |
| `eplb-inspection/1` | `eplb inspect SRC --format json` |
| `eplb-load/1` | `eplb inspect LOAD --format json` |
| `eplb-identification/1` | `eplb inspect --identify --format json` |
| `eplb-models/1` | `eplb inspect --models --format json` |
| `eplb-balance/1` | `eplb balance --format json` |
| `eplb-repair/1` | `eplb balance --repair --format json` |
| `eplb-conversion/1` | `eplb convert --format json` |
| `eplb-codes/1` | `eplb explain --format json` |

With `--format json` an error is on stdout as well: `{"error": {"code", "message", "hint", "where"}}`, and
where more than one thing differs also `further` and `num_further`. `where` has `file`, `line`, `layer`,
`slot`, `rank` and `tensor`, null where that is not known.
"""


def load(kind: str) -> dict[str, Any]:
    """A schema by its kind: "report"."""
    schema: dict[str, Any] = json.loads((SCHEMAS / f"eplb-{kind}-1.json").read_text(encoding="utf-8"))
    return schema


def page() -> str:
    """The page."""
    schemas = {kind: load(kind) for kind in KINDS}
    lines = [
        f"| [`{schema['title']}`](#eplb-{kind}1) | `eplb-{kind}-1.json` | {schema['description']} |\n"
        for kind, schema in schemas.items()
    ]
    return _HEAD + "".join(lines) + "".join(map(_section, schemas.values())) + _TAIL


def _section(schema: dict[str, Any]) -> str:
    """A format: a line a key."""
    head = (
        f"\n## {schema['title']}\n\n{schema['description']}\n\n| key | is | meaning |\n| --- | --- | --- |\n"
    )
    return head + "".join(_line(*key) for key in _keys(schema, schema, ""))


def _line(name: str, schema: dict[str, Any], kind: str) -> str:
    return f"| {name} | {kind} | {schema['description']} |\n"


def _keys(
    root: dict[str, Any], schema: dict[str, Any], place: str
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Every key below a schema: how it is called in the page, its schema, and what stands there."""
    for key, value in schema.get("properties", {}).items():
        name = f"`{place}{key}`"
        found = _resolved(root, value)
        yield (f"**{name}**" if key in schema.get("required", ()) else name), value, _kind(found)
        yield from _keys(root, found, f"{place}{key}.")
        for inside, dots in ((found.get("items"), "[]."), (found.get("additionalProperties"), ".*.")):
            if isinstance(inside, dict):
                yield from _keys(root, inside, f"{place}{key}{dots}")


def _resolved(root: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """What a schema points to, if that is in the same file."""
    reference = schema.get("$ref", "")
    return root["$defs"][reference.rpartition("/")[2]] if reference.startswith("#/$defs/") else schema


def _kind(schema: dict[str, Any]) -> str:
    """What a value is, in a few words: `integer or null`, `list of string`."""
    if "$ref" in schema:
        return _pointer(schema["$ref"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if kinds == ["array"]:
        return f"list of {_kind(schema['items'])}" if schema["items"] else "list of four"
    return " or ".join(kinds)


def _pointer(reference: str) -> str:
    """The format, or the part of it, that a reference to another file leads to."""
    file, _, part = reference.partition("#/$defs/")
    kind = file.split("-")[1]
    return f"[`eplb-{kind}/1`](#eplb-{kind}1)" + (f", `{part}`" if part else "")


if __name__ == "__main__":
    sys.stdout.write(page())
