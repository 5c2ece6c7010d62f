"""This process as one of those that another launcher has started: `python -m eplb_cli.run.worker JOB`.

The launcher says which of how many processes this is, and where the first of them is; which of them share a
host they find out. The first one on each host starts the command, which leads the others there: it has the
options of the job, and the numbers of hosts and workers that were found. Every process has a child that is a
worker: it waits until the command has planned, and says where its job is.

    launcher ──► process 0 ──► worker 0 and the command of host 0
             ├─► process 1 ──► worker 1
             └─► process 2 ──► worker 2 and the command of host 1
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from eplb_cli.errors import EXIT_INTERRUPTED, EplbError, UsageError, WorkerError
from eplb_cli.formats.reading import read_json
from eplb_cli.hosts.addresses import read_endpoint
from eplb_cli.hosts.board import Board, BoardError
from eplb_cli.hosts.words import from_words, to_words
from eplb_cli.machine import find_process, host_identity
from eplb_cli.run.crew import VARIABLE, Present, job_key, over_key
from eplb_cli.run.leash import adopt, die_with_parent

FORMAT = "eplb-job/1"
MAX_JOB_NBYTES = 1 << 20
POLL_S = 0.1
JOIN_S = 600.0
LOST_S = 30.0
GRACE_S = 2.0

_NUMBERS = (
    ("RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
)
"""Variables of torchrun and all that sets the same, of Slurm, of Open MPI, and of MPICH."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def job_text(arguments: list[str]) -> str:
    """A job file: the words of a command line, without `eplb`."""
    return json.dumps({"format": FORMAT, "arguments": arguments}, indent=1) + "\n"


def read_arguments(path: Path) -> list[str]:
    """The words in a job file. Raises UsageError EP001, and EP201 or EP204 where it cannot be read."""
    fault = partial(UsageError, "EP001")
    said = read_json(path, MAX_JOB_NBYTES, lambda why: fault(f"{path} is no job: {why}"))
    is_job = isinstance(said, dict) and said.get("format") == FORMAT
    words: list[Any] = said.get("arguments", []) if is_job else []
    if words[:1] != ["reshard"] or not all(isinstance(word, str) for word in words):
        raise fault(f"{path} is no job", "`eplb reshard SRC DST --new NEW --save-job FILE` writes one")
    return words


class _Place(NamedTuple):
    """Which of how many processes this is."""

    number: int
    total: int


def _place(environment: Mapping[str, str]) -> _Place:
    """What the launcher says of this process. Raises EP001 where none does."""
    for variables in _NUMBERS:
        number, count = (environment.get(name, "") for name in variables)
        if number.isdecimal() and count.isdecimal() and int(number) < int(count):
            return _Place(int(number), int(count))
    problem = "no launcher says which process of how many this is"
    hint = "start it by torchrun or srun, or set RANK and WORLD_SIZE; one host needs no job"
    raise UsageError("EP001", problem, hint)


