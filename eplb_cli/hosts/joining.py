"""All hosts are there, of one version and with the same inputs, or all of them say what is wrong.

Host 0 puts its hello on the board first. The others compare theirs with it, put theirs beside it, and wait
until host 0 has seen all of them and says so ("go"). Whoever finds something wrong leaves it there as the
failure of the run, which all others see; so nothing else happens before all hosts are known to be alike.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

from eplb_cli.errors import EplbError, WorkerError
from eplb_cli.hosts.board import Board, BoardError, SupersededError
from eplb_cli.hosts.failure import failure_from, failure_in, failure_of
from eplb_cli.hosts.goodbye import GOODBYE_S, say_goodbye
from eplb_cli.hosts.hello import Hello, difference, hello_in, hello_of, same_rank
from eplb_cli.hosts.hosts import Hosts
from eplb_cli.hosts.together import Together
from eplb_cli.hosts.watch import FAILURE, Watch, lost_after
from eplb_cli.hosts.words import from_words, to_words

POLL_S = 0.02
_GO = "go"


@contextlib.contextmanager
def joined(
    meet: Callable[[], Board], node: int, count: int, same: Mapping[str, str], timeout_s: float
) -> Iterator[Hosts]:
    """All hosts of a run, for the block. Whoever leaves it by an error tells the others, which raise it too.

    Args:
        meet: makes the board; called again where another run has begun on it meanwhile.
        node: `--node-rank`.
        count: `--nnodes`.
        same: what has to be alike on all hosts, as `Hello.same`.
        timeout_s: seconds for all hosts to join, and for host 0 to wait for the others at the end.

    Raises:
        EplbError: what `difference` finds; EP001, two hosts have one number; EP407, a host did not join or
            was lost; that of the first host that failed.
    """
    together = _join(meet, hello_of(node, count, same), timeout_s)
    try:
        yield together
    except BaseException as error:
        together.fail(error)
        raise
    finally:
        together.leave(timeout_s)


def _join(meet: Callable[[], Board], mine: Hello, timeout_s: float) -> Together:
    give_up = time.monotonic() + timeout_s
    while True:
        joining = _Joining(meet(), mine, give_up, timeout_s)
        try:
            return Together(mine.node, joining.names_of_all(), joining.board, joining.watch)
        except SupersededError:
            joining.end()
        except BoardError as error:
            joining.end()
            raise joining.board.lost(joining.name_of(0), str(error)) from error
        except BaseException as error:
            joining.leave(error)
            raise


class _Joining:
    """One host that joins."""

    def __init__(self, board: Board, mine: Hello, give_up: float, timeout_s: float) -> None:
        self.board = board
        self.mine = mine
        self.names: dict[int, str] = {}
        self.give_up = give_up
        self.timeout_s = timeout_s
        self.is_in = False
        others = list(range(1, mine.count)) if mine.node == 0 else [0]
        self.watch = Watch(board.again(), mine.node, others, self.name_of, lost_after(timeout_s))

    def name_of(self, node: int) -> str:
        """How a message calls a host, whose name may not be known yet."""
        return f"host {node} ({self.names[node]})" if node in self.names else f"host {node}"

    def names_of_all(self) -> tuple[str, ...]:
        """Join. Raises EplbError as `joined`, and BoardError."""
        mine = self.mine
        if mine.node == 0:
            self._say_hello()
            hellos = map(hello_in, self._wait([f"hello/{node}" for node in range(mine.count)]))
            names = [hello.name for hello in hellos]
            self.board.set(_GO, to_words({"names": names}))
        else:
            first = hello_in(self._wait(["hello/0"])[0])
            self.names[0] = first.name
            if wrong := difference(first, mine):
                self._end_all(wrong)
            self._say_hello()
            names = _names_in(self._wait([_GO])[0], mine.count)
        self.names.update(enumerate(names))
        return tuple(names)

    def _say_hello(self) -> None:
        """Raises EP001 where another host has done so as this one."""
        mine = self.mine
        there = hello_in(self.board.claim(f"hello/{mine.node}", mine.to_words()))
        self.is_in = there.nonce == mine.nonce
        if self.is_in:
            return
        if self.board.get(_GO) is not None:
            raise same_rank(there, mine, has_begun=True)
        self._end_all(same_rank(there, mine, has_begun=False))

    def _wait(self, keys: list[str]) -> list[bytes]:
        while (told := self.board.get_many(keys)) is None:
            if self.watch.has_failed:
                self.board.get(FAILURE)  # raises SupersededError, where that is why
                self.watch.check()
            if time.monotonic() > self.give_up:
                self._end_all(self._missing())
            time.sleep(POLL_S)
        return told

    def _missing(self) -> WorkerError:
        """EP407 for the hosts that did not join."""
        nodes = range(self.mine.count)
        missing = [str(node) for node in nodes if self.board.get(f"hello/{node}") is None]
        if not missing:
            problem = f"{self.name_of(0)} did not begin within {self.timeout_s:g} s"
            return WorkerError("EP407", problem, "--timeout waits longer")
        hosts = f"host{'s' if len(missing) > 1 else ''} {', '.join(missing)} of {self.mine.count}"
        hint = "start the command there with that --node-rank; --timeout waits longer"
        return WorkerError("EP407", f"{hosts} did not join within {self.timeout_s:g} s", hint)

    def _end_all(self, error: EplbError) -> NoReturn:
        """Raise what is wrong with the run on all hosts: this, or what another one has found before."""
        there = self.board.claim(FAILURE, failure_from(error).to_words())
        raise failure_in(there).error()

    def end(self) -> None:
        """No more calls."""
        self.watch.end()
        self.board.close()

    def leave(self, error: BaseException) -> None:
        """End by an error. Whoever has joined tells it; host 0 waits a moment, also for who comes late."""
        with contextlib.suppress(BoardError, EplbError):
            if self.is_in:
                self.board.claim(FAILURE, failure_of(error, self.mine.who).to_words())
        others = range(1, self.mine.count)
        say_goodbye(self.board, self.watch, self.mine.node, others, min(GOODBYE_S, self.timeout_s))


def _names_in(go: bytes, count: int) -> list[str]:
    """The names of all hosts, as host 0 has seen them. Raises BoardError."""
    names = from_words(go).get("names")
    if not (isinstance(names, list) and len(names) == count and all(isinstance(name, str) for name in names)):
        raise BoardError("what is said there is not in the words of eplb")
    return names
