"""Moving the bytes: in this process, or in the workers of a torchrun job."""

from __future__ import annotations

import time
from dataclasses import asdict
from itertools import pairwise

import numpy as np

from eplb_cli.arrays import Digests
from eplb_cli.hosts.hosts import Hosts
from eplb_cli.machine import available_memory_nbytes, default_buffer_nbytes, reading_threads, writing_threads
from eplb_cli.output.journal import Known, write_written
from eplb_cli.output.staging import Staging
from eplb_cli.progress import ProgressBar, bytes_in_words, tell, telling
from eplb_cli.run.preparing import Planned
from eplb_cli.transfer.meter import Activity, Summary, summarize
from eplb_cli.transfer.traffic import TransferOptions, largest_chunk_nbytes
from eplb_cli.transfer.transfer import SPANS, TransferResult, transfer_here
from eplb_cli.values import dataclass


@dataclass(frozen=True, eq=False)
class Moved:
    """What the workers did, together: digests by place, and each worker's own numbers.

    Attributes:
        seconds: of each of `SPANS`, from the first worker that is in it until the last one has left it, so
            that they follow each other and add up.
    """

    old_digests: Digests
    new_digests: Digests
    options: TransferOptions
    seconds: dict[str, float]
    activity: Summary
    wire_nbytes: int
    peak_rss_nbytes: list[int]
    peak_anonymous_nbytes: list[int]


def move(planned: Planned, stage: Staging, known: Known, progress: ProgressBar) -> Moved:
    """Move the bytes with whichever backend was chosen; on all hosts, which know of all of it then."""
    began = time.perf_counter()
    if stage.is_held and (planned.request.digests or stage.resumes):
        write_written(stage.work, known.written, planned.prepared.digest)
    options = _options(planned)  # a collective: no host begins a journal before the one that has it all
    tell(
        "transfer",
        f"buffers of {bytes_in_words(options.buffer_nbytes)} a worker; threads that write: "
        f"{options.threads}, that read: {options.readers}",
    )
    with progress(_nbytes_here(planned, options, known), planned.backend) as show:
        if planned.backend == "file":
            with telling(show) as advance:
                worker = planned.workers.start
                results = [transfer_here(planned.prepared, stage, options, advance, known, worker)]
        else:
            from eplb_cli.run.in_workers import move_in_workers

            results = move_in_workers(planned, stage, options, known, show)
    return _together(results, options, began, planned.crew.hosts)


def _nbytes_here(planned: Planned, options: TransferOptions, known: Known) -> int:
    """Bytes that this host writes, and reads back."""
    prepared, new = planned.prepared, planned.prepared.new_places
    is_here = prepared.hosting.node_of_new[new.rank] == planned.crew.hosts.node
    left = np.where(is_here & ~known.written, new.nbytes, 0)
    written = int(left[prepared.pieces.destination].sum())
    return written + (int(left.sum()) if options.digests and options.verify else 0)


def _options(planned: Planned) -> TransferOptions:
    """The options of the transfer, found from the machine and the rows where they are left open."""
    request, prepared, workers = planned.request, planned.prepared, len(planned.workers)
    hosts = planned.crew.hosts
    needed = largest_chunk_nbytes(prepared.pieces, prepared.hosting)
    buffer_nbytes = request.buffer_nbytes or default_buffer_nbytes(needed, workers)
    return TransferOptions(
        # What is sent together hangs on it: the same on all hosts, whatever memory each of them has.
        min(map(int, hosts.gather(b"%d" % buffer_nbytes, "buffers"))),
        request.threads or writing_threads(workers, prepared.output.num_own),
        request.threads or reading_threads(workers),
        digests=request.digests,
        verify=request.verify and request.digests,
        durable=request.durable,
        # Forgetting costs 0.2 s a GB, so it is done only where the system would have to do it anyway.
        keep_cache=prepared.checkpoint.shards.nbytes + prepared.output.own_nbytes < available_memory_nbytes(),
    )


def _together(results: list[TransferResult], options: TransferOptions, began: float, hosts: Hosts) -> Moved:
    """Put the workers' results of all hosts together: each digest is the same in all that have it, else zero.

    No clock of one host is compared with that of another: each says how long after its own beginning.
    """
    told = [
        {
            "ended": {stage: result.ended[stage] - began for stage in SPANS},
            "activity": asdict(result.activity),
            "numbers": [result.wire_nbytes, result.peak_rss_nbytes, result.peak_anonymous_nbytes],
        }
        for result in results
    ]
    everyone = [worker for said in hosts.gather_words({"of": told}, "workers") for worker in said["of"]]
    ended = [0.0, *(max(worker["ended"][stage] for worker in everyone) for stage in SPANS)]
    wire, peak_rss, peak_anonymous = zip(*(worker["numbers"] for worker in everyone), strict=True)
    return Moved(
        hosts.union(np.bitwise_or.reduce([result.old_digests for result in results]), "digests of SRC"),
        hosts.union(np.bitwise_or.reduce([result.new_digests for result in results]), "digests of DST"),
        options,
        {stage: after - before for stage, (before, after) in zip(SPANS, pairwise(ended), strict=True)},
        summarize([Activity(**worker["activity"]) for worker in everyone]),
        sum(wire),
        list(peak_rss),
        list(peak_anonymous),
    )
