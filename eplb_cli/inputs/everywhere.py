"""SRC as all hosts of a run see it: each says what lies there, and all have the same shards then."""

from __future__ import annotations

from pathlib import Path

from eplb_cli.checkpoint.layout import Layout
from eplb_cli.checkpoint.pooled import pool, provide
from eplb_cli.checkpoint.seen import Seen, look
from eplb_cli.checkpoint.shards import Shards, open_pool, open_shards
from eplb_cli.hosts.hosts import Hosts


def open_everywhere(path: Path, layout: str | Layout, hosts: Hosts) -> Shards:
    """The shards that hosts see together; a collective, or `open_shards` for one host.

    Raises:
        CheckpointError: as `open_shards`; EP237, two hosts have different files of one name.
        BytesError: as `open_shards`.
        EplbError: another host cannot read what is there.
    """
    if hosts.count == 1:
        return open_shards(path, layout)
    told = hosts.gather(look(path).to_bytes(), "SRC")
    seens = [Seen.from_bytes(said, hosts.name_of(node)) for node, said in enumerate(told)]
    found = pool(path, seens, hosts.node, hosts.names)
    return open_pool(found.with_contents(hosts.gather(provide(found), "files beside SRC")), layout)
