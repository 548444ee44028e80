"""Bytes that crossed the network, by kind and in all, and the same of each peer.

Frames are counted at the streams of `node.p2p.streams`, header included; raw bytes at the TCP
socket.  What raw has more is `transport`: Noise, Yamux, multistream, identify, the DHT.  Both
live in the trio thread; a snapshot may be taken from anywhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from protocol.ids import PeerId
from protocol.rpc import Kind

TRANSPORT = "transport"
MAX_PEERS = 512
"""Peers that are counted one by one, the most recent: more than there are connections.  What is
forgotten stays in the sums."""
RATE_S = 5.0
"""A rate forgets what is older, by and by: long enough for the pause between two pieces."""
SMOOTHING = 1 / 8
"""Weight of a new round trip: TCP's, RFC 6298."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes since the start, by kind name and `transport`, and as the socket saw them."""

    up: dict[str, int]
    down: dict[str, int]
    raw_up: int
    raw_down: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerTraffic:
    """Of one peer: bytes of frames by kind name, bytes a second of late, and the round trip."""

    up: dict[str, int]
    down: dict[str, int]
    up_per_s: float
    down_per_s: float
    rtt_s: float | None
    """Of small calls, smoothed; with what the peer takes to answer.  None: there was none yet."""


class Counters:
    """One per node.  Only the trio thread adds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._all = _Bytes()
        self._peers: dict[PeerId, PeerCounters] = {}
        self._raw_up = 0
        self._raw_down = 0

    def of(self, peer: PeerId) -> PeerCounters:
        """Where frames to and from `peer` are counted; trio side."""
        found = self._peers.pop(peer, None) or PeerCounters(self._all, self._clock)
        self._peers[peer] = found
        while len(self._peers) > MAX_PEERS:
            del self._peers[next(iter(self._peers))]
        return found

    def socket_up(self, size_bytes: int) -> None:
        """Bytes were handed to a TCP socket."""
        self._raw_up += size_bytes

    def socket_down(self, size_bytes: int) -> None:
        """Bytes came out of a TCP socket."""
        self._raw_down += size_bytes

    def snapshot(self) -> Traffic:
        """The counts of now."""
        up, raw_up = _with_transport(dict(self._all.up), self._raw_up)
        down, raw_down = _with_transport(dict(self._all.down), self._raw_down)
        return Traffic(up=up, down=down, raw_up=raw_up, raw_down=raw_down)

    def traffic_of(self, peer: PeerId) -> PeerTraffic | None:
        """The counts of one peer; None: it is not counted, or no longer."""
        found = self._peers.get(peer)
        return None if found is None else found.snapshot()


class PeerCounters:
    """One per peer."""

    def __init__(self, all: _Bytes, clock: Callable[[], float]) -> None:
        self._all = all
        self._mine = _Bytes()
        self._up = _Rate()
        self._down = _Rate()
        self._clock = clock
        self._rtt_s: float | None = None

    def frame_up(self, kind: Kind, size_bytes: int) -> None:
        """A frame was written to a stream."""
        self._all.up[kind] += size_bytes
        self._mine.up[kind] += size_bytes
        self._up.add(size_bytes, self._clock())

    def frame_down(self, kind: Kind, size_bytes: int) -> None:
        """A frame was read from a stream."""
        self._all.down[kind] += size_bytes
        self._mine.down[kind] += size_bytes
        self._down.add(size_bytes, self._clock())

    def round_trip(self, seconds: float) -> None:
        """A small call was answered after so long."""
        before = seconds if self._rtt_s is None else self._rtt_s
        self._rtt_s = before + SMOOTHING * (seconds - before)

    def snapshot(self) -> PeerTraffic:
        """The counts of now."""
        now_s = self._clock()
        return PeerTraffic(
            up=_by_name(self._mine.up),
            down=_by_name(self._mine.down),
            up_per_s=self._up.at(now_s),
            down_per_s=self._down.at(now_s),
            rtt_s=self._rtt_s,
        )


class _Bytes:
    """By kind, each way."""

    def __init__(self) -> None:
        self.up = dict.fromkeys(Kind, 0)
        self.down = dict.fromkeys(Kind, 0)


class _Rate:
    """Bytes a second, with a memory of `RATE_S`."""

    def __init__(self) -> None:
        self._per_s = 0.0
        self._at_s = 0.0

    def add(self, size_bytes: int, now_s: float) -> None:
        self._per_s = self.at(now_s) + size_bytes / RATE_S
        self._at_s = now_s

    def at(self, now_s: float) -> float:
        return self._per_s * math.exp((self._at_s - now_s) / RATE_S)


def _with_transport(frames: dict[Kind, int], raw: int) -> tuple[dict[str, int], int]:
    """By name, with the rest; raw is read after the frames, so the rest is never negative."""
    counts = _by_name(frames)
    counts[TRANSPORT] = max(0, raw - sum(counts.values()))
    return counts, raw


def _by_name(frames: dict[Kind, int]) -> dict[str, int]:
    return {kind.value: count for kind, count in frames.items()}
