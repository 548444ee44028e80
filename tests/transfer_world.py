"""Donors of a blob under virtual time, for the machine of a transfer: fast, slow, dying, lying."""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field

from protocol.assembly import MAX_ASKED
from protocol.donors import MAX_DIRECT_BYTES, MAX_RELAYED_BYTES
from protocol.envelope import Signer
from protocol.ids import DIGEST_BYTES, PeerId
from protocol.limits import MIB
from protocol.manifest import Manifest
from protocol.transfer import Transfer
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
    PieceCame,
    PieceFailed,
    Poll,
    SearchOver,
    WakeAt,
    Why,
    Woke,
)

PEERS = tuple(Signer(bytes([n]) * 32).peer for n in range(1, 9))
DISK_S = 0.003
MAX_EVENTS = 200_000


def manifest(size_bytes: int) -> Manifest:
    """Of a blob that nobody looks into."""
    chunks = -(-size_bytes // MIB)
    return Manifest(size_bytes, b"d" * (chunks * DIGEST_BYTES))


@dataclass(slots=True, kw_only=True)
class Donor:
    """How one peer behaves."""

    rate: float = 10e6
    """Bytes a second, for all that is asked of it together."""
    round_trip_s: float = 0.02
    held: frozenset[int] | None = None
    is_relayed: bool = False
    found_at: float = 0.0
    dies_at: float = float("inf")
    """From then on nothing comes; it shows when the link breaks, a second later."""
    freezes_at: float = float("inf")
    """From then on nothing comes, and nothing says so but a deadline."""
    lies: frozenset[int] = frozenset()
    """Chunks that it gives wrong bytes of."""
    refuses: frozenset[int] = frozenset()
    """Chunks that it says to hold, and does not give."""
    busy_until: float = 0.0
    free_at: float = 0.0
    asked: list[tuple[float, int, int]] = field(default_factory=list)
    """When, offset, length."""


class World:
    """One transfer among donors; `run` it to its end."""

    def __init__(self, size_bytes: int, donors: dict[PeerId, Donor], seed: int = 0) -> None:
        self.manifest = manifest(size_bytes)
        self.donors = donors
        self.machine = Transfer(self.manifest, (), random.Random(seed))
        self.now = 0.0
        self.on_disk: set[int] = set()
        self.blamed: list[PeerId] = []
        self.in_flight: dict[int, Ask] = {}
        self.lost_bytes: dict[PeerId, int] = {}
        """Under way from each donor when it died or froze."""
        self.came: dict[int, Ask] = {}
        self.givers: dict[int, dict[int, PeerId]] = {}
        """By chunk and offset."""
        self.fetched_bytes = 0
        """Of pieces that were kept."""
        self.most_in_flight: dict[PeerId, int] = {}
        self._queue: list[tuple[float, int, Event]] = []
        self._order = itertools.count()

    def run(self) -> bool:
        """To the end; whether all of the blob is on disk."""
        for peer, donor in self.donors.items():
            self._later(donor.found_at, self._found(peer))
        last = max((d.found_at for d in self.donors.values()), default=0.0)
        self._later(last, SearchOver())
        self._do(self.machine.start(0.0))
        for _ in range(MAX_EVENTS):
            if self.machine.is_over:
                return self.machine.failure is None
            assert self._queue, "nothing is to come, and it is not over"
            self.now, _, event = heapq.heappop(self._queue)
            self._happen(event)
        raise AssertionError(f"not over after {MAX_EVENTS} events, at {self.now}")

    def _happen(self, event: Event) -> None:
        if isinstance(event, PieceCame | PieceFailed):
            ask = self.in_flight.pop(event.request, None)
            if ask is None:
                return
            if isinstance(event, PieceCame):
                self.came[event.request] = ask
        self._do(self.machine.handle(event, self.now))

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Ask():
                    self._ask(effect)
                case Cancel(request):
                    self.in_flight.pop(request, None)
                    self.came.pop(request, None)
                case Keep(request):
                    ask = self.came.pop(request)
                    self.fetched_bytes += ask.length
                    self.givers.setdefault(ask.chunk, {})[ask.offset] = ask.donor
                case Check(chunk):
                    self._check(chunk)
                case Poll(peer):
                    self._later(self.now + 0.02, self._found(peer))
                case WakeAt(at):
                    assert at > self.now
                    self._later(at, Woke())
                case Blame(peer):
                    self.blamed.append(peer)

    def _ask(self, ask: Ask) -> None:
        donor, now = self.donors[ask.donor], self.now
        assert 0 < ask.length <= self.manifest.length(ask.chunk)
        assert ask.offset // MIB == (ask.offset + ask.length - 1) // MIB == ask.chunk
        assert ask.chunk not in self.on_disk
        assert donor.held is None or ask.chunk in donor.held
        self.in_flight[ask.request] = ask
        alike = [a for a in self.in_flight.values() if a.offset == ask.offset]
        assert len(alike) <= MAX_ASKED
        assert len({a.donor for a in alike}) == len(alike)
        donor.asked.append((now, ask.offset, ask.length))
        under_way = sum(a.length for a in self.in_flight.values() if a.donor == ask.donor)
        self.most_in_flight[ask.donor] = max(under_way, self.most_in_flight.get(ask.donor, 0))
        assert under_way <= (MAX_RELAYED_BYTES if donor.is_relayed else MAX_DIRECT_BYTES)
        if now < donor.busy_until:
            self._later(now + 0.02, PieceFailed(ask.request, Why.BUSY, "busy"))
        elif ask.chunk in donor.refuses:
            self._later(now + 0.02, PieceFailed(ask.request, Why.REFUSED, "not here"))
        else:
            donor.free_at = max(donor.free_at, now) + ask.length / donor.rate
            self._later(*self._outcome(ask, donor))

    def _outcome(self, ask: Ask, donor: Donor) -> tuple[float, Event]:
        at = donor.free_at + donor.round_trip_s
        deadline = self.now + ask.deadline_s
        gone_at = max(self.now, donor.dies_at) + 1.0
        if at <= min(donor.dies_at, donor.freezes_at, deadline):
            return at, PieceCame(ask.request)
        self.lost_bytes.setdefault(ask.donor, 0)
        if min(donor.dies_at, donor.freezes_at) < float("inf"):
            self.lost_bytes[ask.donor] += ask.length
        if donor.dies_at < at and gone_at < deadline:
            return gone_at, PieceFailed(ask.request, Why.GONE, "gone")
        return deadline, PieceFailed(ask.request, Why.GONE, f"nothing within {ask.deadline_s:g} s")

    def _check(self, chunk: int) -> None:
        givers = self.givers.pop(chunk)
        covered = sorted(givers)
        assert covered[0] == chunk * MIB
        is_right = not any(chunk in self.donors[peer].lies for peer in givers.values())
        if is_right:
            self.on_disk.add(chunk)
        self._later(self.now + DISK_S, ChunkChecked(chunk, is_right))

    def _found(self, peer: PeerId) -> Event:
        donor = self.donors[peer]
        if self.now >= donor.dies_at:
            return DonorLost(peer, "gone")
        return DonorFound(peer, donor.held, donor.is_relayed, donor.round_trip_s)

    def _later(self, at: float, event: Event) -> None:
        heapq.heappush(self._queue, (at, next(self._order), event))
