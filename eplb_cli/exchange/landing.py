"""Where what a worker sends lies with the one that receives it, as the receiver's own schedule has it.

A message is laid out alike on both sides. So the receiver's buffer of a chunk has, before the message of
a worker, those of the workers before it, and all that has to be known of these is how long they are.
"""

from __future__ import annotations

import numpy as np

from eplb_cli.arrays import Int, begins, runs, sum_by
from eplb_cli.exchange.units import part_room
from eplb_cli.exchange.wire import Schedule, Wire, pair_by_group


def landing(wire: Wire, schedule: Schedule) -> Int:
    """(N,) for each parcel of `schedule.sends`, its position in the receiver's buffer for the chunk.

    The work is that of all parts of all messages, a part being what one unit has for one pair of workers;
    no other worker's schedule is made.
    """
    sends = schedule.sends
    message = sends.chunk * wire.num_workers + sends.peer
    first, count = runs(begins(message))
    begin = np.repeat(sends.position[first], count)
    position: Int = sends.position - begin + _nbytes_before(wire, schedule.worker)[message]
    return position


def _nbytes_before(wire: Wire, worker: int) -> Int:
    """(chunks * W,) bytes of messages to each worker from the workers before `worker`, itself included."""
    earlier = np.flatnonzero(wire.sender < worker)
    pair = wire.receiver[earlier] * wire.num_workers + wire.sender[earlier]
    key = np.sort(wire.group[earlier] * wire.num_workers**2 + pair)
    first, num_rows = runs(begins(key))
    group, pair = np.divmod(key[first], wire.num_workers**2)
    units = wire.units
    unit, part = pair_by_group(wire.unit_group, group)
    room = part_room(num_rows[part] * units.nbytes[unit])
    message = units.chunk[unit] * wire.num_workers + pair[part] // wire.num_workers
    return sum_by(message, room, units.num_chunks * wire.num_workers)
