"""Journals: what they say again when they are read, whatever became of their end."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest

from eplb_cli.errors import OutputError, PlanError
from eplb_cli.output import journal
from eplb_cli.output.journal import Journal, WrittenLog, journals, read_written, write_written

NUM_NEW = 4


def say(path, name="0", digest="plan"):
    """A journal of two lines behind its first."""
    found = Journal(path, name, digest)
    found.add([1])
    found.add([3])
    found.close()
    return path / f"journal-{name}"


def test_what_was_said_is_read(tmp_path):
    """Places that are written, whichever journal says so, and no digest that could be believed."""
    Journal(tmp_path, "1", "plan").close()
    more = Journal(tmp_path, "2", "plan")
    more.add([0])
    more.close()
    say(tmp_path)
    assert read_written(journals(tmp_path), "plan", NUM_NEW).tolist() == [True, True, False, True]
    lines = [json.loads(line.partition(b" ")[2]) for line in say(tmp_path, "3").read_bytes().splitlines()]
    assert lines[1:] == [{"written": [1]}, {"written": [3]}]


def test_every_end(tmp_path):
    """Cut off anywhere, a journal says what its whole lines say; and nothing that is not so."""
    path = say(tmp_path)
    content = path.read_bytes()
    first, second = (i for i, byte in enumerate(content) if byte == 10 and i + 1 < len(content))
    for end in range(len(content)):
        path.write_bytes(content[:end])
        written = read_written([path], "plan", NUM_NEW)
        assert written.tolist() == [False, end >= second, False, end >= len(content) - 1], end
    assert first < second


@pytest.mark.parametrize("position", range(0, 200, 7))
def test_damage(tmp_path, position):
    """A byte that changed ends a journal before its line."""
    path = say(tmp_path)
    content = bytearray(path.read_bytes())
    position = min(position, len(content) - 2)
    line = content[:position].count(10)
    content[position] ^= 1
    path.write_bytes(content)
    written = read_written([path], "plan", NUM_NEW)
    assert written.tolist() == [False, line > 1, False, False]


def test_other_inputs_are_refused(tmp_path):
    """EP305 where any of the journals is about another plan."""
    paths = [say(tmp_path), say(tmp_path, "1", "another")]
    with pytest.raises(PlanError) as caught:
        read_written(paths, "plan", NUM_NEW)
    assert caught.value.code == "EP305"


def test_the_launcher_replaces_all_journals(tmp_path):
    """With one that says what they said; a part of one that was never finished does not count."""
    written = read_written([say(tmp_path), say(tmp_path, "1")], "plan", NUM_NEW)
    (tmp_path / "journal-launcher.partial").write_text("cut o")
    assert [path.name for path in journals(tmp_path)] == ["journal-0", "journal-1"]
    (tmp_path / "journal-launcher.partial").unlink()
    write_written(tmp_path, written, "plan")
    assert [path.name for path in journals(tmp_path)] == ["journal-launcher"]
    again = read_written(journals(tmp_path), "plan", NUM_NEW)
    assert again.tolist() == written.tolist() == [False, True, False, True]


def test_a_place_is_written_with_its_last_byte(tmp_path):
    """In pieces, from any thread, in any order; what has no bytes never is."""
    found = Journal(tmp_path, "0", "plan")
    log = WrittenLog(np.array([10, 10, 0, 10]), found)
    with log.kept(lambda: None):
        log.wrote(3, 4)
        log.wrote(1, 10)
        log.wrote(3, 5)
    found.close()
    assert read_written(journals(tmp_path), "plan", NUM_NEW).tolist() == [False, True, False, False]


def test_lines_are_added_as_time_goes_by(tmp_path, monkeypatch):
    """Each after the disk has what it says: at a flush, the places since the last one are not told yet."""
    monkeypatch.setattr(journal, "INTERVAL_S", 0.001)
    found = Journal(tmp_path, "0", "plan")
    log = WrittenLog(np.array([10, 10, 0, 10]), found)
    told_before_flush = []

    def told() -> list[bool]:
        return [bool(one) for one in read_written(journals(tmp_path), "plan", NUM_NEW)]

    def flush() -> None:
        told_before_flush.append(sum(told()))

    with log.kept(flush):
        for number, place in enumerate((0, 1, 3), start=1):
            log.wrote(place, 10)
            while sum(told()) < number:
                pass
    found.close()
    assert {0, 1, 2} <= set(told_before_flush)


def test_nothing_is_called_where_nothing_was_written(tmp_path, monkeypatch):
    """A run that stands still makes no calls of its journal: they would look like progress."""
    monkeypatch.setattr(journal, "INTERVAL_S", 0.001)
    found = Journal(tmp_path, "0", "plan")
    log = WrittenLog(np.array([10]), found)
    flushes = []
    with log.kept(lambda: flushes.append(1)):
        time.sleep(0.05)
    found.close()
    assert flushes == []
    assert (tmp_path / "journal-0").read_bytes().count(b"\n") == 1


def test_a_journal_that_cannot_be_written_ends_the_run(tmp_path, monkeypatch):
    """The error of the thread that keeps it comes out of the block."""
    monkeypatch.setattr(journal, "INTERVAL_S", 0.001)
    found = Journal(tmp_path, "0", "plan")
    log = WrittenLog(np.array([10]), found)
    log.wrote(0, 10)
    failed = threading.Event()

    def fail() -> None:
        failed.set()
        raise OutputError("EP604", "no")

    def work() -> None:
        with log.kept(fail):
            failed.wait()

    with pytest.raises(OutputError, match="no"):
        work()
    found.close()


def test_the_last_line_is_added_whatever_ends_the_block(tmp_path):
    """What was written since the line before is told, and nobody waits for the disk."""
    found = Journal(tmp_path, "0", "plan")
    log, flushes = WrittenLog(np.array([10, 10, 0, 10]), found), []

    def work() -> None:
        with log.kept(lambda: flushes.append(1)):
            log.wrote(1, 10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    found.close()
    assert read_written(journals(tmp_path), "plan", NUM_NEW).tolist() == [False, True, False, False]
    assert flushes == []
