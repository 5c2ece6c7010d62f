"""An error of one host, as the others get to know it."""

from __future__ import annotations

from eplb_cli.errors import CODES, EplbError, error_of
from eplb_cli.hosts.board import BoardError
from eplb_cli.hosts.words import from_words, to_words
from eplb_cli.values import dataclass

MAX_TEXT = 4000
"""Characters of a message, or of a hint, that are passed on."""


@dataclass(frozen=True)
class Failure:
    """Why a run ends on all hosts: what `EplbError` has, with the host in its message."""

    code: str
    message: str
    hint: str = ""

    def error(self) -> EplbError:
        """The error that each host raises."""
        return error_of(self.code, self.message, self.hint)

    def to_words(self) -> bytes:
        """What is put on the board."""
        cut = {"message": self.message[:MAX_TEXT], "hint": self.hint[:MAX_TEXT]}
        return to_words({"code": self.code, **cut})


def failure_in(words: bytes) -> Failure:
    """What was put on the board. Raises BoardError where that is none of ours."""
    said = from_words(words)
    code, message, hint = (said.get(name) for name in ("code", "message", "hint"))
    if not (isinstance(message, str) and isinstance(hint, str) and code in CODES):
        raise BoardError("what is said there is not in the words of eplb")
    return Failure(str(code), message[:MAX_TEXT], hint[:MAX_TEXT])


def failure_of(error: BaseException, who: str) -> Failure:
    """What the others are told of an error by which `who`, "host 1 (b)", ends."""
    if isinstance(error, EplbError):
        return Failure(error.code, f"{who}: {error.message}", error.hint)
    if isinstance(error, Exception):
        return Failure("EP401", f"{who} ended by an unexpected {type(error).__name__}: {error}")
    return Failure("EP407", f"{who} was interrupted", "somebody, or a scheduler, ended the command there")


def failure_from(error: EplbError) -> Failure:
    """The failure of an error that names its host, or that all hosts share, already."""
    return Failure(error.code, error.message, error.hint)
