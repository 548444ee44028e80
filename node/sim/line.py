"""A simulated peer's line to the world, and the accounts of its bytes.

A line has a capacity up and one down.  What it carries is counted as it passes, in windows of
one second, so that a peer's peak rate is what a meter at its router would show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WINDOW_S = 1.0
"""Of a peak rate."""
MBIT = 125_000.0
"""Bytes per second in a Mbit/s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """How a peer is connected.  Defaults: a good connection at home, 40 Mbit/s either way."""

    up_bytes_per_s: float = 40 * MBIT
    down_bytes_per_s: float = 40 * MBIT
    latency_s: float = 0.0
    """Added to each message from and to this peer, on top of what all messages take."""
    relayed: bool = False
    """Reached through a relay only."""


class Link:
    """One direction of a line: what passes now, and what has passed."""

    __slots__ = (
        "_in_window",
        "_peak",
        "_since",
        "_window",
        "bytes",
        "capacity",
        "rate",
        "transfers",
    )

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        """Bytes per second."""
        self.transfers: dict[Any, None] = {}
        """Those under way, oldest first."""
        self.rate = 0.0
        """Bytes per second of all transfers together."""
        self.bytes = 0.0
        """Passed until the last change."""
        self._peak = 0.0
        """Most bytes in a window that is over."""
        self._since = 0.0
        self._window = 0.0
        """When the window of now began."""
        self._in_window = 0.0

    def add(self, now: float, size_bytes: float) -> None:
        """A message passes: it is small, and waits for nobody."""
        if self.rate:
            self.settle(now)
        elif now - self._window >= WINDOW_S:
            if self._in_window > self._peak:
                self._peak = self._in_window
            self._window, self._in_window, self._since = now // WINDOW_S * WINDOW_S, 0.0, now
        self.bytes += size_bytes
        self._in_window += size_bytes

    def change(self, now: float, by: float) -> None:
        """The transfers together are faster, or slower, by so many bytes per second."""
        self.settle(now)
        self.rate = max(0.0, self.rate + by)

    def settle(self, now: float) -> None:
        """Count what has passed until now."""
        self.bytes += self.rate * (now - self._since)
        if now - self._window < WINDOW_S:
            self._in_window += self.rate * (now - self._since)
        else:
            end = self._window + WINDOW_S
            self._peak = max(self._peak, self._in_window + self.rate * (end - self._since))
            self._window = now // WINDOW_S * WINDOW_S
            if self._window > end:
                self._peak = max(self._peak, self.rate * WINDOW_S)
            self._in_window = self.rate * (now - max(self._window, self._since))
        self._since = now

    def peak(self, now: float) -> float:
        """Most bytes in one window so far."""
        self.settle(now)
        return max(self._peak, self._in_window)
