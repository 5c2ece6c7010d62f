"""Lists of modules that are not quantized, as far as they may be about experts.

There are three ways to write them: names, of which some programs take parts; globs; and `re:` with a regular
expression. What is not certain counts as a yes: then nothing is said of sizes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

_MOST_PATTERNS = 4096
_MOST_EXPRESSIONS = 32
_MOST_CHARACTERS = 200
_PREFIXES = ("model.language_model.", "language_model.model.")
"""What may stand before `layers.` in a list, whatever the checkpoint has there; `model.` is in the second."""


def may_exclude(patterns: object, modules: Sequence[str]) -> bool:
    """Whether a list may be about one of these modules, which are of routed experts.

    Args:
        patterns: what stands there; None where nothing does.
        modules: one expert of each layer, as in "model.layers.3.mlp.experts.0.up_proj".
    """
    if patterns is None:
        return False
    if not isinstance(patterns, list) or len(patterns) > _MOST_PATTERNS:
        return True
    if sum(str(pattern).startswith("re:") for pattern in patterns) > _MOST_EXPRESSIONS:
        return True
    rests = ["layers." + module.partition("layers.")[2] for module in modules]
    return any(_may_match(pattern, rests) for pattern in patterns)


def _may_match(pattern: object, rests: Sequence[str]) -> bool:
    if not isinstance(pattern, str) or len(pattern) > _MOST_CHARACTERS:
        return True
    if pattern.startswith("re:"):
        return _may_match_expression(pattern.removeprefix("re:"), rests)
    if re.search(r"(?<!shared_)experts", pattern):
        return True
    short = "layers." + pattern.partition("layers.")[2] if "layers." in pattern else pattern
    if any(character in pattern for character in "*?["):
        return any(_matches_glob(short, rest) for rest in rests)
    inside = f".{short.strip('.')}."
    return any(inside in f".{rest}." for rest in rests)


def _matches_glob(pattern: str, rest: str) -> bool:
    """Whether a glob fits a module, or one that it is in."""
    parts = rest.split(".")
    names = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(fnmatchcase(name, pattern) or fnmatchcase(f".{name}", pattern) for name in names)


def _may_match_expression(expression: str, rests: Sequence[str]) -> bool:
    """Whether it fits; a yes where finding out could take for ever, as with two parts that repeat."""
    core = expression.removeprefix("^").removeprefix(".*").removesuffix(".*$").removesuffix(".*")
    if len(re.findall(r"[*+{]", core)) > 1 or re.search(r"\)[*+?{]", core):
        return True
    try:
        compiled = re.compile(core)
    except (re.error, OverflowError, RecursionError):
        return True
    return any(compiled.search(prefix + rest) for rest in rests for prefix in _PREFIXES)
