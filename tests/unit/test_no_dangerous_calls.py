"""Nothing is unpickled, and nothing from a file becomes code, a command or a format."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import eplb_cli

SOURCES = sorted(Path(eplb_cli.__file__).parent.rglob("*.py"))
BANNED_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "multiprocessing",
    "code",
}
BANNED_CALLS = {"eval", "exec", "compile", "__import__", "system", "popen", "from_markup", "format_map"}
YAML_CALLS = {"yaml.parse", "yaml.compose"}
KEYWORDS = {"np.load": "allow_pickle", "np.save": "allow_pickle", "read_array": "allow_pickle"}


def complaints(source: str) -> Iterator[str]:
    """What a module does that it must not: `line: what`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
            for name in sorted({name.split(".")[0] for name in names} & BANNED_MODULES):
                yield f"{node.lineno}: {name}"
        if isinstance(node, ast.Call):
            path = ast.unparse(node.func)
            if path.startswith("yaml.") and path not in YAML_CALLS:
                yield f"{node.lineno}: {path} may build objects"
            yield from (f"{node.lineno}: {problem}" for problem in _problems(node))


def _problems(call: ast.Call) -> Iterator[str]:
    path = ast.unparse(call.func)
    name = path.split(".")[-1]
    said = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in BANNED_CALLS and not path.startswith("re."):
        yield name
    if name.endswith(("_object", "_object_list")):
        yield f"{name} pickles"
    if (
        name == "format"
        and isinstance(call.func, ast.Attribute)
        and not isinstance(call.func.value, ast.Constant)
    ):
        yield "a format that is no literal"
    if not _is(said.get("shell"), value=False, default=False):
        yield "a shell"
    if path == "torch.load" and not _is(said.get("weights_only"), value=True, default=False):
        yield "torch.load without weights_only=True"
    for suffix, keyword in KEYWORDS.items():
        if path.endswith(suffix) and not _is(said.get(keyword), value=False, default=None):
            yield f"{suffix} without {keyword}=False"
    if name == "Console" and not {"file"} <= said.keys():
        yield "a console of its own"
    if name == "TextColumn" and not _is(said.get("markup"), value=False, default=True):
        yield "markup in a column"


def _is(found: ast.expr | None, *, value: bool, default: bool | None) -> bool:
    """Whether a keyword is there with a literal value, or its default has it."""
    return default is value if found is None else isinstance(found, ast.Constant) and found.value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_module_does_what_none_may(path):
    """The whole package."""
    assert list(complaints(path.read_text())) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pickle\n", ["1: pickle"]),
        ("from multiprocessing import Pool\n", ["1: multiprocessing"]),
        ("eval(x)\n", ["1: eval"]),
        ("os.system('ls')\n", ["1: system"]),
        ("re.compile(x)\n", []),
        ("dist.all_gather_object(x, y)\n", ["1: all_gather_object pickles"]),
        ("text.format(x)\n", ["1: a format that is no literal"]),
        ("'{}'.format(x)\n", []),
        ("subprocess.Popen(x, shell=True)\n", ["1: a shell"]),
        ("subprocess.Popen(x, shell=flag)\n", ["1: a shell"]),
        ("subprocess.Popen(x)\n", []),
        ("torch.load(x)\n", ["1: torch.load without weights_only=True"]),
        ("torch.load(x, weights_only=True)\n", []),
        ("np.load(x)\n", ["1: np.load without allow_pickle=False"]),
        ("np.save(x, y, allow_pickle=True)\n", ["1: np.save without allow_pickle=False"]),
        ("np.load(x, allow_pickle=False)\n", []),
        ("yaml.safe_load(x)\n", ["1: yaml.safe_load may build objects"]),
        ("yaml.compose(x, Loader=L)\n", []),
        ("TextColumn('x')\n", ["1: markup in a column"]),
    ],
)
def test_the_check_finds_what_it_is_for(source, expected):
    """Each rule in one line, and what is allowed."""
    assert list(complaints(source)) == expected
