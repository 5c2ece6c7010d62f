"""What a terminal, a pipe and a log get to see."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from tests.cli.tree import NEW, OLD, placement, stacked, write_json, write_tree

COMMAND = [sys.executable, "-m", "eplb_cli"]


@pytest.fixture
def wide(tmp_path):
    """OLD and NEW of 40 ranks."""
    rows = [[(slot + 5 * layer) % 80 for slot in range(80)] for layer in range(2)]
    return [write_json(tmp_path / f"{n}.json", placement(rows[n:] + rows[:n], 40)) for n in (0, 1)]


@pytest.mark.parametrize("columns", [80, 200])
def test_pages_fit(case, monkeypatch, wide, columns):
    """No line is wider than the terminal, and nothing is cut."""
    monkeypatch.setenv("COLUMNS", str(columns))
    pages = [
        case.reshard().out,
        case.eplb("plan", *wide).out,
        case.eplb("inspect", case.src).out,
        case.eplb("verify", case.dst).out,
    ]
    for page in pages:
        assert max(map(len, page.splitlines())) <= columns
        assert "…" not in page
        assert "\x1b" not in page
    name = "model.layers.{layer}.mlp.experts.w13_weight_scale_inv"
    lines = pages[2].splitlines()
    first = next(number for number, line in enumerate(lines) if "w13_weight_" in line)
    assert name in (lines[first].split()[0], lines[first].split()[0] + lines[first + 1].strip())


def on_a_terminal(arguments, **environment):
    """Stdout and stderr of a command on a terminal, and its exit code."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", **environment},
    ) as process:
        os.close(slave)
        seen = b""
        while True:
            try:
                block = os.read(master, 1 << 16)
            except OSError:
                break
            if not block:
                break
            seen += block
    os.close(master)
    return seen.decode(), process.returncode


def test_colours_on_a_terminal(case):
    """An error is red there, and NO_COLOR is heard."""
    bad = ["plan", case.home / "nothing.json", case.home / "new.json"]
    seen, code = on_a_terminal(bad)
    assert code == 3
    assert "\x1b[1;31merror[EP101]\x1b[0m" in seen
    seen, _ = on_a_terminal(bad, NO_COLOR="1")
    assert "error[EP101]" in seen
    assert "\x1b" not in seen


@pytest.mark.parametrize("line", [["--help"], ["reshard", "--help"], ["reshard"], ["pln"]])
def test_help_and_mistakes_are_text(line):
    """Without a colour, so that they can be read on any theme, and not fewer words than in a pipe."""
    seen, code = on_a_terminal(line)
    piped = subprocess.run([*COMMAND, *line], capture_output=True, text=True, check=False)
    assert "\x1b" not in seen
    assert (seen.split(), code) == ((piped.stdout + piped.stderr).split(), piped.returncode)


LEVELS = {0: 0.0, 95: 0.114435, 135: 0.242281, 175: 0.428690, 215: 0.679542, 255: 1.0}
"""Steps of the colour cube of 256 colours, and the light of each (sRGB, as WCAG 2.2 has it)."""