def _said_endpoint(arguments: list[str]) -> str | None:
    """What the job says of where the processes meet; None where it says nothing."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, is_joined, value = word.partition("=")
        if option == "--rdzv-endpoint":
            return value if is_joined else following
    return None


def _endpoint(arguments: list[str], environment: Mapping[str, str]) -> str:
    """HOST:PORT where the processes meet, from the job or else as torchrun says it. Raises EP001."""
    said = _said_endpoint(arguments)
    if said is not None:
        return said
    host, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT")
    if not host or not port:
        problem = "nothing says where the processes of the job meet"
        hint = "set MASTER_ADDR and MASTER_PORT, or add --rdzv-endpoint HOST:PORT when the job is saved"
        raise UsageError("EP001", problem, hint)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def take_part(path: Path) -> int:
    """Be the process that the launcher knows: with a worker, and on each host with the command that leads.

    Returns:
        the exit code of the command, or else of the worker.
    """
    reading, writing = os.pipe()
    # What others meet at outlives the worker: the command's last words to other hosts come after its end.
    children = [_fork(partial(_keep_store, path, writing)), _fork(partial(_join, path, writing))]
    os.close(writing)
    leader: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        """The first signal ends the work; the worker hears of it from the command, so that all is kept."""
        del frame
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        if leader:
            leader[0].send_signal(number)
        else:
            _end(children, 0.0)

    for number in _SIGNALS:
        signal.signal(number, pass_on)
    with os.fdopen(reading, "rb") as pipe:
        words = pipe.readline()
    if not words:
        try:
            code = _shell_code(os.waitstatus_to_exitcode(os.waitpid(children.pop(), 0)[1]))
        except ChildProcessError:  # a signal has ended it, while it looked for the others
            code = EXIT_INTERRUPTED
        _end(children, 0.0)
        return code
    said = from_words(words)
    environment = {**os.environ, **said["environment"]}
    # In a session of its own it is told once of what a launcher, or a terminal, tells a whole group.
    leader.append(
        subprocess.Popen(  # noqa: S603 - our own command
            said["command"], env=environment, start_new_session=True
        )
    )
    code = _shell_code(leader[0].wait())
    _end(children[1:], GRACE_S)
    _end(children[:1], 0.0)
    return code


def _shell_code(code: int) -> int:
    """An exit code as a shell has it: 128 and its number for a signal."""
    return code if code >= 0 else 128 - code


def _end(children: list[int], grace_s: float) -> None:
    """Wait a while for children, and kill those that have not ended then."""
    give_up = time.monotonic() + grace_s
    for child in children:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            while not os.waitpid(child, os.WNOHANG)[0]:
                if time.monotonic() > give_up:
                    os.kill(child, signal.SIGKILL)
                time.sleep(POLL_S)


def _fork(work: Callable[[], int]) -> int:
    """A child that does `work`, ends with this process, and says what goes wrong; its id."""
    child = os.fork()
    if child:
        return child
    die_with_parent()
    for number in _SIGNALS:  # the command decides
        signal.signal(number, signal.SIG_IGN)
    try:
        os._exit(work())
    except EplbError as error:
        hint = f"\n  hint: {error.hint}" if error.hint else ""
        sys.stderr.write(f"error[{error.code}]: {error.message}{hint}\n")
    except BoardError as error:
        sys.stderr.write(f"error[EP407]: the processes of the job lost each other: {error}\n")
    except BaseException as error:  # noqa: BLE001 - two processes must never go on from here
        sys.stderr.write(f"error[EP401]: unexpected {type(error).__name__}: {error}\n")
    sys.stderr.flush()
    os._exit(WorkerError.exit_code)


def _keep_store(path: Path, writing: int) -> int:
    """Keep what the processes meet at, until killed, if this is the first and torchrun does not."""
    os.close(writing)  # else nobody would see that the worker has ended without a word
    arguments = read_arguments(path)
    if _place(os.environ).number == 0 and not _has_store(arguments, os.environ):
        from eplb_cli.hosts.tcp_board import serve_store

        store = serve_store(read_endpoint(_endpoint(arguments, os.environ)), JOIN_S)
        signal.pause()  # signals are ignored: nothing but SIGKILL ends it
        del store
    return 0


def _join(path: Path, writing: int) -> int:
    """Find the others, wait for the job of this host, and do a worker's share of it."""
    from eplb_cli.hosts.tcp_board import board_at

    arguments = read_arguments(path)
    place, endpoint = _place(os.environ), _endpoint(arguments, os.environ)
    name = f"present-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    at, host = read_endpoint(endpoint), _identity()
    with contextlib.closing(board_at(at, serve=False, timeout_s=JOIN_S, lost_s=LOST_S, name=name)) as board:
        keys = [f"process/{number}" for number in range(place.total)]
        board.set(keys[place.number], to_words({"host": host, "process": _this_process()}))
        present, numbers = _find_hosts(_wait_for_all(board, keys), host, name)
        if numbers[0] == place.number:
            os.write(writing, _command(arguments, endpoint, present) + b"\n")
        os.close(writing)
        said = _wait_for_job(board, present)
        if said is None:  # the command has ended without one, and its exit code says why
            return 1
        job = Path(said["job"])
        held = adopt(job, said["run"])
        from eplb_cli.run.work import work

        return work(held, job, numbers.index(place.number))


def _has_store(arguments: list[str], environment: Mapping[str, str]) -> bool:
    """Whether torchrun's agent has a store where the processes meet."""
    is_agents = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return is_agents and _said_endpoint(arguments) is None


def _identity() -> str:
    """What is the same for the processes of a host: those that see the same processes and the same files."""
    return f"{host_identity()} {Path('/proc/self/ns/mnt').readlink()}"


def _this_process() -> tuple[int, int]:
    """Id and start time. Raises EP404 where /proc does not say them."""
    this = find_process("self")
    if this is None:
        raise WorkerError("EP404", "/proc says nothing of this process", "mount /proc")
    return this.pid, this.start


def _wait_for_all(board: Board, keys: list[str]) -> list[dict[str, Any]]:
    """What all processes say. Raises EP407 where one does not."""
    give_up = time.monotonic() + JOIN_S
    while (found := board.get_many(keys)) is None:
        if time.monotonic() > give_up:
            missing = [number for number, key in enumerate(keys) if board.get(key) is None]
            problem = f"process {missing[0]} of {len(keys)} has not come within {JOIN_S:g} s"
            raise WorkerError("EP407", problem, "has the launcher started all of them?")
        time.sleep(POLL_S)
    return [from_words(words) for words in found]


def _find_hosts(everyone: list[dict[str, Any]], host: str, name: str) -> tuple[Present, list[int]]:
    """All hosts, each at the place of its first process; and the numbers of the processes of this one."""
    hosts: dict[str, list[int]] = {}
    for number, one in enumerate(everyone):
        hosts.setdefault(str(one["host"]), []).append(number)
    numbers = hosts[host]
    processes = tuple((int(pid), int(start)) for pid, start in (everyone[at]["process"] for at in numbers))
    return Present(list(hosts).index(host), tuple(map(len, hosts.values())), processes, name), numbers


def _command(arguments: list[str], endpoint: str, present: Present) -> bytes:
    """How the command is called on this host, as a line of JSON."""
    hosts = ["--nnodes", str(len(present.workers)), "--node-rank", str(present.node)]
    meet = ["--rdzv-endpoint", endpoint] if _said_endpoint(arguments) is None else []
    command = [sys.executable, "-P", "-m", "eplb_cli", *arguments, *hosts, *meet]
    return to_words({"command": command, "environment": {VARIABLE: present.in_words()}})


def _wait_for_job(board: Board, present: Present) -> dict[str, Any] | None:
    """Where the job of this host is; None where the command has ended before there was one."""
    first = present.processes[0]
    while (words := board.get(job_key(present.node))) is None:
        process = find_process(first[0])
        if board.get(over_key(present.node)) is not None or process is None or process.start != first[1]:
            return None
        time.sleep(POLL_S)
    return from_words(words)
