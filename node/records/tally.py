"""Rounds that are about to be closed, on disk before the worker can save them.

A round's tokens are counted in our record, and its weights are in the worker's snapshot: two files
that no kill -9 can keep in step.  So what a round will count is noted here first.  After a
restart the snapshot says which rounds came to be; those that the record lacks are counted from
here, and a round that has to be trained again is not counted again (`Totals.counted_to`).

Rounds trained from a member's weights are new, whatever their numbers, and whoever takes such
weights over is in two files as well.  So they are noted here before the worker gets them: after a
restart its snapshot says whether it did.
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
from protocol.ids import Digest, Round
from protocol.limits import MAX_ROUND, MAX_TOKENS

log = logging.getLogger(__name__)

MAX_DUES = 64
"""Rounds that are kept.  A record is on disk a second after a round; nobody has rounds shorter
than 16 ms."""
MAX_FILE_BYTES = 64 * MAX_DUES
"""A round takes 20 bytes, the start 50."""


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
class Start:
    """A member's weights that were taken over, or are about to be."""

    round: Round
    weights: Digest
    rounds: int | None = None
    """In our totals at that time: with more of them, our record knows of it.  None: it was about
    to be."""

    def __post_init__(self) -> None:
        check.integer("round", self.round, 0, MAX_ROUND + 1)
        check.digest("weights", self.weights)
        if self.rounds is not None:
            check.integer("rounds", self.rounds, 0, MAX_ROUND)


@dataclass(frozen=True, slots=True)
class Noted:
    """The file."""

    dues: tuple[Due, ...] = ()
    start: Start | None = None

    def __post_init__(self) -> None:
        check.items("dues", self.dues, MAX_DUES)


class Tally:
    """The file of one run.  Belongs to one event loop."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a broken file counts for nothing, and the log says so."""
        self._path = path
        self._noted = Noted()
        self._is_new = False
        """There is something that is not on disk."""
        self._writing = asyncio.Lock()
        self._thread = DiskThread("tally")
        try:
            if path.exists():
                data = path.read_bytes()
                self._noted = codec.decode(Noted, data, max_bytes=MAX_FILE_BYTES)
        except (Malformed, OSError) as error:
            log.warning("tally not read: %s is broken (%s); a round may be missing", path, error)

    def add(self, due: Due) -> None:
        """Note it in memory; it replaces what was noted of the same round."""
        others = (old for old in self._noted.dues if old.closes != due.closes)
        self._note(replace(self._noted, dues=(*others, due)[-MAX_DUES:]))

    async def flush(self) -> None:
        """Have all on disk; a disk that refuses costs the count of a round if we are killed now."""
        async with self._writing:
            if self._is_new:
                self._is_new = False
                data = codec.encode(self._noted)
                loop = asyncio.get_running_loop()
                try:
                    await loop.run_in_executor(self._thread, write_atomically, self._path, data)
                except ConfigError as error:
                    log.warning("tally not saved: %s", error)

    def drop(self, closes: Round) -> None:
        """The round is not closed that way."""
        dues = tuple(due for due in self._noted.dues if due.closes != closes)
        self._note(replace(self._noted, dues=dues))

    def settle(self, round: Round) -> tuple[Due, ...]:
        """What our own snapshot of `round` holds; the rest never came to be, and is dropped."""
        self.stay()
        dues = tuple(due for due in self._noted.dues if due.ends_in <= round)
        self._note(replace(self._noted, dues=dues))
        return tuple(sorted(dues, key=lambda due: due.closes))

    # --- weights of members -----------------------------------------------------------------

    def expect(self, round: Round, weights: Digest) -> None:
        """A worker is about to get these weights of a member; `flush` before it does."""
        self._note(replace(self._noted, start=Start(round, weights)))

    def stay(self) -> None:
        """What a worker was about to get it did not take."""
        if self._noted.start and self._noted.start.rounds is None:
            self._note(replace(self._noted, start=None))

    def has_begun(self, round: Round, weights: Digest) -> bool:
        """Whether a worker that stands there has what it was about to get."""
        return self._noted.start == Start(round, weights)

    def begin(self, round: Round, weights: Digest) -> None:
        """A worker has these weights; what was noted belongs to some that are given up."""
        self._note(Noted(start=Start(round, weights)))

    def begun(self, content: Content) -> Content:
        """`content` with the newest start, unless it has it already."""
        start = self._noted.start
        if start is None or (start.rounds is not None and content.totals.rounds > start.rounds):
            return content
        self._note(replace(self._noted, start=replace(start, rounds=content.totals.rounds)))
        return content.with_start(start.round)

    def _note(self, noted: Noted) -> None:
        """In memory."""
        self._noted, self._is_new = noted, True


def counted(content: Content, dues: tuple[Due, ...]) -> Content:
    """`content` with those of the rounds, in their order, that its totals lack."""
    totals = content.totals
    for due in dues:
        totals = totals.after(due.closes, due.tokens, alone=due.alone, half=False)
    return replace(content, totals=totals)
