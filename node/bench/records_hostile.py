"""`scripts/bench records`: what the worst records that an author can sign cost whoever reads them.

python -m node.bench.records_hostile NAME

Each is made so that its signature and shape are good and reading it is as dear as it can be: a
record of the largest size that is kept.  One process for each, so that its peak of memory is its
own.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from crdt.record import (
    MAX_SNAPSHOT_BYTES,
    MAX_TAIL,
    MAX_TAIL_BYTES,
    Record,
    first_entry,
    next_entry,
)
from crdt.replica import Replica
from crdt.schema import NoView
from node.bench.records_authors import RUN, signer_of
from protocol.errors import Malformed

ROOM = 64
"""Left free in an update, for its head and its last item."""
RUNS = 5


def number(value: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def item(key: bytes, value: bytes = b"") -> bytes:
    """A value that is set in the record's map."""
    return b"\x28\x01\x01r" + number(len(key)) + key + b"\x01\x74" + number(len(value)) + value


def update(clients: Sequence[tuple[int, Sequence[bytes]]]) -> bytes:
    """An update that sets these items, in the name of these clients."""
    blocks = b"".join(
        number(len(items)) + number(client) + b"\0" + b"".join(items) for client, items in clients
    )
    return number(len(clients)) + blocks + b"\0"


def fitting(items: Iterator[bytes], most: int) -> list[bytes]:
    """The first of them that an update of `most` bytes has room for."""
    left, found = most - ROOM, []
    while (left := left - len(one := next(items))) >= 0:
        found.append(one)
    return found


def many_keys(most: int, start: int) -> bytes:
    """As many keys as fit."""
    keys = (item(b"%02x%03x" % (start, n)) for n in itertools.count())
    return update([(start + 1, fitting(keys, most))])


def many_clients(most: int, start: int) -> bytes:
    """One key, set by as many clients at once as fit: refused."""
    count = len(fitting(itertools.repeat(item(b"a") + bytes(5)), most))
    return update([((start << 16) + n, [item(b"a")]) for n in range(count, 0, -1)])


def overwritten(most: int, start: int) -> bytes:
    """One key, set again and again by one client, each time beside the one before."""
    client = number(start + 1)
    links = (b"\xa8" + client + number(n) + b"\x01\x74\0" for n in itertools.count())
    return update([(start + 1, fitting(itertools.chain([item(b"a")], links), most))])


def gaps(most: int, start: int) -> bytes:
    """Items that wait for ones before them which never come."""
    link = b"\xa8" + number(7) + number(1 << 20) + b"\x01\x74\0"
    return update([(start + 1, fitting(itertools.repeat(link), most))])


def deletions(most: int, start: int) -> bytes:
    """Ranges of what nobody ever set."""
    ranges = fitting((number(3 * n + (1 << 20)) + b"\1" for n in itertools.count()), most)
    return b"\0\1" + number(start + 1) + number(len(ranges)) + b"".join(ranges)


def large_value(most: int, start: int) -> bytes:
    """One value of nearly all bytes."""
    return update([(start + 1, [item(b"a", bytes(most - ROOM))])])


KINDS: dict[str, Callable[[int, int], bytes]] = {
    kind.__name__: kind
    for kind in (many_keys, many_clients, overwritten, gaps, deletions, large_value)
}


def record_of(kind: Callable[[int, int], bytes], tail: int) -> Record:
    """A record as large as they may be: a full snapshot, and a tail of so many updates."""
    signer = signer_of(0)
    last = first_entry(signer, RUN, 1, kind(MAX_SNAPSHOT_BYTES, 0))
    record = Record(signer.peer).merged(last)
    for seq in range(1, tail + 1):
        following = next_entry(signer, RUN, last, kind(MAX_TAIL_BYTES // tail, seq))
        assert following is not None
        record, last = record.merged(following), following
    return record


def resident(name: str) -> int:
    """KiB of memory: "VmRSS" now, "VmHWM" at its peak (Linux, proc(5))."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def measured(kind: Callable[[int, int], bytes]) -> dict[str, str | float]:
    """Seconds of processor to take it in and to read it, and the memory that this takes."""
    record = record_of(kind, MAX_TAIL)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak until here
    before = resident("VmRSS")
    merging, reading, reason = [], [], ""
    for _ in range(RUNS):
        replica = Replica(RUN)
        began = time.process_time()
        for entry in record.chain:
            replica.merge(entry)
        merged = time.process_time()
        view = replica.view(record.author)
        assert isinstance(view, NoView)
        reason = view.reason.removeprefix("unreadable: ")
        reading.append(time.process_time() - merged)
        merging.append(merged - began)
    return {
        "record": kind.__name__.replace("_", " "),
        "bytes": record.size_bytes,
        "merge_ms": 1e3 * min(merging),
        "read_ms": 1e3 * min(reading),
        "memory_kib": resident("VmHWM") - before,
        "view": reason[:60],
    }


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(measured(KINDS[sys.argv[1]])))
    except Malformed as error:
        sys.exit(str(error))
