"""YAML from strangers: mappings, sequences and scalars; no aliases, no tags, no repeated keys."""

from __future__ import annotations

from typing import Any

import yaml  # type: ignore[import-untyped]

from eplb_cli.formats.document import NotReadableError
from eplb_cli.formats.json_text import MAX_MARKS

MAX_DEPTH = 32
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_WORDS = {"null": None, "~": None, "": None, "true": True, "false": False}


def parse_yaml(data: bytes) -> Any:  # noqa: ANN401 - YAML is anything
    """The value of the only document; whole numbers are integers, every other scalar is a string.

    Raises:
        NotReadableError: it is no YAML, or more of it than is looked at.
    """
    try:
        _refuse_bombs(data)
        node = yaml.compose(data, Loader=_LOADER)
        return None if node is None else _value(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise NotReadableError(f"not well-formed YAML: {problem}", mark and mark.line + 1) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise NotReadableError(f"not well-formed YAML: {str(error)[:200]}") from error


def _refuse_bombs(data: bytes) -> None:
    """Aliases can repeat themselves without end, and nesting can exhaust the stack."""
    depth = 0
    for count, event in enumerate(yaml.parse(data, Loader=_LOADER)):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise NotReadableError("aliases (*name) are not read", line)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH or count > MAX_MARKS:
            raise NotReadableError("it nests too deeply, or has too many values", line)


def _value(node: Any) -> Any:  # noqa: ANN401 - as parse_yaml
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    content = {}
    for key_node, value_node in node.value:
        key = _value(key_node) if isinstance(key_node, yaml.ScalarNode) else None
        if key is None or key in content:
            problem = "a key is no word or number" if key is None else f"{key!r} is there more than once"
            raise NotReadableError(problem, key_node.start_mark.line + 1)
        content[key] = _value(value_node)
    return content


def _scalar(node: Any) -> Any:  # noqa: ANN401 - as parse_yaml
    text = node.value
    if node.style:  # quoted, or a block
        return text
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    digits = text.removeprefix("-")
    return int(text) if digits.isdecimal() and digits.isascii() and len(digits) <= 30 else text  # noqa: PLR2004
