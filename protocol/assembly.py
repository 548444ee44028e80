"""The chunks of a transfer on their way, and the requests for their pieces.

A chunk is fresh, then open (begun by one donor, its owner), then being checked, then gone from
here: on disk.  It is assembled from units of 128 KiB; a piece is a few of them.  Used by
`protocol.transfer` alone, which says what is asked for and when.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum

from protocol.donors import UNIT_BYTES, Donor
from protocol.ids import PeerId
from protocol.manifest import Manifest

MAX_OPEN_CHUNKS = 32
"""Begun and not yet on disk: as many MiB of memory."""
MAX_ASKED = 2
"""Donors that are asked for the same piece, at the end."""
OVERDUE = 2.0
"""A piece that takes so many times as long as was expected is late."""


class Unit(Enum):
    """128 KiB of a chunk."""

    MISSING = 0
    ASKED = 1
    CAME = 2


@dataclass(slots=True)
class Open:
    """A chunk that was begun."""

    units: list[Unit]
    owner: PeerId | None
    """Who goes on with it; None: anybody may."""
    givers: set[PeerId] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Piece:
    """A few units of a chunk, one after the other."""

    chunk: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Request:
    """A piece that a donor was asked for."""

    donor: PeerId
    piece: Piece
    size_bytes: int
    at: float
    expected_at: float

    def is_late(self, now: float) -> bool:
        return now > self.at + OVERDUE * (self.expected_at - self.at)


class Assembly:
    """The chunks that are not on disk yet."""

    def __init__(self, manifest: Manifest, held: Collection[int], rng: random.Random) -> None:
        self._manifest = manifest
        known = set(held)
        order = [chunk for chunk in range(manifest.num_chunks) if chunk not in known]
        rng.shuffle(order)
        self._fresh = dict.fromkeys(order)
        self._open: dict[int, Open] = {}
        self.checking: dict[int, frozenset[PeerId]] = {}
        """Chunks that are whole, and who gave them."""
        self._alone: set[int] = set()
        """Were wrong, and several had given: one donor gives all of it now."""
        self.requests: dict[int, Request] = {}

    @property
    def missing(self) -> int:
        """Chunks that are not on disk yet."""
        return len(self._fresh) + len(self._open) + len(self.checking)

    @property
    def is_ending(self) -> bool:
        """Whether every chunk was begun."""
        return not self._fresh

    def size_bytes(self, piece: Piece) -> int:
        """Bytes of a piece; the last of a blob is shorter."""
        left = self._manifest.length(piece.chunk) - piece.first * UNIT_BYTES
        return min(piece.count * UNIT_BYTES, left)

    # --- what happened ----------------------------------------------------------------------

    def asked(self, id: int, request: Request) -> None:
        """A donor was asked."""
        self.requests[id] = request
        self._mark(request.piece, Unit.ASKED)

    def came(self, request: Request) -> bool:
        """A piece is here, and is asked for no more; whether the chunk is whole now."""
        number = request.piece.chunk
        chunk = self._open[number]
        self._mark(request.piece, Unit.CAME)
        chunk.givers.add(request.donor)
        if any(unit is not Unit.CAME for unit in chunk.units):
            return False
        del self._open[number]
        self.checking[number] = frozenset(chunk.givers)
        return True

    def gave_back(self, request: Request) -> list[int]:
        """The piece did not come; the requests that are not wanted any more because of it."""
        number = request.piece.chunk
        if number not in self._open or self.rivals(request.piece):
            return []
        chunk = self._open[number]
        self._mark(request.piece, Unit.MISSING)
        if chunk.owner == request.donor:
            chunk.owner = None
        if number in self._alone or all(unit is Unit.MISSING for unit in chunk.units):
            self._renew(number)
            return [id for id, other in self.requests.items() if other.piece.chunk == number]
        return []

    def disown(self, peer: PeerId) -> None:
        """`peer` goes on with nothing."""
        for chunk in self._open.values():
            if chunk.owner == peer:
                chunk.owner = None

    def checked(self, number: int, *, is_right: bool) -> frozenset[PeerId]:
        """A chunk is on disk, or to be fetched again; who gave it."""
        givers = self.checking.pop(number)
        if is_right:
            self._alone.discard(number)
        else:
            self._fresh = {number: None, **self._fresh}
            if len(givers) > 1:
                self._alone.add(number)
        return givers

    def rivals(self, piece: Piece) -> list[int]:
        """The requests for this piece.  Those for other pieces have no unit of it."""
        return [id for id, other in self.requests.items() if other.piece == piece]

    def _mark(self, piece: Piece, unit: Unit) -> None:
        units = self._open[piece.chunk].units
        units[piece.first : piece.first + piece.count] = [unit] * piece.count

    def _renew(self, number: int) -> None:
        del self._open[number]
        self._fresh = {number: None, **self._fresh}

    # --- what to ask for --------------------------------------------------------------------

    def next_piece(self, donor: Donor, donors: Collection[Donor], now: float) -> Piece | None:
        """What this donor is to be asked for next, if anything."""
        for owner in (donor.peer, None):
            for number in [n for n, chunk in self._open.items() if chunk.owner == owner]:
                if piece := self._rest_of(number, donor):
                    return piece
        rarest = self._rarest(donor, donors)
        if rarest is not None:
            del self._fresh[rarest]
            count = -(-self._manifest.length(rarest) // UNIT_BYTES)
            self._open[rarest] = Open([Unit.MISSING] * count, donor.peer)
            return self._rest_of(rarest, donor)
        return self._last_piece(donor, now) if self.is_ending else None

    def _rest_of(self, number: int, donor: Donor) -> Piece | None:
        """The first of the missing units of an open chunk."""
        chunk = self._open[number]
        if Unit.MISSING not in chunk.units or not donor.has(number):
            return None
        first = end = chunk.units.index(Unit.MISSING)
        while end < len(chunk.units) and chunk.units[end] is Unit.MISSING:
            end += 1
        chunk.owner = chunk.owner or donor.peer
        return Piece(number, first, min(end - first, donor.piece_units))

    def _rarest(self, donor: Donor, donors: Collection[Donor]) -> int | None:
        """Of the fresh chunks that it has, the one that the fewest others have."""
        if len(self._open) + len(self.checking) >= MAX_OPEN_CHUNKS:
            return None
        partial = [d for d in donors if d.is_partial]
        able = (chunk for chunk in self._fresh if donor.has(chunk))
        if not partial:
            return next(able, None)
        return min(able, key=lambda chunk: sum(d.has(chunk) for d in partial), default=None)

    def _last_piece(self, donor: Donor, now: float) -> Piece | None:
        """The end game: what nobody was asked for yet, or what is late."""
        able = [n for n in self._open if donor.has(n) and n not in self._alone]
        for number in able:
            if piece := self._rest_of(number, donor):
                return piece
        late = [
            request
            for request in self.requests.values()
            if request.piece.chunk in able and self._may_help(donor, request, now)
        ]
        return max(late, key=lambda request: request.expected_at).piece if late else None

    def _may_help(self, donor: Donor, request: Request, now: float) -> bool:
        """Whether the piece of this request may be asked of `donor`, too."""
        if request.donor == donor.peer or request.piece.count > donor.piece_units:
            return False
        mine = now + donor.takes_s(request.size_bytes)
        is_faster = donor.rate is not None and mine < request.expected_at
        is_wanted = is_faster or request.is_late(now)
        return is_wanted and len(self.rivals(request.piece)) < MAX_ASKED
