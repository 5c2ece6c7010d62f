"""Messages, findings, progress and the words they are made of; pages are in `test_render_pages.py`."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from eplb_cli import render
from eplb_cli.errors import PlacementError
from eplb_cli.placements.findings import Finding
from eplb_cli.progress import before_bytes
from eplb_cli.render import progress
from eplb_cli.render.text import (
    format_bytes,
    format_rate,
    format_runs,
    format_seconds,
    format_share,
    printable,
    write,
)
from eplb_cli.report.findings import FindingsReport

ERROR = Finding("EP105", "error", "layer 3, slot 1: expert 9", "experts go up to 7", "maps/b.json", 12)
WARNING = Finding("EP111", "warning", "8 experts are a guess", file="maps/b.json")
BETWEEN = Finding("EP109", "error", "OLD has 8 logical experts, NEW has 9")


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self):
        return True


def stderr_as_terminal(monkeypatch):
    """Replaced inside a test, because pytest replaces stderr before each."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (None, "unknown"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_345, "12.3 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (21_900_000_000, "21.9 GB"),
        (1_500_000_000_000, "1.50 TB"),
    ],
)
def test_bytes_have_decimal_units_and_three_digits(nbytes, text):
    """No number is ever rounded up to `1000 kB`."""
    assert format_bytes(nbytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.123, "0.12 s"), (12.34, "12.3 s"), (200, "3 min 20 s"), (3599.7, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_seconds_are_read_as_a_person_says_them(seconds, text):
    """Fractions matter only below a minute."""
    assert format_seconds(seconds) == text


def test_a_rate_needs_time():
    """A stage that took no measurable time has no rate, instead of an infinite one."""
    assert format_rate(3_000_000_000, 2) == "1.50 GB/s"
    assert format_rate(3_000_000_000, 0) == ""


def test_a_share_is_nothing_or_everything_only_if_it_is():
    """One row of a million is not 0%, and all but one are not 100%."""
    shares = [format_share(part, 1_000_000) for part in (0, 1, 430_000, 999_999, 1_000_000)]
    assert shares == ["0%", "<1%", "43%", ">99%", "100%"]


def test_runs_of_numbers_are_named_by_their_ends():
    """A model with 58 MoE layers has them on one line."""
    assert format_runs([0, 3, 4, 5, 9, 10]) == "0, 3-5, 9-10"
    assert format_runs([]) == ""


def test_untrusted_text_cannot_reach_the_terminal_as_a_command():
    """Escapes, line ends, direction marks and undecodable bytes are shown, not obeyed."""
    assert printable("a\x1b[31m\r\n\u202e\udc80é") == r"a\x1b[31m\r\n\u202e\udc80é"


def test_a_stream_without_utf8_gets_ascii():
    """Our own characters have a twin in ASCII, those of others become escapes."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    write(stream, "── 2 × 3 … é\n")
    assert stream.buffer.getvalue() == b"-- 2 x 3 ... \\xe9\n"


def test_a_closed_pipe_is_for_the_command_line_to_handle():
    """`eplb plan ... | head` must not lose the error inside a renderer."""
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(BrokenPipeError), io.FileIO(writing, "w") as raw:
        write(io.TextIOWrapper(raw), "text")


def test_an_error_has_a_code_and_a_hint(capsys):
    """The form is the one in the design, on stderr."""
    render.print_error(PlacementError("EP106", "layer 17, slot 203: expert 41 is in NEW", "was OLD written?"))
    out, err = capsys.readouterr()
    assert err == "error[EP106]: layer 17, slot 203: expert 41 is in NEW\n  hint: was OLD written?\n"
    assert out == ""


def test_further_lines_of_a_message_are_barred(capsys):
    """A name with a line end in it cannot pose as a message of its own."""
    render.print_error(PlacementError("EP101", "x\nerror[EP999]: forged"))
    assert capsys.readouterr().err.startswith("error[EP101]: x\n  | error[EP999]: forged\n  hint: ")


def test_a_warning_is_a_finding_or_words(capsys):
    """A finding says where it was found."""
    render.print_warning(ERROR)
    render.print_warning("slow disk")
    assert capsys.readouterr().err == (
        "error[EP105]: maps/b.json:12: layer 3, slot 1: expert 9\n  hint: experts go up to 7\n"
        "warning: slow disk\n"
    )


def test_severity_is_coloured_on_a_terminal(monkeypatch):
    """`NO_COLOR` takes the colour away."""
    terminal = stderr_as_terminal(monkeypatch)
    render.print_warning("slow disk")
    monkeypatch.setenv("NO_COLOR", "1")
    render.print_warning("slow disk")
    assert terminal.getvalue() == "\x1b[1;35mwarning\x1b[0m: slow disk\nwarning: slow disk\n"


def test_a_grave_warning_is_as_red_as_an_error(monkeypatch):
    """What an engine would answer nonsense from is no remark."""
    terminal = stderr_as_terminal(monkeypatch)
    render.print_warning("misread", is_grave=True)
    assert terminal.getvalue() == "\x1b[1;31mwarning\x1b[0m: misread\n"


def test_json_has_a_line_per_element(capsys):
    """Readable and comparable line by line, however many ranks there are."""
    obj = {"format": "x/1", "traffic": [[0, 1, 8, 1], [1, 0, 8, 1]], "ranks": [], "seconds": {"total": 1.5}}
    render.print_json(obj)
    out = capsys.readouterr().out
    assert json.loads(out) == obj
    assert out == (
        '{"format": "x/1",\n'
        ' "traffic": [\n'
        "  [0, 1, 8, 1],\n"
        "  [1, 0, 8, 1]],\n"
        ' "ranks": [],\n'
        ' "seconds": {"total": 1.5}}\n'
    )


def test_findings_are_grouped_by_file(capsys):
    """A clean file has one line, and what concerns no single file comes last."""
    render.print_findings(FindingsReport([WARNING, BETWEEN, ERROR], ["maps/a.json", "maps/b.json"]), "text")
    assert capsys.readouterr().out == (
        "maps/a.json: OK\n"
        "maps/b.json:\n"
        "  warning[EP111]: 8 experts are a guess\n"
        "  error[EP105]: line 12: layer 3, slot 1: expert 9\n"
        "    hint: experts go up to 7\n"
        "all files together:\n"
        "  error[EP109]: OLD has 8 logical experts, NEW has 9\n"
        "2 files checked: 2 errors, 1 warning\n"
    )


def test_people_get_twenty_findings_of_a_kind(capsys):
    """And how many more there are; the sum counts all of them. Errors and warnings are two kinds."""
    many = [Finding("EP103", "error", str(number), file="p") for number in range(23)]
    few = [Finding("EP103", "warning", "x", file="p"), Finding("EP110", "error", "y", file="p")]
    render.print_findings(FindingsReport([*many, *few], ["p"]), "text")
    assert capsys.readouterr().out.splitlines() == [
        "p:",
        *(f"  error[EP103]: {number}" for number in range(20)),
        "  error[EP103]: and 3 more; `--format json` has all",
        "  warning[EP103]: x",
        "  error[EP110]: y",
        "1 file checked: 24 errors, 1 warning",
    ]


def test_findings_as_json(capsys):
    """Every finding has every key."""
    render.print_findings(FindingsReport([ERROR], ["maps/b.json"]), "json")
    assert json.loads(capsys.readouterr().out) == {
        "format": "eplb-findings/1",
        "files": ["maps/b.json"],
        "skipped": [],
        "num_ignored": 0,
        "findings": [
            {
                "code": "EP105",
                "severity": "error",
                "message": "layer 3, slot 1: expert 9",
                "hint": "experts go up to 7",
                "file": "maps/b.json",
                "line": 12,
                "layer": None,
                "slot": None,
                "rank": None,
                "column": None,
            }
        ],
    }


def test_findings_as_annotations(capsys):
    """Errors come first; stdout has nothing but commands."""
    render.print_findings(FindingsReport([WARNING, ERROR], ["maps/b.json"]), "github")
    out, err = capsys.readouterr()
    assert out == (
        "::error file=maps/b.json,line=12,title=EP105::"
        "layer 3, slot 1: expert 9%0Ahint: experts go up to 7\n"
        "::warning file=maps/b.json,title=EP111::8 experts are a guess\n"
    )
    assert err == "1 file checked: 1 error, 1 warning\n"


def test_annotations_escape_what_github_would_read_as_its_own(capsys):
    """A file name cannot end its property, nor a message its command."""
    report = FindingsReport([Finding("EP101", "error", "100%: a\r\n::stop", file="a,b:c%.json")], [])
    render.print_findings(report, "github")
    assert capsys.readouterr().out == ("::error file=a%2Cb%3Ac%25.json,title=EP101::100%25: a%0D%0A::stop\n")


def test_at_most_nine_annotations_and_the_number_of_the_others(capsys):
    """GitHub shows ten, so the tenth says what is missing."""
    render.print_findings(FindingsReport([WARNING] * 5 + [ERROR] * 8, ["maps/b.json"]), "github")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["::error"] * 8 + ["::warning"] * 2
    assert lines[-1].startswith("::warning title=eplb::4 more: ")


def test_progress_without_a_terminal_is_quiet(capsys, monkeypatch):
    """One line each ten seconds at most, and a last one."""
    clock = iter([0.0, 4.0, 11.0, 12.0, 19.0, 20.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with render.Progress(2_000_000_000, "moving experts") as bar:
        for done_bytes in (400_000_000, 1_100_000_000, 1_200_000_000, 2_000_000_000):
            bar.update(done_bytes)
    assert capsys.readouterr().err == (
        "moving experts: 1.10 GB of 2.00 GB, 100 MB/s, 9.00 s left\n"
        "moving experts: 2.00 GB, 100 MB/s, 20.0 s\n"
    )


def test_what_comes_before_the_first_byte_is_said(capsys, monkeypatch):
    """And its time is none of the bytes'."""
    clock = iter([0.0, 30.0, 60.0, 70.0, 80.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with render.Progress(2_000_000_000, "gloo") as bar:
        before = before_bytes.set("starting workers")
        for done_bytes in (0, 0, 1_000_000_000):
            bar.update(done_bytes)
        before_bytes.reset(before)
    assert capsys.readouterr().err == (
        "gloo: starting workers\n"
        "gloo: starting workers\n"
        "gloo: 1.00 GB of 2.00 GB, 100 MB/s, 10.0 s left\n"
        "gloo: 1.00 GB of 2.00 GB, 50.0 MB/s, 20.0 s\n"
    )


def test_progress_that_ends_early_says_how_far_it_came(capsys):
    """An error passes through, and the last line stays true."""

    def work() -> None:
        with render.Progress(2000, "moving experts") as progress:
            progress.update(500)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert capsys.readouterr().err.startswith("moving experts: 500 B of 2.00 kB, ")


def test_an_error_before_the_first_byte_speaks_for_itself(capsys):
    """No line of progress stands before it."""
    with pytest.raises(ZeroDivisionError), render.Progress(2000, "moving experts"):
        raise ZeroDivisionError
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_is_a_bar_that_leaves_stdout_alone(capsys, monkeypatch):
    """The result may be piped while the bar is on the screen."""
    terminal = stderr_as_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    with render.Progress(2000, "moving [b]experts[/b]") as bar:
        bar.update(1000)
        sys.stdout.write("result\n")
    assert capsys.readouterr().out == "result\n"
    assert "moving [b]experts[/b]" in terminal.getvalue()
    assert "━" in terminal.getvalue()


def test_rich_is_imported_only_for_pages():
    """JSON, errors, warnings, annotations and quiet progress start without it."""
    code = """
import sys
from types import SimpleNamespace
from eplb_cli import render
from eplb_cli.errors import EplbError
from eplb_cli.report.findings import FindingsReport
render.print_json({"a": 1})
render.print_error(EplbError("EP101", "x"))
render.print_warning("x")
for form in ("text", "json", "github", "sarif", "junit"):
    render.print_findings(FindingsReport([], ["a"]), form)
with render.Progress(1, "x"):
    pass
sys.exit("rich" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
