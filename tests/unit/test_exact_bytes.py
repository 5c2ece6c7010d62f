"""Bytes are divided into rows in one place, and files of SRC are opened in one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import eplb_cli
from eplb_cli.errors import CheckpointError
from eplb_cli.formats.safetensors_header import row_nbytes_of

PACKAGE = Path(eplb_cli.__file__).parent
SIZES = ("nbytes", "itemsize", "element_size", "numel", "bits", "prod")
"""What a number of bytes, or of elements that take some, is called."""

DIVISIONS = {
    "formats/safetensors_header.py: bits // 8",  # the one place
    "live/tensors.py: tensor.numel() // max(tensor.shape[0], 1)",  # numel is a multiple of dim 0
    "live/from_buffer.py: target.numel() // max(target.shape[0], 1)",
    "live/copy_kernel.py: (tl.load(nbytes + row) - offset) // min(WORD, 8)",  # WORD divides all of them
    "exchange/units.py: chunk_nbytes // FIRST_OF_RAMP",  # where a ramp begins
    "plan/flow.py: demands.row_nbytes // unit",  # their greatest common divisor
    "plan/spread.py: open_demands.row_nbytes // unit",
    "plan/spread.py: int((demands.num_rows * demands.row_nbytes).sum()) // unit",
    "huggingface/parts.py: available_memory_nbytes() // 2",  # shares of memory and of work
    "machine.py: available_memory_nbytes() // (8 * num_workers)",
    "live/plan.py: buffer_nbytes // CHUNKS_PER_BUFFER",
    "live/room.py: buffer_nbytes // CHUNKS_PER_BUFFER",
    "transfer/traffic.py: buffer_nbytes // CHUNKS_PER_BUFFER",
    "transfer/reading.py: (end - nbytes) // most",
    "transfer/threads.py: (np.cumsum(nbytes) - 1) // TASK_NBYTES",
    "run/shared_others.py: (nbytes - size) // 2",  # about the middle
}
"""Where such a number is divided and rounded down, and why no row is cut there."""

OPENINGS = {
    "files.py: os.open",
    "files.py: open_source",
    "files.py: open_output",
    "output/shard_files.py: files.open_output",
    "output/shard_files.py: safe_open",  # what was written, for `safetensors` to look at
    "output/lock.py: os.open",  # the staging directory
    "output/lock.py: files.open_output",  # who holds it
    "run/job.py: os.open",  # memory that the processes of a run share
    "run/launch.py: (job.desk / 'torchrun.log').open",
    "run/launch.py: (job.desk / 'torchrun.log').read_text",
    "hosts/file_board.py: os.open",  # the board, which hosts share
    "hosts/addresses.py: _IPV6.read_text",  # of /proc
    "run/leash.py: files.open_output",  # the file of the owner, to hold it
    "run/launched.py: os.fdopen",  # a pipe
    "placements/read.py: read_bytes",  # files that a user names
    "inputs/found.py: read_bytes",
    "models/load.py: read_bytes",
    "models/model.py: read_bytes",  # presets
    "formats/tensor_file.py: torch.load",  # of bytes that were read
    "cli/entry.py: Path(os.devnull).open",  # the system's
    "live/board.py: os.open",  # memory that the ranks of a host share
    "machine.py: path.open",
    "machine.py: Path('/proc/sys/kernel/random/boot_id').read_text",
    "machine.py: _MOUNTS.read_bytes",
    "machine.py: (_CGROUP / 'memory.max').read_text",
    "machine.py: (_CGROUP / 'memory.current').read_text",
    "machine.py: _OWN_CGROUPS.read_text",
    "machine.py: (group / 'cpu.max').read_text",
    "machine.py: (group / f'cpu.cfs_{name}_us').read_text",
    "machine.py: Path(f'/proc/{pid}/stat').read_bytes",
}
"""Where a file is opened otherwise than by `files.opened_source`: none of them is of SRC."""

OPENERS = {
    "open", "fdopen", "open_source", "open_output", "read_bytes", "read_text", "write_bytes", "write_text",
    "memmap", "fromfile", "torch.load", "copyfile", "copy2", "copytree", "sendfile", "safe_open", "load_file",
}  # fmt: skip


def parsed() -> Iterator[tuple[str, ast.AST]]:
    """Every node of the package, with the path of its module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            yield str(path.relative_to(PACKAGE)), node


@pytest.mark.parametrize(
    ("dtype", "shape", "nbytes"),
    [("BF16", (3, 2), 12), ("F4", (2,), 1), ("F6_E2M3", (4,), 3), ("F32", (), 4)],
)
def test_bytes_of_a_row(dtype, shape, nbytes):
    """Of any dtype."""
    assert row_nbytes_of("a", dtype, shape) == nbytes


@pytest.mark.parametrize(("dtype", "shape"), [("F4", ()), ("F4", (3,)), ("F6_E2M3", (2,)), ("F6_E3M2", (3,))])
def test_rows_that_share_a_byte(dtype, shape):
    """EP209 names the tensor."""
    with pytest.raises(CheckpointError, match=r"'a': a row of \d+ bits is no number") as caught:
        row_nbytes_of("a", dtype, shape)
    assert caught.value.code == "EP209"


def test_no_bytes_are_divided_elsewhere():
    """Rounding down may cut a row, or make it none: whoever divides sizes says here why it does not."""
    found = set()
    for module, node in parsed():
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.FloorDiv):
            is_rounded_up = isinstance(node.left, ast.UnaryOp) and isinstance(node.left.op, ast.USub)
            if not is_rounded_up and any(size in ast.unparse(node.left) for size in SIZES):
                found.add(f"{module}: {ast.unparse(node)}")
    assert found == DIVISIONS


def test_no_file_of_src_is_opened_elsewhere():
    """`files.opened_source` compares a file when it is closed; whoever opens one otherwise is named here."""
    found = set()
    for module, node in parsed():
        if not isinstance(node, ast.Call):
            continue
        for called in (node.func, *node.args):
            name = ast.unparse(called)
            if isinstance(called, ast.Name | ast.Attribute) and {name, name.split(".")[-1]} & OPENERS:
                found.add(f"{module}: {name}")
    assert found == OPENINGS
