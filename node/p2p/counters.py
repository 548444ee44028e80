"""Bytes that crossed the network, by kind and in all.

Frames are counted at the streams of `node.p2p.streams`, header included; raw bytes at the TCP
socket.  What raw has more is `transport`: Noise, Yamux, multistream, identify, the DHT.  Both
live in the trio thread; a snapshot may be taken from anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.rpc import Kind

TRANSPORT = "transport"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes since the start, by kind name and `transport`, and as the socket saw them."""

    up: dict[str, int]
    down: dict[str, int]
    raw_up: int
    raw_down: int


class Counters:
    """One per node.  Only the trio thread adds."""

    def __init__(self) -> None:
        self._up = dict.fromkeys(Kind, 0)
        self._down = dict.fromkeys(Kind, 0)
        self._raw_up = 0
        self._raw_down = 0

    def frame_up(self, kind: Kind, size_bytes: int) -> None:
        """A frame was written to a stream."""
        self._up[kind] += size_bytes

    def frame_down(self, kind: Kind, size_bytes: int) -> None:
        """A frame was read from a stream."""
        self._down[kind] += size_bytes

    def socket_up(self, size_bytes: int) -> None:
        """Bytes were handed to a TCP socket."""
        self._raw_up += size_bytes

    def socket_down(self, size_bytes: int) -> None:
        """Bytes came out of a TCP socket."""
        self._raw_down += size_bytes

    def snapshot(self) -> Traffic:
        """The counts of now."""
        up, raw_up = _with_transport(dict(self._up), self._raw_up)
        down, raw_down = _with_transport(dict(self._down), self._raw_down)
        return Traffic(up=up, down=down, raw_up=raw_up, raw_down=raw_down)


def _with_transport(frames: dict[Kind, int], raw: int) -> tuple[dict[str, int], int]:
    """By name, with the rest; raw is read after the frames, so the rest is never negative."""
    counts = {kind.value: count for kind, count in frames.items()}
    counts[TRANSPORT] = max(0, raw - sum(counts.values()))
    return counts, raw
