"""The light install: all but torch, and every command that needs no torch.

Here torch and plotly are hidden. `scripts/wheel` runs the same with what pip has made of the wheel and of
`configs/requirements-light.txt`: EPLB_LIGHT names its command.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from eplb_cli.cli.app import app
from eplb_cli.placements.dialects.registry import NAMES, dialect_called
from tests.cli.case import assert_error
from tests.cli.test_shard import REPLICAS, THREE_RANKS
from tests.cli.tree import NEW, OLD, Result, fingerprint, stacked, write_json, write_tree
from tests.support.huggingface import deepseek_v3, write_checkpoint

ROOT = Path(__file__).parents[2]
HIDDEN = """
import sys
sys.modules.update(dict.fromkeys(sys.argv.pop(1).split()))
from eplb_cli.cli import main
main()
"""
"""A package of which `sys.modules` has None is not there, whoever looks for it."""

SUFFIXES = {name: dialect_called(name).suffixes[0] for name in NAMES}
TAKES_FILE = "note: torch is not installed: --backend auto is one process from file to file\n"


def process(home: Path, command: list[str], line: str, **variables: str) -> Result:
    """Run a command line in which no word has a blank, in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EPLB_")}
    done = subprocess.run(
        [*command, *line.split()],
        cwd=home,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return Result(done.returncode, done.stdout, done.stderr)


def without(home: Path, names: str, line: str, *paths: Path) -> Result:
    """Run a line where some packages are missing, and what lies in `paths` is found first."""
    path = os.pathsep.join(map(str, [*paths, ROOT]))
    return process(home, [sys.executable, "-c", HIDDEN, names], line, PYTHONPATH=path)


@dataclass
class Light:
    """The command in a directory, without torch and plotly."""

    home: Path
    run: Callable[[str], Result]

    def do(self, line: str) -> Result:
        """A line that has to succeed, without a word of torch but where `auto` had to choose."""
        result = self.run(line)
        assert result.code == 0, f"{line}: {result.err}"
        assert "torch" not in result.err.replace(TAKES_FILE, ""), line
        return result

    def refuse(self, line: str, *says: str) -> None:
        """A line that has to end with EP002, and leaves nothing behind."""
        before = fingerprint(self.home)
        assert_missing(self.run(line), *says)
        assert fingerprint(self.home) == before


def assert_missing(result: Result, *says: str) -> None:
    """EP002 and nothing else."""
    assert_error(result, "EP002", *says, exit_code=2)
    assert result.out == ""


@pytest.fixture
def home(tmp_path):
    """A checkpoint, shards, placements, and a map as `torch.save` begins it."""
    write_tree(tmp_path / "src", stacked(OLD))
    write_json(tmp_path / "old.json", OLD)
    write_json(tmp_path / "new.json", NEW)
    write_checkpoint(tmp_path / "hf", deepseek_v3(), "deepseek_v3")
    write_json(tmp_path / "replicas.json", REPLICAS)
    write_json(tmp_path / "three.json", THREE_RANKS)
    once = [[0, 1, 2, 3] for _ in REPLICAS["layer_ids"]]
    write_json(tmp_path / "once.json", {**REPLICAS, "physical_to_logical_map": once})
    write_json(tmp_path / "load.json", [[1, 2, 3, 4], [4, 3, 2, 1]])
    (tmp_path / "map.yaml").write_text("initial_global_assignments: {3: [0, 1, 2, 3, 0, 1]}\nnum_slots: 6\n")
    (tmp_path / "map.pt").write_bytes(saved())
    return tmp_path


@pytest.fixture
def light(home, eplb, monkeypatch) -> Light:
    """What is installed where EPLB_LIGHT says, or this process without some of its packages."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    if "EPLB_LIGHT" in os.environ:
        return Light(home, lambda line: process(home, [os.environ["EPLB_LIGHT"]], line))
    for name in ("torch", "plotly"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.chdir(home)
    return Light(home, lambda line: eplb(*line.split()))


def saved() -> bytes:
    """What begins as a file of torch does; only torch can say whether it is one."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02]q\x00.")
    return stream.getvalue()


