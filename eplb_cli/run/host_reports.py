"""What each of several hosts has done, for the report that all of them have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from eplb_cli.arrays import sum_by
from eplb_cli.hosts.hosts import Hosts
from eplb_cli.output.journal import Known
from eplb_cli.output.prepared import Prepared
from eplb_cli.report.report import HostReport, Report
from eplb_cli.transfer.traffic import cross_host_nbytes


def with_hosts(
    report: Report, prepared: Prepared, hosts: Hosts, known: Known, outputs: Sequence[str]
) -> Report:
    """The report of a run with the hosts that took part.

    Args:
        known: what an earlier run had done, which has not travelled again.
        outputs: DST of each host.
    """
    if report.run is None:
        return report
    hosting, files = prepared.hosting, prepared.output.files
    crossing = cross_host_nbytes(prepared.pieces, hosting, known.written[prepared.pieces.destination])
    node_of_file = hosting.node_of_new[[file.rank for file in files]]
    written = sum_by(node_of_file, np.array([file.nbytes for file in files], np.int64), hosts.count)
    reports = [
        HostReport(
            node,
            hosts.names[node],
            int((hosting.node == node).sum()),
            np.flatnonzero(hosting.node_of_old == node).tolist(),
            np.flatnonzero(hosting.node_of_new == node).tolist(),
            outputs[node],
            int(written[node]),
            int(crossing[node].sum()),
            int(crossing[:, node].sum()),
        )
        for node in range(hosts.count)
    ]
    run = replace(report.run, cross_host_bytes=int(crossing.sum()), hosts=reports, host=hosts.node)
    return replace(report, run=run)
