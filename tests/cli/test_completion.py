"""What a shell is offered: by the protocols of bash, zsh and fish, and in a real bash."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eplb_cli.checkpoint.layouts import LAYOUTS
from eplb_cli.cli import entry
from eplb_cli.cli.app import SUMMARIES, made
from eplb_cli.cli.command import choices_of
from eplb_cli.errors import CODES
from eplb_cli.huggingface.engines import engine_names
from eplb_cli.models.presets import PRESETS
from eplb_cli.placements.choice import NAMED_MAPS
from eplb_cli.placements.dialects.registry import NAMES

PROTOCOLS = {
    "bash": lambda line: {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)},
    "zsh": lambda line: {"_TYPER_COMPLETE_ARGS": line},
    "fish": lambda line: {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
}
EPLB = Path(sys.executable).with_name("eplb")
ROOT = Path(__file__).parents[2]

LOADED = """
import json, sys
sys.argv, before = ["eplb"], {*sys.modules}  # what measures coverage has imported something already
from eplb_cli.cli import main
try:
    main()
except SystemExit:
    pass
packages = {"torch", "numpy", "rich", "scipy", "safetensors", "xxhash", "yaml", "tomllib", "asyncio"}
print(json.dumps(sorted(packages & sys.modules.keys() - before)))
"""


@pytest.fixture
def offered(monkeypatch, capsys, tmp_path):
    """What a shell is offered for the last word of a line, in a directory of its own."""
    monkeypatch.chdir(tmp_path)

    def ask(line: str, shell: str = "bash") -> list[str]:
        monkeypatch.setattr(sys, "argv", ["eplb"])
        for name, value in {"_EPLB_COMPLETE": f"complete_{shell}", **PROTOCOLS[shell](line)}.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            entry.main()
        assert not end.value.code
        captured = capsys.readouterr()
        assert captured.err == ""
        words: list[str] = captured.out.split()
        return words

    return ask


def begun(names, word: str) -> list[str]:
    """Those that begin so."""
    return [name for name in names if name.startswith(word)]


VALUES = [
    ("eplb ", SUMMARIES),
    ("eplb re", ["reshard"]),
    ("eplb plan --rel", ["--relabel"]),
    ("eplb plan --relabel ", ["none", "rows", "ranks"]),
    ("eplb plan a b --model deepseek-v3", begun(PRESETS.names, "deepseek-v3")),
    ("eplb inspect --layout ", ["auto", *LAYOUTS.names]),
    ("eplb shard hf dst --layout per", ["per-row"]),
    ("eplb shard hf dst --engine ", engine_names()),
    ("eplb reshard src dst --backend ", ["auto", "nccl", "gloo", "file"]),
    ("eplb convert a b --to ", NAMES),
    ("eplb convert a b --from s", ["sglang"]),
    ("eplb plan a b --old-from v", ["vllm"]),
    ("eplb balance load --to de", ["deepseek"]),
    ("eplb plan ", NAMED_MAPS),
    ("eplb plan linear r", ["round_robin"]),
    ("eplb convert t", ["trivial"]),
    ("eplb reshard src dst --old l", ["linear"]),
    ("eplb reshard src dst --new ", NAMED_MAPS),
    ("eplb shard hf dst --placement l", ["linear"]),
    ("eplb balance --repair l", ["linear"]),
    ("eplb validate --format g", ["github"]),
    ("eplb explain EP10", begun(CODES, "EP10")),
    ("eplb validate --select EP106,EP10", [f"EP106,{code}" for code in begun(CODES, "EP10")]),
    ("eplb validate new.json --against l", ["linear"]),
    ("eplb verify ", []),
]


@pytest.mark.parametrize(("line", "names"), VALUES)
def test_values(offered, line, names):
    """Commands, options and whatever an option takes that has a name; files are left to the shell."""
    assert offered(line) == [*names]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells(offered, shell):
    """The same words, in their own form: with what each of them is."""
    out = " ".join(offered("eplb plan a b --model olmoe", shell))
    assert begun(PRESETS.names, "olmoe")[0] in out
    commands = " ".join(offered("eplb ", shell))
    for name, summary in SUMMARIES.items():
        assert name in commands
        assert summary[:20].replace("'", "''" if shell == "zsh" else "'") in commands


@pytest.mark.parametrize("shell", PROTOCOLS)
def test_the_script_of_a_shell(eplb, monkeypatch, capsys, shell):
    """For whoever packs eplb: a script without asking which shell it is."""
    monkeypatch.setenv("_EPLB_COMPLETE", f"source_{shell}")
    out = eplb().out
    assert f"_EPLB_COMPLETE=complete_{shell}" in out


def test_files_beside_names(offered, tmp_path):
    """What a map, a preset or a layout may be too; no name that zsh would take for a command."""
    for name in ("load.npy", "linear.json", "li`touch x`", "li$(x)", "li nk", "other"):
        (tmp_path / name).touch()
    (tmp_path / "lib").mkdir()
    assert offered("eplb plan li") == ["linear", "lib/", "linear.json"]
    assert offered("eplb plan lo") == []
    assert offered("eplb plan lib/") == []


@pytest.mark.parametrize("word", ["*", "[", "../", "/", "$(x)"])
def test_words_that_begin_no_name(offered, word, tmp_path):
    """Nothing is offered, and nothing happens."""
    assert offered(f"eplb plan --model {word}") == []
    assert list(tmp_path.iterdir()) == []


def test_every_choice_is_offered(offered):
    """Also of options that come later: whatever has choices in its help."""
    for name in SUMMARIES:
        for option in made(name).options():
            if words := choices_of(option):
                assert offered(f"eplb {name} {option.opts[0]} ") == words


@pytest.mark.parametrize("line", [line for line, _ in VALUES])
def test_it_is_quick(tmp_path, line):
    """Nothing is imported that has numbers or draws tables, whatever is completed."""
    environment = {"_EPLB_COMPLETE": "complete_bash", **PROTOCOLS["bash"](line), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.fixture
def bash(tmp_path):
    """Run lines in a bash that knows where eplb is, and has nothing else of anybody's."""
    if (shell := shutil.which("bash")) is None:
        pytest.skip("there is no bash")

    def run(script: str) -> str:
        path = os.pathsep.join([str(EPLB.parent), os.environ["PATH"]])
        environment = {"HOME": str(tmp_path), "PATH": path, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [shell, "--norc", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout

    return run


COMPLETE = """
complete -p eplb
words=({words})
COMP_WORDS=("${{words[@]}}") COMP_CWORD=$((${{#words[@]}} - 1))
_eplb_completion eplb "${{words[-1]}}" "${{words[-2]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["eplb", "plan", "--model", "deepseek-v3"], begun(PRESETS.names, "deepseek-v3")),
        (["eplb", "convert", "'a b'", "c", "--to", ""], NAMES),
        (["eplb", "re"], ["reshard"]),
    ],
)
def test_in_a_real_bash(bash, words, names):
    """The script that --show-completion prints, and what its function finds."""
    script = COMPLETE.format(words=shlex.join(words))
    out = bash(f'eval "$(_EPLB_COMPLETE=source_bash eplb)"\n{script}').splitlines()
    assert out == ["complete -o default -F _eplb_completion eplb", *names]


def test_installed_in_a_real_bash(bash, tmp_path):
    """--install-completion finds the shell that it was called from; the next one completes."""
    (tmp_path / ".bashrc").write_text("# mine\n")
    assert "bash completion installed in" in bash("eplb --install-completion; true")
    assert (tmp_path / ".bashrc").read_text().startswith("# mine\n")
    script = COMPLETE.format(words="eplb reshard --senders v")
    assert bash(f"source ~/.bashrc\n{script}").splitlines()[1:] == ["vllm"]
    assert "complete_bash" in bash("eplb --show-completion; true")
