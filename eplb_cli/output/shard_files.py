"""The shards of an output in its directory: room for them, all of them created, all of them opened again."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from eplb_cli import files
from eplb_cli.errors import BytesError, OutputError
from eplb_cli.machine import is_in_memory, writing_threads
from eplb_cli.output.tree import Made, OutputFile, OutputTree


def check_space(directory: Path, output: OutputTree, destination: Path, numbers: Sequence[int]) -> None:
    """Refuse to start where files do not fit, with what an earlier run has left of them. Raises EP603.

    Args:
        directory: the staging directory, which need not be there yet.
        numbers: of the files that are written there.
    """
    with files.writing(directory):
        status = os.statvfs(directory.parent)
        entries = os.scandir(directory) if directory.is_dir() else ()
        there = sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in entries)
    free = status.f_bavail * status.f_frsize
    needed = sum(file.nbytes for number in numbers if (file := output.files[number]).same_as is None)
    if free + there < needed:
        raise OutputError(
            "EP603",
            f"{destination} needs {needed} bytes and its file system has {free}",
        )


def whole_files(directory: Path, output: OutputTree, numbers: Sequence[int]) -> list[Path]:
    """Those of some files that an earlier run has made, each with all its space."""
    own = {
        directory / file.name: file for file in map(output.files.__getitem__, numbers) if file.same_as is None
    }
    return [path for path, file in own.items() if _is_whole(path, file)]


def _is_whole(path: Path, file: OutputFile) -> bool:
    with contextlib.suppress(OSError):
        status = path.lstat()
        return stat.S_ISREG(status.st_mode) and status.st_size == file.nbytes
    return False


def create_files(
    directory: Path, output: OutputTree, numbers: Sequence[int], there: Collection[Path] = ()
) -> list[int]:
    """Create shards with their headers, what is made for them and all their space, or link them.

    A file system in memory fills what it allocates with zeros, and takes as long for that as for the rows
    afterwards: there a file only gets its size, and `check_space` has seen that there is room.

    Args:
        numbers: of the files, among them that of each which another one is the same as.
        there: those that need not be created again, as `whole_files` gives them.

    Returns:
        The numbers of the files that are the same as another and could not be linked to it.

    Raises:
        OutputError: EP603 or EP604.
    """
    made: dict[int, list[Made]] = defaultdict(list)
    for tensor in output.made:
        made[tensor.dst_file].append(tensor)
    allocate = not is_in_memory(directory)

    def create(number: int) -> None:
        file = output.files[number]
        path = directory / file.name
        is_there = path in there
        opened = files.open_output(path) if is_there else files.create(path, file.nbytes, allocate=allocate)
        with files.closing(opened) as descriptor:
            files.write_from(descriptor, memoryview(file.header), 0, path)
            for tensor in made[number]:
                files.write_from(descriptor, memoryview(tensor.content), tensor.dst_offset, path)

    _at_once(create, [number for number in numbers if output.files[number].same_as is None])
    unlinked = [
        number
        for number in numbers
        if (file := output.files[number]).same_as is not None
        and not files.link(directory / output.files[file.same_as].name, directory / file.name)
    ]
    _at_once(create, unlinked)
    return unlinked


def _at_once(create: Callable[[int], None], numbers: Sequence[int]) -> None:
    """Create several files at a time. The first error is raised, and then no other is begun."""
    with ThreadPoolExecutor(writing_threads(1, len(numbers))) as pool:
        try:
            for done in [pool.submit(create, number) for number in numbers]:
                done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def require_made(directory: Path, output: OutputTree, numbers: Collection[int]) -> None:
    """Read what was made for some of the files again. Raises EP504 where it is not there."""
    for tensor in (tensor for tensor in output.made if tensor.dst_file in numbers):
        path = directory / output.files[tensor.dst_file].name
        content = bytearray(len(tensor.content))
        with files.opened_output(path) as descriptor:
            files.read_into(descriptor, memoryview(content), tensor.dst_offset, path)
        if content != tensor.content:
            raise BytesError("EP504", f"{path.name}: {tensor.key!r} is not what was written")


def reopen(directory: Path, outputs: Sequence[OutputFile]) -> None:
    """Open every file with the safetensors library, as an engine will. Raises EP505."""
    from safetensors import SafetensorError, safe_open

    for file in outputs:
        try:
            with files.calls, safe_open(directory / file.name, framework="numpy") as opened:
                keys = set(opened.keys())
        except SafetensorError as error:
            raise BytesError("EP505", f"{file.name} cannot be opened: {error}") from error
        if not keys >= file.others.keys():
            raise BytesError("EP505", f"{file.name} lacks a tensor that was written to it")
