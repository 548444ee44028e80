"""The transfer of one blob: whom to ask for which piece, and what to do when one fails.

A machine: `handle` takes what happened and the time, and says what to do.  It never sees a byte.
A chunk is taken on by one donor, the rarest first, and fetched in pieces; what a donor leaves
undone another goes on with, so a donor that dies costs the pieces that were under way from it, a
chunk at most.  When no chunk is left to be begun, idle donors help with those under way, and what
is late is asked of a second one.

A chunk with wrong bytes is blamed on its donor if there was one; of several nobody knows which, and
the chunk is fetched again from one alone.  Source: rarest first and the end game are BitTorrent's,
https://www.bittorrent.org/bittorrentecon.pdf
"""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import assert_never

from protocol.assembly import Assembly, Request
from protocol.donors import UNIT_BYTES, Donor
from protocol.ids import PeerId
from protocol.manifest import CHUNK_BYTES, Manifest
from protocol.transfer_steps import (
    Ask,
    Blame,
    Cancel,
    Check,
    ChunkChecked,
    DonorFound,
    DonorLost,
    Effect,
    Event,
    Keep,
    LinkChanged,
    PieceCame,
    PieceFailed,
    Poll,
    SearchOver,
    WakeAt,
    Why,
    Woke,
)

MAX_DONORS = 16
"""Asked at once; each costs a stream and a chunk under way."""
POLL_S = 2.0
"""Between two questions what a donor that holds only some chunks holds by now."""
STALL_S = 30.0
"""Nothing came for so long and nothing is under way: the transfer is given up.  A guess: a donor
that is started again is back before."""
LOOK_S = 0.25
"""Between two looks for what is late, once every chunk was begun."""


