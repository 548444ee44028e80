"""What is known of one donor of a blob: what it holds, how fast it is, and how often it failed.

From that follow how much may be under way from it at once, how long a piece may take, and when it
is no longer worth asking.  Used by `protocol.transfer` alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.ids import PeerId
from protocol.limits import KIB
from protocol.manifest import CHUNK_BYTES

UNIT_BYTES = 128 * KIB
"""Pieces are whole units of a chunk, so that what one donor left undone another can do."""
DIRECT_UNITS = 2
"""Units in a piece from a peer with a direct link: 256 KiB, four of them a chunk."""
RELAYED_UNITS = 1
MAX_DIRECT_BYTES = CHUNK_BYTES
"""Under way from one donor at most: so much is lost if it dies, and no more."""
MAX_RELAYED_BYTES = 2 * UNIT_BYTES
"""A relay is somebody's gift: what is under way fills its queue."""
FIRST_BYTES = 2 * DIRECT_UNITS * UNIT_BYTES
"""Under way from a donor whose rate is not known."""
LEAD_S = 0.25
"""What is under way lasts so long and a round trip: the donor is never idle, and a slow one holds
up little.  A guess."""
RATE_SHARE = 0.3
"""Of a new sample in the rate."""
FIRST_DEADLINE_S = 20.0
"""Of a piece from a donor whose rate is not known, and of any at most as long as this again and
again; 13 KB/s."""
LEAST_DEADLINE_S = 5.0
LATE = 4.0
"""A piece may take so many times as long as the donor's rate says."""
MAX_FAILURES = 3
"""In a row, that is, without a right chunk in between: one more and the donor is not asked again.
What fails at once counts once."""
FIRST_REST_S = 0.25
"""A donor is left alone after a failure; twice as long each time.  A redial takes a few round
trips."""
LONGEST_REST_S = 4.0
BUSY_S = 60.0
"""A donor that says busy for so long is given up.  A guess."""


@dataclass(slots=True)
class Donor:
    """One peer that holds the blob, or some of it."""

    peer: PeerId
    held: frozenset[int] | None
    """Chunks; None: all."""
    is_relayed: bool
    round_trip_s: float
    rate: float | None = None
    """Bytes a second; None: nothing has come yet."""
    in_flight_bytes: int = 0
    failures: int = 0
    rests_until: float = 0.0
    polled_at: float = 0.0
    """When it was asked last what it holds."""
    lacks: set[int] = field(default_factory=set)
    """Chunks that it said to hold, and refused."""
    _failed_at: float = -1.0
    _busy_since: float | None = None
    _busy_rests: int = 0
    _came_at: float = 0.0

    def holds(self, held: frozenset[int] | None) -> None:
        """It says what it holds by now."""
        self.held = held
        self.lacks = set()

    @property
    def is_partial(self) -> bool:
        """Whether it may hold more later than it does now."""
        return self.held is not None or bool(self.lacks)

    def has(self, chunk: int) -> bool:
        """Whether it can be asked for this chunk."""
        return (self.held is None or chunk in self.held) and chunk not in self.lacks

    @property
    def piece_units(self) -> int:
        """Units in one piece."""
        return RELAYED_UNITS if self.is_relayed else DIRECT_UNITS

    @property
    def most_bytes(self) -> int:
        """What may be under way at once, by the rate and the round trip."""
        most = MAX_RELAYED_BYTES if self.is_relayed else MAX_DIRECT_BYTES
        if self._busy_since is not None:
            return min(most, self.piece_units * UNIT_BYTES)
        if self.rate is None:
            return min(most, FIRST_BYTES)
        wanted = self.rate * (self.round_trip_s + LEAD_S)
        return min(most, max(int(wanted), self.piece_units * UNIT_BYTES))

    def has_room(self, now: float) -> bool:
        """Whether one more piece may be asked for."""
        most = MAX_RELAYED_BYTES if self.is_relayed else MAX_DIRECT_BYTES
        fits = self.in_flight_bytes + self.piece_units * UNIT_BYTES <= most
        return fits and self.in_flight_bytes < self.most_bytes and now >= self.rests_until

    def takes_s(self, more_bytes: int) -> float:
        """How long what is under way and so much more will take."""
        if self.rate is None:
            return FIRST_DEADLINE_S
        return self.round_trip_s + (self.in_flight_bytes + more_bytes) / self.rate

    def deadline_s(self, more_bytes: int) -> float:
        """How long a piece of so many bytes may take."""
        if self.rate is None:
            return FIRST_DEADLINE_S
        return max(LEAST_DEADLINE_S, min(LATE * self.takes_s(more_bytes), FIRST_DEADLINE_S))

    def came(self, size_bytes: int, asked_at: float, now: float) -> None:
        """A piece came."""
        self._busy_since, self._busy_rests = None, 0
        taken_s = max(now - max(asked_at, self._came_at), 1e-4)
        sample, self._came_at = size_bytes / taken_s, now
        self.rate = sample if self.rate is None else self.rate + RATE_SHARE * (sample - self.rate)

    def failed(self, asked_at: float, now: float) -> bool:
        """A piece did not come; whether that was one failure too many."""
        if asked_at >= self._failed_at:  # else of what failed with the one before
            self.failures += 1
            self._failed_at = now
            self.rests_until = now + min(FIRST_REST_S * 2**self.failures, LONGEST_REST_S)
        return self.failures > MAX_FAILURES

    def was_busy(self, now: float) -> bool:
        """It refused as busy; whether it has for too long."""
        if self._busy_since is None:
            self._busy_since = now
        if now >= self.rests_until:
            self._busy_rests += 1
            self.rests_until = now + min(FIRST_REST_S * 2**self._busy_rests, LONGEST_REST_S)
        return now - self._busy_since > BUSY_S

    def gave_right(self) -> None:
        """A chunk that it gave something of is right."""
        self.failures = 0
