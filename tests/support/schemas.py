"""Enough of JSON Schema, and of XML Schema, to hold an output to what a specification says of it.

`SARIF` is written by hand from the text of SARIF 2.1.0 (OASIS, sections 3.13 to 3.51): every property that
eplb writes, with whatever the standard requires beside it. A property that is not here fails, so the subset
grows with what is written. It was compared with the official schema once, by hand. `JUNIT` is written by hand
too, of the elements in Jenkins's junit-10.xsd (xunit-plugin). No test uses an official schema.
"""

from __future__ import annotations

import re
from typing import Any
from xml.etree.ElementTree import Element

Schema = dict[str, Any]

_TYPES = {"object": dict, "array": list, "string": str, "integer": int}


def an_object(required: str, **properties: Schema) -> Schema:
    return {"type": "object", "required": required.split(), "properties": properties}


def an_array(items: Schema, *, unique: bool = False) -> Schema:
    return {"type": "array", "items": items, "unique": unique}


TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 1}
INDEX: Schema = {"type": "integer", "minimum": 0}
URI: Schema = {"type": "string", "pattern": r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+"}
MESSAGE = an_object("text", text=TEXT)
LOCATION = an_object(
    "",
    physicalLocation=an_object(
        "artifactLocation",
        artifactLocation=an_object("uri", uri=URI),
        region=an_object("startLine", startLine=COUNT, startColumn=COUNT),
    ),
)
RESULT = an_object(
    "message",
    ruleId=TEXT,
    ruleIndex=INDEX,
    level={"type": "string", "enum": ["none", "note", "warning", "error"]},
    message=MESSAGE,
    locations=an_array(LOCATION),
    properties={"type": "object"},
)
RULE = an_object("id", id=TEXT, shortDescription=MESSAGE, help=MESSAGE)
RUN = an_object(
    "tool",
    tool=an_object(
        "driver", driver=an_object("name", name=TEXT, version=TEXT, rules=an_array(RULE, unique=True))
    ),
    columnKind={"type": "string", "enum": ["utf16CodeUnits", "unicodeCodePoints"]},
    artifacts=an_array(an_object("", location=an_object("", uri=URI)), unique=True),
    results=an_array(RESULT),
)
SARIF = an_object(
    "version runs", **{"$schema": URI}, version={"type": "string", "enum": ["2.1.0"]}, runs=an_array(RUN)
)


def problems(value: object, schema: Schema, at: str = "") -> list[str]:
    """Where a JSON value is not what a schema says."""
    kind = _TYPES[schema["type"]]
    if not isinstance(value, kind) or isinstance(value, bool):
        return [f"{at}: {value!r} is no {schema['type']}"]
    found = []
    if isinstance(value, dict) and "properties" in schema:
        found += [f"{at}: {key} is missing" for key in schema["required"] if key not in value]
        for key, item in value.items():
            known = schema["properties"].get(key)
            found += [f"{at}: {key} is unknown"] if known is None else problems(item, known, f"{at}/{key}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            found += problems(item, schema["items"], f"{at}/{index}")
        if schema["unique"] and any(item in value[:index] for index, item in enumerate(value)):
            found.append(f"{at}: an item is there twice")
    if value not in schema.get("enum", [value]) or (kind is int and value < schema.get("minimum", value)):
        found.append(f"{at}: {value!r} is not allowed")
    if isinstance(value, str) and not re.fullmatch(schema.get("pattern", ".*"), value, re.DOTALL):
        found.append(f"{at}: {value!r} has another form")
    return found


JUNIT: dict[str, tuple[str, str, str]] = {
    "testsuites": ("", "name time tests failures errors", "testsuite"),
    "testsuite": ("name tests failures errors", "time timestamp skipped id package hostname", "testcase"),
    "testcase": ("name", "classname time assertions status", "skipped error failure system-out system-err"),
    "failure": ("", "message type", ""),
    "system-out": ("", "", ""),
}
"""Of each element: attributes that it must have, those that it may have too, and what may be in it."""


def xml_problems(element: Element) -> list[str]:
    """Where a JUnit document is not what the table says, and where its counts are wrong."""
    required, optional, inside = (words.split() for words in JUNIT[element.tag])
    names = set(element.attrib)
    found = [f"{element.tag}: {name} is missing" for name in set(required) - names]
    found += [f"{element.tag}: {name} is unknown" for name in names - {*required, *optional}]
    found += [f"{child.tag} in {element.tag}" for child in element if child.tag not in inside]
    if element.tag == "testsuite":
        counts = {"tests": len(element), "failures": len(element.findall("testcase/failure"))}
        found += [f"{name} is wrong" for name, count in counts.items() if element.get(name) != str(count)]
    return found + [problem for child in element for problem in xml_problems(child)]
