"""JSON of eplb, held to the schemas that come with it, and to more: a key that none of them has is a mistake.

For everybody else keys may be added, so the schemas themselves are open.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

SCHEMAS = files("eplb_cli") / "schemas"
OUTPUT_OPTIONS = ("--out", "--out-new")
WRITERS = ("reshard", "shard")


def load(kind: str) -> dict[str, Any]:
    """A schema by its kind: "report"."""
    schema: dict[str, Any] = json.loads((SCHEMAS / f"eplb-{kind}-1.json").read_text())
    return schema


KINDS = sorted(path.name.split("-")[1] for path in SCHEMAS.iterdir())
FORMATS = {load(kind)["title"]: kind for kind in KINDS}


def closed(schema: Any) -> Any:
    """The schema without leave for keys that it does not name."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    if isinstance(result.get("properties"), dict) and "type" in result:
        result.setdefault("additionalProperties", False)
    return result


@cache
def validator(kind: str) -> Any:
    """What finds all that is wrong with a value of a kind."""
    schemas = {f"eplb-{name}-1.json": closed(load(name)) for name in KINDS}
    registry = Registry().with_resources(
        (name, Resource.from_contents(schema)) for name, schema in schemas.items()
    )
    return Draft202012Validator(schemas[f"eplb-{kind}-1.json"], registry=registry)


def problems(value: Any) -> list[str]:
    """What the schema of its format has against a value; nothing either where no schema is for it."""
    kind = FORMATS.get(value.get("format")) if isinstance(value, dict) else None
    found = () if kind is None else validator(kind).iter_errors(value)
    return [f"{error.json_path}: {error.message[:200]}" for error in found]


def require_valid_output(arguments: tuple[str, ...], out: str) -> None:
    """What a command printed and wrote, where it is JSON of a format that has a schema."""
    if out.startswith('{"format": "eplb-'):
        assert problems(json.loads(out)) == [], arguments
    names = [name for option, name in pairwise(arguments) if option in OUTPUT_OPTIONS]
    if arguments and arguments[0] in WRITERS:
        names += [f"{name}/eplb.json" for name in arguments[2:3]]
    for path in map(Path, names):
        if path.suffix == ".json" and path.is_file():
            assert problems(json.loads(path.read_text())) == [], path
