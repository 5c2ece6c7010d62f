"""Each case through the command line as a user types it, and what came of it beside what has to."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.support.oracle.cases import Case, Step
from tests.support.oracle.truth import Map, difference, read_tree, tree_under
from tests.support.tiny_buffers import tiny_buffers

Run = Callable[[list[str]], "Ended"]


class Ended(NamedTuple):
    """What a command left: its exit code, and all it said."""

    code: int
    said: str

    @property
    def error(self) -> str:
        """The code of the error that it printed; "" where there is none."""
        found = re.search(r'error\[(EP\d{3})\]|"code": "(EP\d{3})"', self.said)
        return (found[1] or found[2]) if found else ""


class WrongError(Exception):
    """A case that did not come out as the oracle says."""


def in_process(arguments: list[str]) -> Ended:
    """The command line without a process of its own: the entry of `eplb`, and nothing below it."""
    from eplb_cli.cli import entry

    vars(entry)["app"] = _parsed_once(vars(entry)["app"])
    before = sys.argv, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    said, code, descriptors = io.StringIO(), 0, _open_descriptors()
    sys.argv = ["eplb", *arguments]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), tiny_buffers():
            entry.main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before[0]
        signal.signal(signal.SIGINT, before[1])
        signal.signal(signal.SIGTERM, before[2])
    if _open_descriptors() != descriptors:
        raise WrongError(f"descriptors were left open by {shlex.join(arguments)}")
    return Ended(code, said.getvalue())


@functools.cache
def _parsed_once(app: Any) -> Any:
    """What typer makes of the application; making it takes longer than a case."""
    import typer

    return typer.main.get_command(app) if isinstance(app, typer.Typer) else app


def as_process(arguments: list[str]) -> Ended:
    """The command line as a process."""
    command = [sys.executable, "-m", "tests.support.tiny_buffers", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return Ended(ended.returncode, ended.stdout + ended.stderr)


def judge(case: Case, home: Path, backend: list[str], run: Run) -> None:
    """Take all steps of a case in an empty directory.

    Raises:
        WrongError: what came of a step is not what the oracle says; everything it was given is still there.
    """
    case.write(home / "src")
    (home / "own.toml").write_text(case.naming.toml)
    source, old, origins = home / "src", case.first, list(range(case.first.num_ranks))
    for number, step in enumerate(case.steps):
        destination = home / f"dst{number}"
        arguments = _arguments(step, home, number, source, destination)
        if number == 0 and case.saved_plan and not case.refusal:
            arguments = _by_saved_plan(arguments, home, run)
        arguments += [*backend, "--no-fsync"]
        with (home / "commands").open("a") as file:
            file.write(shlex.join(["eplb", *arguments]) + "\n")
        refusal = case.refusal if number == len(case.steps) - 1 else None
        if refusal is not None and case.damage is not None:
            case.damage(home, source, destination)
        before = _contents(source)
        ended = run(arguments)
        if _contents(source) != before:
            raise WrongError(f"step {number}: SRC was changed")
        if refusal is not None:
            _require_refusal(number, ended, refusal, home, destination)
            return
        origins = [origins[rank % old.num_ranks] for rank in range(step.new.num_ranks)]
        for others in case.model.others.values():
            others.update({key: tensor for key, tensor in step.settled.items() if key in others})
        _require_tree(case, number, step, origins, ended, destination)
        _require_verified(step, source, destination, run)
        source, old = destination, step.new


def _arguments(step: Step, home: Path, number: int, source: Path, destination: Path) -> list[str]:
    """The command line of a step; placements that are no named maps are written beside SRC."""
    arguments: list[object] = ["reshard", source, destination]
    for option, said in (("--old", step.old_said), ("--new", step.new_said)):
        if said is None:
            continue
        file = home / f"{number}-{option[2:]}.json"
        if not isinstance(said, str):
            file.write_text(json.dumps(said))
        arguments += [option, said if isinstance(said, str) else file]
    options = [home / "own.toml" if option == "own.toml" else option for option in step.options]
    return [str(argument) for argument in [*arguments, *options, "--copy"]]


def _by_saved_plan(arguments: list[str], home: Path, run: Run) -> list[str]:
    """What does the same in two commands: the first is run, the second left to do."""
    _, source, destination, _, old, _, new, *options = arguments
    ours, plans = [], ["plan", old, new, "--checkpoint", source, "--out", str(home / "plan.json")]
    while options:
        count = 1 if options[0] in ("--no-digest", "--no-verify", "--copy") else 2
        if count == 1 or options[0] in ("--buffer-size", "--threads"):
            ours += options[:count]
        else:
            plans += options[:count]
        del options[:count]
    if (ended := run(plans)).code:
        raise WrongError(f"{shlex.join(plans)}: {ended.said}")
    return ["reshard", source, destination, "--plan", str(home / "plan.json"), *ours]


def _contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


def _require_refusal(
    number: int, ended: Ended, refusal: tuple[int, str], home: Path, destination: Path
) -> None:
    if (ended.code, ended.error) != refusal:
        raise WrongError(f"step {number}: {refusal} is due, not {ended.code} {ended.error}\n{ended.said}")
    kept = [path.name for path in home.iterdir() if "staging" in path.name]
    if kept or (destination.exists() and refusal[1] != "EP601"):
        raise WrongError(f"step {number}: refused, and yet there is {kept or destination.name}")


def _require_tree(
    case: Case, number: int, step: Step, origins: list[int], ended: Ended, destination: Path
) -> None:
    if ended.code:
        raise WrongError(f"step {number}: refused with {ended.code}\n{ended.said}")
    expected = tree_under(case.model, step.new, origins)
    try:
        found = read_tree(destination, case.model.file, step.new.num_ranks)
    except (ValueError, KeyError, OSError) as error:
        raise WrongError(f"step {number}: DST cannot be read: {error!r}") from error
    if differs := difference(found, expected):
        raise WrongError(f"step {number}: {differs[:600]}")
    _require_manifest(json.loads((destination / "eplb.json").read_bytes()), step.recorded, number)
    known = r"eplb\.json|eplb-digests-rank-\d+\.npy|.*\.safetensors"
    rest = {name: data for name, data in _contents(destination).items() if not re.fullmatch(known, name)}
    if rest != case.carried or any(path.is_dir() for path in destination.iterdir()):
        raise WrongError(
            f"step {number}: beside the shards there is {sorted(rest)} instead of {sorted(case.carried)}"
        )


def _require_verified(step: Step, source: Path, destination: Path, run: Run) -> None:
    """`eplb verify` finds nothing, where the step is one that is looked at again."""
    if not step.verify or "--no-digest" in step.options:
        return
    ended = run(["verify", str(destination), "--against", str(source)])
    if ended.code:
        raise WrongError(f"verify {destination.name} --against {source.name}: {ended.code}\n{ended.said}")


def _require_manifest(manifest: dict[str, Any], new: Map, number: int) -> None:
    """Of eplb.json the placement."""
    said = manifest["placement"]
    slots = said.get(
        "slots_per_rank", [len(said["physical_to_logical_map"][0]) // said["num_ranks"]] * said["num_ranks"]
    )
    found = (slots, said["num_ranks"], said["num_logical_experts"], said["layer_ids"])
    due = (new.slots, new.num_ranks, new.experts, new.layers)
    if found != due or not np.array_equal(said["physical_to_logical_map"], new.table):
        raise WrongError(f"step {number}: eplb.json has the placement {said} instead of {new}")


def clear(home: Path) -> None:
    """An empty directory again."""
    for path in home.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