def light(colour):
    """Relative luminance of a colour of the cube, 16 to 231."""
    assert 16 <= colour <= 231, "a colour that a theme may change"
    steps = list(LEVELS.values())
    red, green, blue = ((colour - 16) // factor % 6 for factor in (36, 6, 1))
    return 0.2126 * steps[red] + 0.7152 * steps[green] + 0.0722 * steps[blue]


def test_numbers_can_be_read_on_any_theme(tmp_path):
    """On the map both ink and ground are of the fixed part of 256 colours, and far enough apart."""
    shifts = [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 6, 6, 7]
    sides = [
        write_json(tmp_path / f"{name}.json", placement([[(s + n) % 8 for s in range(8)] for n in by], 8))
        for name, by in (("old", [0] * len(shifts)), ("new", shifts))
    ]
    seen, code = on_a_terminal(["plan", *sides], TERM="xterm-256color", COLUMNS="120")
    assert code == 0
    numbers = re.findall(r"\x1b\[38;5;(\d+);48;5;(\d+)m *[\d.]+", seen)
    assert len(set(numbers)) == 7, "a step of the scale is missing"
    for ink, ground in numbers:
        lighter, darker = sorted((light(int(ink)), light(int(ground))), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5
    assert not re.findall(r"\x1b\[3[37]m|\x1b\[9[37]m", seen), "yellow or white, which a light theme hides"


def test_a_bar_on_a_terminal(case):
    """Progress is a bar; the page comes after it."""
    seen, code = on_a_terminal(case.arguments())
    assert code == 0
    assert "12 of 12 rows proved" in seen
    assert "Traceback" not in seen


def test_a_pipe_that_closes(wide):
    """`| head -1` gets its line; nobody gets a traceback."""
    command = " ".join([*COMMAND, "plan", "--full", "--format", "json", *map(str, wide)])
    script = f"for i in 1 2 3; do {command}; done | head -1"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert result.stdout == '{"format": "eplb-report/1",\n'
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr


@pytest.mark.parametrize("redirect", [">/dev/full", ">&-", "2>&-"])
def test_streams_that_cannot_be_written(tmp_path, redirect):
    """A full disk behind stdout is an error without a traceback; a closed stream is like /dev/null."""
    files = [write_json(tmp_path / name, content) for name, content in (("old", OLD), ("new", NEW))]
    command = " ".join([*COMMAND, "plan", "--format", "json", *map(str, files)])
    result = subprocess.run(
        ["bash", "-c", f"{command} {redirect}"], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in result.stderr + result.stdout
    assert result.returncode == (6 if "full" in redirect else 0)


def test_an_encoding_without_our_characters(case):
    """ASCII streams get ASCII."""
    write_tree(case.home / "ascii", stacked(OLD))
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    command = [*COMMAND, "inspect", str(case.home / "ascii")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "4 x 6" in result.stdout


def test_names_that_a_terminal_would_obey(case):
    """Control characters of file and tensor names are shown, not sent."""
    file = case.home / "evil\x1b[2J\nerror[EP999]: forged.json"
    result = case.eplb("plan", file, case.home / "new.json")
    assert "\x1b" not in result.err
    assert "\nerror[EP999]" not in result.err
    assert result.code == 3


def test_a_traceback_only_where_it_is_asked_for(case, monkeypatch):
    """EPLB_DEBUG=1 shows where an error came from, before the message."""
    monkeypatch.setenv("EPLB_DEBUG", "1")
    err = case.eplb("plan", "nothing.json", "nothing.json").err
    assert 0 <= err.find("Traceback") < err.find("error[EP101]")


@pytest.mark.parametrize("environment", [{"PYTHONUNBUFFERED": ""}, {"PYTHONUNBUFFERED": "1"}])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_goes_away(case, stream, environment):
    """`| head -1` ends quietly, the work is done, and the exit code is the one that it would have been."""
    reading, writing = os.pipe()
    os.close(reading)
    new = case.new({**NEW, "physical_to_logical_map": [[0, 1, 2, 3, 0, 9]] * 2})
    expected = [
        (["--help"], 0),
        (["plan", case.home / "old.json", case.home / "old.json", "--format", "json"], 0),
        (["validate", new], 1),
        (["plan", "x"], 2),
        (["plan", case.home / "old.json", new], 3),
        (case.arguments(old="linear"), 3),
        (case.arguments("--copy", new=case.home / "old.json"), 0),
        (case.arguments(), 6),
    ]  # fmt: skip
    try:
        for arguments, code in expected:
            result = subprocess.run(
                [*COMMAND, *map(str, arguments)],
                env={**os.environ, **environment},
                check=False,
                stdout=writing if stream == "stdout" else subprocess.PIPE,
                stderr=writing if stream == "stderr" else subprocess.PIPE,
            )
            assert result.returncode == code, (arguments, result)
            assert b"Broken pipe" not in (result.stdout or b"") + (result.stderr or b"")
    finally:
        os.close(writing)
    assert case.eplb("verify", case.dst).code == 0