class Transfer:
    """One transfer, until `is_over`: then all of it is on disk, or `failure` says why not."""

    def __init__(self, manifest: Manifest, held: Collection[int], rng: random.Random) -> None:
        """
        Args:
            held: chunks that are on disk already, and right.
            rng: in which order chunks are taken that are equally rare.
        """
        self._chunks = Assembly(manifest, held, rng)
        self._donors: dict[PeerId, Donor] = {}
        self._reasons: dict[PeerId, str] = {}
        """Why donors are not asked any more."""
        self._liars: set[PeerId] = set()
        self._next_id = 0
        self._is_search_over = False
        self._moved_at = 0.0
        """When a piece came last."""
        self.is_over = False
        self.failure: str | None = None
        """Once it is over: why the blob is not here."""
        self._effects: list[Effect] = []

    def start(self, now: float) -> list[Effect]:
        """What to do first."""
        self._moved_at = now
        return self._advanced(now)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What to do about it."""
        if self.is_over:
            return []
        match event:
            case DonorFound():
                self._found(event, now)
            case DonorLost(peer, reason):
                self._drop(peer, reason)
            case LinkChanged(peer, is_relayed):
                if donor := self._donors.get(peer):
                    donor.is_relayed = is_relayed
            case PieceCame(id):
                self._came(id, now)
            case PieceFailed(id, why, reason):
                self._failed(id, why, reason, now)
            case ChunkChecked(chunk, is_right):
                self._checked(chunk, is_right)
            case SearchOver():
                self._is_search_over = True
            case Woke():
                pass
            case _:
                assert_never(event)
        return self._advanced(now)

    # --- facts ------------------------------------------------------------------------------

    def _found(self, event: DonorFound, now: float) -> None:
        peer = event.peer
        if peer in self._reasons:
            return
        if donor := self._donors.get(peer):
            donor.holds(event.held)
        elif len(self._donors) < MAX_DONORS:
            donor = Donor(peer, event.held, event.is_relayed, event.round_trip_s)
            self._donors[peer] = donor
        else:
            return
        donor.polled_at = now

    def _came(self, id: int, now: float) -> None:
        request = self._ended(id)
        if request is None:
            return
        self._donors[request.donor].came(request.size_bytes, request.at, now)
        self._moved_at = now
        for rival in self._chunks.rivals(request.piece):
            self._cancel(rival)
        self._effects.append(Keep(id))
        if self._chunks.came(request):
            self._effects.append(Check(request.piece.chunk))

    def _failed(self, id: int, why: Why, reason: str, now: float) -> None:
        request = self._ended(id)
        if request is None:
            return
        self._give_back(request)
        donor = self._donors[request.donor]
        match why:
            case Why.WRONG:
                is_over = True
            case Why.BUSY:
                is_over = donor.was_busy(now)
            case _:
                is_over = donor.failed(request.at, now)
        if is_over:
            self._drop(donor.peer, reason)
        elif why is Why.REFUSED:
            donor.lacks.add(request.piece.chunk)
            self._poll(donor, now)

    def _checked(self, chunk: int, is_right: bool) -> None:
        givers = self._chunks.checked(chunk, is_right=is_right)
        if is_right:
            for peer in givers & self._donors.keys():
                self._donors[peer].gave_right()
        elif len(givers) == 1 and not givers & self._liars:
            (peer,) = givers
            reason = f"sent bytes that are not chunk {chunk} of the blob"
            self._liars.add(peer)
            self._effects.append(Blame(peer, reason))
            self._drop(peer, reason)

    def _drop(self, peer: PeerId, reason: str) -> None:
        """Never ask it again."""
        self._reasons[peer] = reason
        if peer not in self._donors:
            return
        for id in [id for id, each in self._chunks.requests.items() if each.donor == peer]:
            if request := self._cancel(id):
                self._give_back(request)
        self._chunks.disown(peer)
        del self._donors[peer]

    # --- requests ---------------------------------------------------------------------------

    def _ended(self, id: int) -> Request | None:
        """A request that is over; None: it was cancelled before."""
        request = self._chunks.requests.pop(id, None)
        if request is not None:
            self._donors[request.donor].in_flight_bytes -= request.size_bytes
        return request

    def _cancel(self, id: int) -> Request | None:
        request = self._ended(id)
        if request is not None:
            self._effects.append(Cancel(id))
        return request

    def _give_back(self, request: Request) -> None:
        for id in self._chunks.gave_back(request):
            self._cancel(id)

    def _ask(self, donor: Donor, now: float) -> bool:
        """Ask for one more piece, if there is one for this donor."""
        piece = self._chunks.next_piece(donor, self._donors.values(), now)
        if piece is None:
            return False
        id, size_bytes = self._next_id, self._chunks.size_bytes(piece)
        self._next_id += 1
        offset = piece.chunk * CHUNK_BYTES + piece.first * UNIT_BYTES
        deadline_s = donor.deadline_s(size_bytes)
        expected_at = now + donor.takes_s(size_bytes)
        self._chunks.asked(id, Request(donor.peer, piece, size_bytes, now, expected_at))
        donor.in_flight_bytes += size_bytes
        self._effects.append(Ask(id, donor.peer, piece.chunk, offset, size_bytes, deadline_s))
        return True

    def _poll(self, donor: Donor, now: float) -> None:
        donor.polled_at = now
        self._effects.append(Poll(donor.peer))

    # --- decisions --------------------------------------------------------------------------

    def _advanced(self, now: float) -> list[Effect]:
        """All that is to be done, from all that is known."""
        if self._chunks.missing:
            for donor in sorted(self._donors.values(), key=_preference):
                while donor.has_room(now) and self._ask(donor, now):
                    pass
            self._look_ahead(now)
        else:
            self.is_over = True
        effects, self._effects = self._effects, []
        return effects

    def _look_ahead(self, now: float) -> None:
        """Be woken for what no event will tell, or give up."""
        chunks, stalled_at = self._chunks, self._moved_at + STALL_S
        if not self._donors and self._is_search_over and not chunks.checking:
            self._give_up("nobody is left to ask")
            return
        if not chunks.requests and not chunks.checking and now >= stalled_at:
            self._give_up(f"nothing came for {STALL_S:g} s")
            return
        times = [stalled_at] if not chunks.requests else []
        if chunks.requests and chunks.is_ending:
            times.append(now + LOOK_S)
        for donor in self._donors.values():
            times.append(donor.rests_until)
            if donor.is_partial:
                if now >= donor.polled_at + POLL_S:
                    self._poll(donor, now)
                times.append(donor.polled_at + POLL_S)
        if later := [at for at in times if at > now]:
            self._effects.append(WakeAt(min(later)))

    def _give_up(self, reason: str) -> None:
        self.is_over = True
        self.failure = "; ".join([reason, *self._reasons.values()])
        self._effects += [Cancel(id) for id in self._chunks.requests]


def _preference(donor: Donor) -> tuple[bool, float]:
    """Direct ones first; of those whose rate is not known, then the fastest."""
    return donor.is_relayed, -(donor.rate if donor.rate is not None else float("inf"))
