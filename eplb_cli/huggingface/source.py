"""A Hugging Face checkpoint as it lies on disk: files named by an index, or a single one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from eplb_cli import files
from eplb_cli.checkpoint.beside import FileBeside
from eplb_cli.checkpoint.layout import ShardName
from eplb_cli.checkpoint.manifest import MANIFEST_NAME, is_digest_file
from eplb_cli.checkpoint.shards import ShardFile, TensorAt
from eplb_cli.checkpoint.staged import refuse_staging
from eplb_cli.errors import CheckpointError, PlacementError
from eplb_cli.formats.index_file import INDEX_SUFFIX, MAX_INDEX_NBYTES, index_json
from eplb_cli.formats.safetensors_header import Header, parse_header, read_header
from eplb_cli.models.config import ModelConfig, read_config
from eplb_cli.values import dataclass

ORIGIN_NAME = "eplb-huggingface.json"
"""What `shard` leaves beside its shards for `merge`."""


@dataclass(frozen=True)
class SourceFile:
    """A file of tensors.

    Attributes:
        name: as the checkpoint calls it. path: what that leads to; the cache of Hugging Face is all links.
        start: everything before the data, as it is in the file.
    """

    name: str
    path: Path
    start: bytes
    header: Header
    nbytes: int
    mtime_ns: int = 0

    @property
    def stamp(self) -> files.Stamp:
        """What it has to be whenever it is opened again."""
        return files.Stamp(self.nbytes, self.mtime_ns)

    def as_shard(self, series: str) -> ShardFile:
        """The file as a part of rank 0's shard in a series of files."""
        return ShardFile(self.path, ShardName(series, 0, 0), self.header, self.nbytes, self.mtime_ns)


@dataclass(frozen=True)
class HuggingFace:
    """A checkpoint, or what one was.

    Attributes:
        files: the files of tensors, by name.
        index_name, index: the index and its content; None where there is a single file.
        carried: all other files, by name, as what they lead to.
    """

    path: Path
    files: tuple[SourceFile, ...]
    index_name: str | None
    index: bytes
    carried: Mapping[str, FileBeside]

    @cached_property
    def tensors(self) -> dict[str, TensorAt]:
        """Every tensor by its key."""
        return {
            key: TensorAt(number, file.header.data_start + entry.begin, entry)
            for number, file in enumerate(self.files)
            for key, entry in file.header.tensors.items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes of all files of tensors."""
        return sum(file.nbytes for file in self.files)


def open_huggingface(path: Path) -> HuggingFace:
    """Read the names and headers of a Hugging Face checkpoint. Links are followed.

    Raises:
        CheckpointError: EP201, EP203 or EP204, a file cannot be read; EP223, the files and the index
            contradict each other; EP233, a run has not finished it.
    """
    refuse_staging(path)
    found = _list_files(path)
    tensors = {name for name in found if name.endswith(".safetensors")}
    indices = [name for name in found if name.endswith(INDEX_SUFFIX)]
    if len(indices) > 1:
        raise _contradiction(path, f"it has {len(indices)} indices")
    if not indices and len(tensors) != 1:
        raise _contradiction(path, f"it has no index, and {len(tensors)} files of tensors instead of one")
    index_name = indices[0] if indices else None
    index = b"" if index_name is None else files.read_small_file(found[index_name], MAX_INDEX_NBYTES)
    opened = tuple(_open(name, found[name]) for name in sorted(tensors))
    _check_index(path, opened, index_name, index)
    others = sorted(found.keys() - tensors - set(indices))
    return HuggingFace(path, opened, index_name, index, {name: FileBeside(found[name]) for name in others})


def refuse_own_names(tree: HuggingFace) -> None:
    """EP229 for a file beside the tensors that has a name under which eplb writes something itself.

    It could not travel along, and so `merge` would not bring it back.
    """
    for name in tree.carried:
        if name in {MANIFEST_NAME, ORIGIN_NAME} or is_digest_file(name):
            raise CheckpointError("EP229", f"{tree.path / name}: eplb writes files of that name itself")


def _list_files(path: Path) -> dict[str, Path]:
    """Names of files, and what they lead to; directories and hidden files stay behind."""
    with files.reading(path), os.scandir(path) as entries:
        names = sorted(
            entry.name for entry in entries if not entry.name.startswith(".") and not entry.is_dir()
        )
    return {name: Path(os.path.realpath(path / name)) for name in names}


def _open(name: str, path: Path) -> SourceFile:
    header, status = read_header(path)
    stamp = files.Stamp(status.st_size, status.st_mtime_ns)
    return SourceFile(name, path, _read_start(path, header, stamp), header, *stamp)


def _read_start(path: Path, header: Header, stamp: files.Stamp) -> bytes:
    """Everything before the data of a file."""
    content = bytearray(header.data_start)
    with files.opened_source(path, stamp) as descriptor:
        files.read_into(descriptor, memoryview(content), 0, path)
    return bytes(content)


def file_from_start(name: str, start: bytes) -> SourceFile:
    """A file that is not there, as its beginning describes it. Raises EP203."""
    header = parse_header(start[8:], None, name)
    data_nbytes = max((entry.end for entry in header.tensors.values()), default=0)
    return SourceFile(name, Path(name), start, header, len(start) + data_nbytes)


def _check_index(path: Path, opened: tuple[SourceFile, ...], name: str | None, index: bytes) -> None:
    """EP223 unless every tensor is in one file, and in the one that the index names."""
    where: dict[str, str] = {}
    for file in opened:
        for key in file.header.tensors:
            if where.setdefault(key, file.name) != file.name:
                raise _contradiction(path, f"{key!r} is in {where[key]} and in {file.name}")
    if name is None:
        return

    def fault(reason: str) -> CheckpointError:
        return _contradiction(path, f"{name} is no index: {reason}")

    said = index_json(index, fault)["weight_map"]
    for key in sorted(said.keys() | where.keys()):
        if said.get(key) != where.get(key):
            problem = f"{key!r} is in {where.get(key, 'no file')}, and {name} says {said.get(key, 'no file')}"
            raise _contradiction(path, problem)


def _contradiction(path: Path, problem: str) -> CheckpointError:
    return CheckpointError("EP223", f"{path} is no Hugging Face checkpoint: {problem}")


def config_of(path: Path) -> ModelConfig:
    """What the config.json of a checkpoint says. Raises EP201, EP204 or EP223."""
    try:
        return read_config(path / "config.json")
    except PlacementError as error:
        raise _contradiction(path, "its config.json cannot be read") from error
