"""Nothing is unpickled, and nothing from a file becomes code, a command or a format."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import eplb_cli

PACKAGE = Path(eplb_cli.__file__).parent
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


READING_CALLS = {"loads", "raw_decode", "read_array", "read_text", "read_bytes", "fromfile", "memmap", "open"}
READING_MODULES = {"json.load", "np.load", "numpy.load", "torch.load", "tomllib.load"}
OUR_OWN_FILES = {
    "run/job.py": "the job and the outcomes, which the same run wrote; its file of progress",
    "output/journal.py": "journals, which the user's own run wrote, with a checksum for each line",
    "exchange/agree.py": "what another worker of the job told",
    "run/launch.py": "the log of torchrun",
    "run/torchrun.py": "how each worker ended, which torchrun's own process of the same run wrote",
    "cli/entry.py": "/dev/null, in place of a closed stream",
    "machine.py": "/proc, and the control group",
    "hosts/words.py": "what another host said, of a limited size and checked",
    "hosts/addresses.py": "/proc",
    "live/board.py": "shared memory of the ranks of a group on one host",
}
"""Modules that read by themselves, and what."""


def reading_calls(source: str) -> list[str]:
    """Calls that parse or read a whole file, but for those of `formats` and of `files`."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    named = [(call.lineno, ast.unparse(call.func)) for call in calls]
    return [f"{line}: {path}" for line, path in named if _reads(path)]


def _reads(path: str) -> bool:
    owner, _, name = path.rpartition(".")
    is_ours = name == "read_bytes" and not owner
    by_name = name in READING_CALLS and not is_ours
    return by_name or path in READING_MODULES or owner in {"yaml", "tomllib"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_files_from_elsewhere_are_read_by_formats(path):
    """Nobody else parses JSON, TOML, YAML or arrays, or reads a file past the limit on its bytes."""
    name = str(path.relative_to(PACKAGE))
    if name.startswith("formats/") or name in OUR_OWN_FILES:
        return
    assert reading_calls(path.read_text()) == []


def test_each_exception_is_one():
    """What is named as reading its own files does so."""
    assert all(reading_calls((PACKAGE / name).read_text()) for name in OUR_OWN_FILES)


@pytest.mark.parametrize(
    "source",
    [
        "json.loads(x)",
        "tomllib.load(x)",
        "np.load(x, allow_pickle=False)",
        "yaml.compose(x)",
        "np.lib.format.read_array(x)",
        "path.read_text()",
        "Path(x).read_bytes()",
        "torch.load(x)",
    ],
)
def test_the_check_finds_calls_that_read(source):
    """Each of them in one line; `read_json` of ours is none."""
    assert len(reading_calls(source)) == 1
    assert reading_calls("read_json(x, 1, fault)") == []
