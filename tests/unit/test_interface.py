"""The interface for programs: what `import eplb_cli` names, and that its examples are true."""

from __future__ import annotations

import ast
import doctest
import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import eplb_cli
from tests.cli.tree import placement, write_json
from tests.support.huggingface import MOE_LAYERS, deepseek_v3, write_checkpoint

DATA = Path(__file__).parents[1] / "data" / "eplb-replicas"
FUNCTIONS = [name for name in eplb_cli.__all__ if inspect.isfunction(getattr(eplb_cli, name))]


def test_the_names_are_in_order():
    """Sorted, each of them there, with a docstring, and in `dir`."""
    assert sorted(eplb_cli.__all__) == eplb_cli.__all__
    assert set(eplb_cli.__all__) <= set(dir(eplb_cli))
    for name in eplb_cli.__all__:
        assert getattr(eplb_cli, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'plans'"):
        _ = eplb_cli.plans


def test_what_programs_see_is_what_type_checkers_see():
    """The same names from the same modules."""
    tree = ast.parse(Path(eplb_cli.__file__).read_text())
    declared = {
        alias.name: f"{node.module}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and f"{node.module}".startswith("eplb_cli.")
        for alias in node.names
    }
    assert declared.keys() == set(eplb_cli.__all__)
    assert declared == {name: getattr(eplb_cli, name).__module__ for name in eplb_cli.__all__}


def test_the_interface_is_light():
    """Neither numpy by the import, nor torch or rich by any of the names."""
    code = (
        "import sys, eplb_cli; assert 'numpy' not in sys.modules; "
        "[getattr(eplb_cli, name) for name in eplb_cli.__all__]; "
        "assert not {'torch', 'rich', 'typer', 'plotly'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_options_are_keywords_with_defaults(name):
    """A program names what it wants to say, and leaves out the rest."""
    for parameter in inspect.signature(getattr(eplb_cli, name)).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            assert parameter.default is not inspect.Parameter.empty, parameter.name


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What the examples speak of: shards, placements, a resharded tree, and a Hugging Face checkpoint."""
    home = tmp_path_factory.mktemp("examples")
    shutil.copytree(DATA, home, dirs_exist_ok=True)
    request = eplb_cli.Request(
        home / "src", home / "dst", str(home / "new.json"), str(home / "old.json"), backend="file"
    )
    eplb_cli.reshard(request)
    write_checkpoint(home / "hf", deepseek_v3(), "deepseek_v3")
    write_json(home / "order.json", placement([[3, 2, 1, 0], [1, 0, 3, 2]], layer_ids=list(MOE_LAYERS)))
    eplb_cli.shard(home / "hf", home / "shards", home / "order.json", "huggingface")
    return home


@pytest.mark.parametrize("name", ["", *eplb_cli.__all__])
def test_examples(name, prepared, monkeypatch):
    """Every example in a docstring does what it shows; every function has one, and so has the package."""
    monkeypatch.chdir(prepared)
    thing = getattr(eplb_cli, name) if name else eplb_cli
    example = doctest.DocTestParser().get_doctest(
        inspect.getdoc(thing) or "", {"eplb_cli": eplb_cli, "Path": Path}, name, None, None
    )
    assert example.examples or name not in {"", *FUNCTIONS}
    shown: list[str] = []
    assert doctest.DocTestRunner().run(example, out=shown.append).failed == 0, "".join(shown)
