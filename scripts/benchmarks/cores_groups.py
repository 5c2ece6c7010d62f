"""The groups of `scripts/bench cores`, each with what it prints and its lines with bars."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from eplb_cli.machine import count_cores
from scripts.benchmarks.bare import Action, seconds_of
from scripts.benchmarks.hf_tree import write_huggingface
from scripts.benchmarks.sides import Tree, Trees
from scripts.benchmarks.table import Line
from scripts.benchmarks.timing import EPLB, PYTHON, Sample, interleave, run
from scripts.benchmarks.trees import Shape

FEW_CORES = 4
"""Up to here the bars are those for two cores."""

PART = 4
"""A group without bars writes a so many-th of the tree."""

LEAST_S = 0.001
"""A stage that is shorter has not taken place."""


class OverError(Exception):
    """The time is over."""


@dataclass(eq=False)
class Bench:
    """What all groups need, and what they leave each other.

    Attributes:
        ends: by the monotonic clock, when nothing new is begun.
        best: by action, the bare loop's best rate in GB/s, and how many threads that took.
    """

    root: Path
    shape: Shape
    runs: int
    threads: Sequence[int]
    ends: float
    best: dict[str, tuple[float, int]] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        """Where every run writes."""
        return self.root / "out"

    @property
    def tree(self) -> Tree:
        """The checkpoint that is resharded."""
        return Trees(self.root).get(self.shape)

    @contextlib.contextmanager
    def fresh(self) -> Iterator[Path]:
        """A run that writes `out`, unless the time is over. Raises OverError."""
        if time.monotonic() > self.ends:
            raise OverError
        yield self.out
        with ThreadPoolExecutor() as pool:
            list(pool.map(Path.unlink, (path for path in self.out.rglob("*") if path.is_file())))
        shutil.rmtree(self.out, ignore_errors=True)

    def bare(self, action: Action, threads: int) -> float:
        """GB/s of the bare loop over the shards of the tree."""
        paths = sorted(self.tree.path.glob("*.safetensors"))
        sizes = [path.stat().st_size for path in paths]
        with self.fresh() as out:
            out.mkdir()
            return (
                sum(sizes)
                / 1e9
                / seconds_of(action, sizes, threads, paths, out if action == "copy" else None)
            )

    def command(self, *words: str | Path) -> Callable[[], Sample]:
        """A command of eplb, whole; and its stages, where it is a reshard."""

        def once() -> Sample:
            with self.fresh():
                done = run([EPLB, *map(str, words), "--format", "json"])
            sample = {"whole": done.seconds, "cpu": done.cpu_s}
            if words[0] == "reshard":
                report = json.loads(done.stdout)
                sample |= report["seconds"] | {"threads": report["threads"]}
            return sample

        return once

    def copy(self, path: Path) -> Callable[[], Sample]:
        """`cp -r`."""

        def once() -> Sample:
            with self.fresh() as out:
                done = run(["cp", "-r", str(path), str(out)])
            return {"whole": done.seconds, "cpu": done.cpu_s}

        return once

    def reshard(self, *flags: str, out: Path | None = None) -> list[str | Path]:
        """The words of a reshard with one process."""
        tree = self.tree
        places = ("--old", tree.old, "--new", tree.new)
        return ["reshard", tree.path, out or self.out, *places, "--backend", "file", *flags]


def _loop(bench: Bench) -> list[Line]:
    """The bare loop, by the number of threads."""
    for action in ("copy", "read", "digest"):
        rates = {}
        for threads in bench.threads:
            rates[threads] = median(bench.bare(action, threads) for _ in range(bench.runs))
        bench.best[action] = max((rate, threads) for threads, rate in rates.items())
        _say(f"bare {action}, GB/s by threads", rates)
    return []


def _whole(bench: Bench) -> list[Line]:
    """Whole commands against `cp -r`, stages against the bare loop."""
    kept = bench.root / "kept"
    run([EPLB, *map(str, bench.reshard("--no-fsync", out=kept))])
    samples = interleave(
        {
            "cp -r": bench.copy(bench.tree.path),
            "no digest": bench.command(*bench.reshard("--no-digest", "--no-fsync")),
            "proof": bench.command(*bench.reshard("--no-fsync")),
            "proof, fsync": bench.command(*bench.reshard()),
            "verify": bench.command("verify", kept),
            "inspect --deep": bench.command("inspect", kept, "--deep"),
        },
        bench.runs,
    )
    shutil.rmtree(kept)
    for side, taken in samples.items():
        _say(f"{side}, median s", {key: median(one[key] for one in taken) for key in taken[0]})
    few = count_cores() <= FEW_CORES
    nbytes = bench.shape.gigabytes
    return [
        _against(samples, "no digest", "cp -r", 0.6 if few else 0.35),
        _against(samples, "proof", "cp -r", 0.8 if few else 0.5),
        _against(samples, "proof, fsync", "cp -r", None),
        *_rates(bench, samples["no digest"], "no digest: transfer", "transfer", "copy", 0.85, nbytes),
        *_rates(bench, samples["proof"], "proof: verify", "verify", "digest", 0.7, nbytes),
        *_rates(bench, samples["verify"], "eplb verify DST", "whole", "digest", 0.6, nbytes),
        *_rates(bench, samples["inspect --deep"], "eplb inspect --deep", "whole", "digest", 0.6, nbytes),
    ]


def _against(samples: dict[str, list[Sample]], what: str, against: str, limit: float | None) -> Line:
    values, others = ([sample["whole"] for sample in samples[side]] for side in (what, against))
    return Line(what, against, values, others, limit=limit)


def _rates(
    bench: Bench, taken: list[Sample], what: str, stage: str, action: str, least: float, gigabytes: float
) -> Iterator[Line]:
    """A line of rates, where the bare loop was run."""
    if action in bench.best:
        rate, threads = bench.best[action]
        values = [gigabytes / sample[stage] for sample in taken]
        note = f"bare {action}, {threads} threads"
        yield Line(what, note, values, [rate] * len(values), "GB/s", least, at_least=True)


def _threads(bench: Bench) -> list[Line]:
    """Stages of a reshard by `--threads`; one round, for the shape of the curve."""
    for name, flags in (("no digest", ["--no-digest"]), ("proof", [])):
        rates: dict[str, dict[int, float]] = {"transfer": {}, "verify": {}}
        for threads in bench.threads:
            sample = bench.command(*bench.reshard("--no-fsync", "--threads", str(threads), *flags))()
            for stage in ("transfer", "verify"):
                if sample[stage] > LEAST_S:
                    rates[stage][threads] = bench.shape.gigabytes / sample[stage]
        for stage, by_threads in rates.items():
            if by_threads and not (stage == "verify" and flags):
                _say(f"{name}, stage {stage}, GB/s by --threads", by_threads)
    return []


def _huggingface(bench: Bench) -> list[Line]:
    """`shard`, `merge` and `identify` of a Hugging Face checkpoint."""
    source, shards = bench.root / "hf", bench.root / "sharded"
    nbytes = write_huggingface(source, bench.shape, count_cores())
    words = ["--placement", "linear", "--num-ranks", str(bench.shape.num_ranks), "--engine", "vllm"]
    run([EPLB, "shard", str(source), str(shards), *words, "--no-fsync"])
    samples = interleave(
        {
            "cp -r": bench.copy(source),
            "shard": bench.command("shard", source, bench.out, *words, "--no-fsync"),
            "merge": bench.command("merge", shards, bench.out, "--no-fsync"),
            "identify": bench.command("inspect", shards, "--identify", source),
        },
        bench.runs,
    )
    for path in (source, shards):
        shutil.rmtree(path)
    for side, taken in samples.items():
        _say(f"{side}, median s", {key: median(one[key] for one in taken) for key in taken[0]})
    few = count_cores() <= FEW_CORES
    return [
        _against(samples, "shard", "cp -r", None if few else 0.6),
        _against(samples, "merge", "cp -r", None if few else 0.6),
        *_rates(bench, samples["identify"], "identify", "whole", "digest", 0.6, 2 * nbytes / 1e9),
    ]


_WITH_BLOCKS = (
    "from eplb_cli.transfer import reading; from eplb_cli.cli import main; "
    "reading.LEAST_BLOCK_NBYTES = reading.MOST_BLOCK_NBYTES = {nbytes}; main()"
)


def _blocks(bench: Bench) -> list[Line]:
    """Stages of a reshard by the size of a block; one round, for the shape of the curve."""
    for name, flags in (("no digest", ["--no-digest"]), ("proof", [])):
        rates: dict[str, dict[str, float]] = {"transfer": {}, "verify": {}}
        for size in (1 << 19, 1 << 20, 2 << 20, 4 << 20, 8 << 20):
            words = [*map(str, bench.reshard("--no-fsync", *flags)), "--format", "json"]
            with bench.fresh():
                done = run([PYTHON, "-c", _WITH_BLOCKS.format(nbytes=size), *words])
            seconds = json.loads(done.stdout)["seconds"]
            for stage, by_block in rates.items():
                by_block[f"{size >> 10} KiB"] = bench.shape.gigabytes / max(seconds[stage], LEAST_S)
        for stage in ("transfer",) if flags else rates:
            _say(f"{name}, stage {stage}, GB/s by block", rates[stage])
    return []


def _limits(bench: Bench) -> list[Line]:
    """What bounds writing: how many files, whether they are allocated, how large a block is."""
    total = int(bench.shape.gigabytes * 1e9 / PART)

    def write(num_files: int, threads: int, block_nbytes: int = 1 << 20, *, allocate: bool = False) -> float:
        sizes = [total // num_files] * num_files
        with bench.fresh() as out:
            out.mkdir()
            taken = seconds_of("write", sizes, threads, (), out, block_nbytes, allocate=allocate)
            return total / 1e9 / taken

    for num_files in (1, 4, 8, 32):
        _say(
            f"bare write into {num_files} files, GB/s by threads",
            {threads: write(num_files, threads) for threads in bench.threads},
        )
    threads = min(8, max(bench.threads))
    by_block = {f"{size >> 10} KiB": write(8, threads, size) for size in (1 << 18, 1 << 20, 1 << 22)}
    _say(f"bare write into 8 files, {threads} threads, GB/s by block", by_block)
    _say(
        f"bare write into 8 files, {threads} threads, allocation included, GB/s",
        {"ftruncate": write(8, threads), "fallocate": write(8, threads, allocate=True)},
    )
    return []


def _profile(bench: Bench) -> list[Line]:
    """Where the time of threads goes."""
    for flags in (["--no-digest"], []):
        words = bench.reshard("--no-fsync", *flags)
        command = [PYTHON, "-m", "scripts.benchmarks.profiled", *map(str, words)]
        with bench.fresh():
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - as `run`
        lines = [line for line in done.stderr.splitlines() if line.startswith(("transfer ", "verify "))]
        print(f"  profile of reshard {' '.join(flags)}", *lines, sep="\n    ", flush=True)
    return []


def _say(what: str, values: Mapping[int, float] | Mapping[str, float]) -> None:
    print(f"  {what}: " + ", ".join(f"{key}: {value:.3g}" for key, value in values.items()), flush=True)


GROUPS: dict[str, Callable[[Bench], list[Line]]] = {
    "loop": _loop,
    "whole": _whole,
    "threads": _threads,
    "huggingface": _huggingface,
    "blocks": _blocks,
    "profile": _profile,
    "limits": _limits,
}
