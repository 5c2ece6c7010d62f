"""The command line: every error is one message and one exit code."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import traceback
from itertools import pairwise, takewhile
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from eplb_cli import render
from eplb_cli.cli.app import app
from eplb_cli.cli.command import VARIABLE_PREFIX, format_of_file
from eplb_cli.cli.mistakes import Mistake, say_what_was_meant
from eplb_cli.errors import EXIT_INTERRUPTED, EXIT_USAGE, EplbError, UsageError, WorkerError
from eplb_cli.interrupts import handled, interrupts
from eplb_cli.progress import NOTHING_WRITTEN, come_of_it, command


class _Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP."""


class _Handler:
    """Ends the work at the first signal; later ones must not cut the cleaning up short, and only count."""

    def __init__(self) -> None:
        self._has_raised = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        del frame
        interrupts.count()
        if not self._has_raised:
            self._has_raised = True
            raise _Interrupted(number)


def _handle_signals() -> None:
    interrupts.begin()
    handler = _Handler()
    for number in handled():
        signal.signal(number, handler)


def main() -> None:
    """Run the command line; every error is one message and one exit code."""
    _handle_signals()
    command.set(sys.argv[1:])
    _outlive_readers()
    _replace_closed_streams()
    come_of_it.set(NOTHING_WRITTEN)
    format_of_file.set("")
    try:
        sys.exit(app(prog_name="eplb", standalone_mode=False) or 0)
    except Mistake as error:
        _correct(error)
    except EplbError as error:
        _fail(error)
    except _Interrupted:
        for number in handled():  # Python itself would let another one kill it while it ends
            signal.signal(number, signal.SIG_IGN)
        render.print_interrupted(come_of_it.get())
        sys.exit(EXIT_INTERRUPTED)
    except MemoryError:
        _fail(WorkerError("EP401", "memory is short", "a smaller --buffer-size needs less"))
    except OSError as error:  # stdout itself, or a file of the run that no one else speaks for
        from eplb_cli.files import output_error

        _fail(output_error(error, error.filename or "stdout"))
    except Exception as error:  # noqa: BLE001 - the last resort: even a bug in eplb has a code and no traceback
        _fail(_unexpected(error))


def _unexpected(error: Exception) -> EplbError:
    """A package that is missing where nobody asked for it, or a bug in eplb."""
    if isinstance(error, ImportError) and (error.name or __package__).partition(".")[0] != "eplb_cli":
        from eplb_cli.machine import not_imported

        return not_imported(error, str(error.name), "eplb")
    problem = f"unexpected {type(error).__name__}: {error}"
    return WorkerError("EP401", problem, "this is a bug in eplb, please report it; EPLB_DEBUG=1 shows where")


def _wants_json() -> bool:
    """Whether stdout is for a program: told from the words themselves, whatever else is wrong with them."""
    words = takewhile(lambda word: word != "--", sys.argv[1:])
    said = os.environ.get(f"{VARIABLE_PREFIX}FORMAT") or format_of_file.get()
    for word, after in pairwise([*words, ""]):
        option, equals, value = word.partition("=")
        if option == "--format":
            said = value if equals else after
    return said == "json"


def _correct(error: Any) -> NoReturn:  # noqa: ANN401 - an exception of click's
    """End with what click says of a call that it does not understand."""
    say_what_was_meant(error)
    if _wants_json():
        _fail(UsageError("EP001", error.format_message(), error.ctx.get_usage() if error.ctx else ""))
    error.show()
    sys.exit(EXIT_USAGE)


def _replace_closed_streams() -> None:
    """What a caller closed (`>&-`) takes everything and keeps nothing."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - open until the end


class _Outliving(io.FileIO):
    """A pipe or a terminal into nowhere, once its reader is gone or its window is closed."""

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - whatever has bytes
        """Write `data`, or take it for written."""
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes
        except OSError as error:
            if error.errno == errno.EIO and interrupts.cells[0]:
                return memoryview(data).nbytes
            raise


def _outlive_readers() -> None:
    """Let a reader that goes away, as `head` does, change nothing: not the work, and not the exit code.

    Other commands die of SIGPIPE there. A run must not, nor may its exit code be that of findings or of an
    output that cannot be written: `eplb plan ... | head -1` ends quietly, with what it would have ended with.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        buffer = getattr(stream, "buffer", None)
        raw = getattr(buffer, "raw", buffer)  # PYTHONUNBUFFERED leaves no buffer between
        if isinstance(raw, io.FileIO) and not isinstance(raw, _Outliving):
            outliving = _Outliving(raw.fileno(), "wb", closefd=False)
            setattr(
                sys,
                name,
                io.TextIOWrapper(
                    outliving if raw is buffer else io.BufferedWriter(outliving),
                    encoding=stream.encoding,
                    errors=stream.errors,
                    line_buffering=stream.line_buffering,
                    write_through=stream.write_through,
                ),
            )


def _fail(error: EplbError) -> NoReturn:
    """End with the error's message and exit code: for a program on stdout, where that takes it."""
    if os.environ.get("EPLB_DEBUG") == "1":
        traceback.print_exc()
    is_said = False
    if _wants_json():
        with contextlib.suppress(OSError):
            render.print_json_error(error)
            is_said = True
    if not is_said:
        render.print_error(error)
    sys.exit(error.exit_code)
