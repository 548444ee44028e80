"""Rounds that are about to be closed, on disk before the worker can save them.

A round's tokens are counted in our record, and its weights are in the worker's snapshot: two files
that no kill -9 can keep in step.  So what a round will count is noted here first.  After a
restart the snapshot says which rounds came to be; those that the record lacks are counted from
here, and a round that has to be trained again is not counted again (`Totals.counted_to`).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from crdt.schema import Content
from node.disk_thread import DiskThread
from node.files import write_atomically
from protocol import check, codec
from protocol.errors import ConfigError, Malformed
from protocol.ids import Round
from protocol.limits import MAX_ROUND, MAX_TOKENS

log = logging.getLogger(__name__)

MAX_DUES = 64
"""Rounds that are kept.  A record is on disk a second after a round; nobody has rounds shorter
than 16 ms."""
MAX_FILE_BYTES = 64 * MAX_DUES
"""A round takes 20 bytes."""


@dataclass(frozen=True, slots=True)
class Due:
    """What a round will count."""

    closes: Round
    ends_in: Round
    """A snapshot of this round or a later one holds it."""
    tokens: int
    alone: bool

    def __post_init__(self) -> None:
        check.integer("closes", self.closes, 0, MAX_ROUND)
        check.integer("ends_in", self.ends_in, self.closes + 1, MAX_ROUND + 1)
        check.integer("tokens", self.tokens, 0, MAX_TOKENS)


@dataclass(frozen=True, slots=True)
class _Dues:
    """The file."""

    dues: tuple[Due, ...]

    def __post_init__(self) -> None:
        check.items("dues", self.dues, MAX_DUES)


class Tally:
    """The file of one run.  Belongs to one event loop."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a broken file counts for nothing, and the log says so."""
        self._path = path
        self._dues: tuple[Due, ...] = ()
        self._is_new = False
        """There is something that is not on disk."""
        self._writing = asyncio.Lock()
        self._thread = DiskThread("tally")
        try:
            if path.exists():
                data = path.read_bytes()
                self._dues = codec.decode(_Dues, data, max_bytes=MAX_FILE_BYTES).dues
        except (Malformed, OSError) as error:
            log.warning("tally not read: %s is broken (%s); a round may be missing", path, error)

    def add(self, due: Due) -> None:
        """Note it in memory; it replaces what was noted of the same round."""
        others = (old for old in self._dues if old.closes != due.closes)
        self._dues = (*others, due)[-MAX_DUES:]
        self._is_new = True

    async def flush(self) -> None:
        """Have all on disk; a disk that refuses costs the count of a round if we are killed now."""
        async with self._writing:
            if self._is_new:
                self._is_new = False
                data = codec.encode(_Dues(self._dues))
                loop = asyncio.get_running_loop()
                try:
                    await loop.run_in_executor(self._thread, write_atomically, self._path, data)
                except ConfigError as error:
                    log.warning("tally not saved: %s", error)

    def drop(self, closes: Round) -> None:
        """The round is not closed that way."""
        self._dues = tuple(due for due in self._dues if due.closes != closes)
        self._is_new = True

    def forget(self) -> None:
        """All of it belongs to weights that are given up."""
        self._dues, self._is_new = (), True

    def settle(self, round: Round) -> tuple[Due, ...]:
        """What our own snapshot of `round` holds; the rest never came to be, and is dropped."""
        self._dues = tuple(due for due in self._dues if due.ends_in <= round)
        self._is_new = True
        return tuple(sorted(self._dues, key=lambda due: due.closes))


def counted(content: Content, dues: tuple[Due, ...]) -> Content:
    """`content` with those of the rounds, in their order, that its totals lack."""
    totals = content.totals
    for due in dues:
        totals = totals.after(due.closes, due.tokens, alone=due.alone, half=False)
    return replace(content, totals=totals)