LINES = [
    "validate old.json new.json --against old.json --checkpoint src",
    "validate new.json --format github",
    "validate . --num-ranks 2 --num-logical-experts 4 --ignore EP1 --format sarif",
    "validate once.json --engine sglang --model hf/config.json --format junit",
    "validate new.json --against old.json --expert-bytes 1MB --max-moved-bytes 1GB --strict --select EP127",
    "explain EP106",
    "explain --format json",
    "validate new.json --load load.json --max-imbalance 2",
    "validate map.yaml --num-ranks 2",
    "plan old.json new.json --checkpoint src --load load.json --out plan.json",
    "plan linear round_robin --num-ranks 4 --old-num-ranks 4 --model deepseek-v3 --format json",
    *(f"convert once.json {name}{suffix} --to {name} --checkpoint hf" for name, suffix in SUFFIXES.items()),
    "reshard src dst --old old.json --new new.json --dry-run",
    "reshard src dst --old old.json --new new.json",
    "reshard src by-plan --plan plan.json --backend file --resume",
    "verify dst --against src",
    "inspect dst --deep",
    "inspect --models",
    "inspect load.json",
    "balance load.json --num-ranks 2 --out balanced.json",
    "shard hf shards --placement replicas.json --engine sglang",
    "reshard shards three --new three.json --backend file",
    "inspect three --identify hf --out found.json",
    "verify three --against hf",
    "merge three merged",
    "bake hf baked --placement once.json",
]


def test_every_command_that_needs_no_torch(light):
    """From validate to bake, one after the other, on what the one before has made."""
    assert {line.split()[0] for line in LINES} == {command.name for command in app.registered_commands}
    for line in LINES:
        light.do(line)
    placed = json.loads((light.home / "dst" / "eplb.json").read_text())
    assert placed["placement"]["physical_to_logical_map"] == NEW["physical_to_logical_map"]


@pytest.mark.parametrize("how", ["", "--backend auto", "--nproc-per-node 1", "--format json"])
def test_auto_takes_file_and_says_so(light, how):
    """One line on stderr, before anything else; the report says file."""
    result = light.do(f"reshard src dst --old old.json --new new.json {how}")
    assert result.err.startswith(TAKES_FILE)
    assert result.err.count("torch") == 1
    assert "with file" in result.out or result.json["backend"] == "file"


def test_a_backend_that_was_asked_for_is_not_replaced(light):
    """EP002 says what to install, and what works without."""
    line = "reshard src dst --old old.json --new new.json"
    for how in ("--backend gloo", "--backend nccl --nproc-per-node 1", "--nproc-per-node 2"):
        for dry in ("", " --dry-run"):
            said = (" ".join(how.split()[:2]), "pip install torch", "--backend file")
            light.refuse(f"{line} {how}{dry}", *said)


@pytest.mark.parametrize(
    "line",
    [
        "validate map.pt",
        "validate new.json --against map.pt",
        "plan map.pt new.json",
        "plan old.json map.pt",
        "convert map.pt out.json --to eplb",
        "inspect map.pt",
        "reshard src dst --old old.json --new map.pt --backend file",
        "reshard src dst --old map.pt --new new.json --backend file",
        "shard hf dst --placement map.pt --num-ranks 2 --engine sglang",
        "bake hf dst --placement map.pt --num-ranks 2",
    ],
)
def test_files_of_torch(light, line):
    """EP002 wherever a .pt file is read, and not a finding about it."""
    light.refuse(line, "a .pt file needs torch", "pip install torch", ".npy or JSON")


def test_files_that_are_none_of_torch(light):
    """What is no such file is refused for that, as with torch."""
    (light.home / "map.pt").write_text("{}")
    assert_error(light.run("plan map.pt new.json"), "EP102", "not a file that torch.save wrote")


def test_the_page(light):
    """EP002 where plotly is missing: by the name that can be installed."""
    light.refuse("plan old.json new.json --html page.html", "--html needs plotly", "pip install '.[html]'")


def test_yaml(home):
    """EP002 names what pip calls it; JSON is read all the same."""
    result = without(home, "yaml", "validate map.yaml --num-ranks 2")
    assert_missing(result, "a YAML file needs yaml", "pip install pyyaml")
    assert without(home, "yaml", "validate new.json").code == 0


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("numpy", "plan old.json new.json"),
        ("rich", "inspect src"),
        ("safetensors", LINES[-1]),
        ("typer", "--help"),
        ("xxhash", LINES[-1]),
    ],
)
def test_no_package_is_a_bug_in_eplb(home, name, line):
    """Whatever else `--no-deps` has left out: EP002 where it is needed."""
    says = (f"needs {name}, which is not installed", f"pip install {name}")
    assert_missing(without(home, name, line), *says)


def test_packages_that_are_damaged(home):
    """EP002 with what their import says: a library that is not there, or half of a package."""
    for name, content in (
        ("torch", "raise OSError('libcudart.so: no such file')"),
        ("rich", "from math import no_such_name"),
    ):
        package = home / "path" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(content)
    assert_missing(
        without(home, "", "plan map.pt new.json", home / "path"), "torch", "imported: libcudart.so"
    )
    assert_missing(without(home, "", "inspect --models", home / "path"), "cannot be imported", "no_such_name")
