"""Frames waiting to be written to one stream.

Bodies under way take turns, one frame each, so that none starves and a small one is done after
one turn.  What waits here is bounded by the calls under way, which both sides bound: a body is
cut into frames only when its turn comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

import trio

from node.p2p.counters import PeerCounters
from protocol.frame import PART_BYTES
from protocol.rpc import Kind

BATCH_BYTES = 2 * PART_BYTES
"""Written at once.  What is behind it on the connection, as small calls are, waits for it: 10 ms
at 100 Mbit/s."""
SMALL_BYTES = 2048
"""Frames below this share a Noise message: encrypting one costs as much as 3 KiB more."""


def _nothing() -> None:
    pass


@dataclass(slots=True, eq=False)
class Sending:
    """A body, or a single frame, under way to the stream."""

    call: int
    frames: Iterator[bytes]
    kind: Kind | None
    """What its bytes count as; None: as transport."""
    written: Callable[[], None] = field(default=_nothing)
    """Called after the last frame was written."""
    begun: bool = field(default=False)
    is_taken: bool = field(default=False)
    """Its last frame is being written, or was: nothing can be said about its call any more."""
    following: bytes | None = field(default=None)
    """The frame after the one that was taken last, so that the last one is known as such."""

    def take(self) -> bytes | None:
        """The next frame; None: there is none."""
        frame = self.following if self.begun else next(self.frames, None)
        self.begun = True
        self.following = next(self.frames, None)
        self.is_taken = self.following is None
        return frame


class Outbox:
    """The writing half of one stream."""

    def __init__(
        self, write: Callable[[Sequence[bytes]], Awaitable[None]], counters: PeerCounters
    ) -> None:
        self._write = write
        self._counters = counters
        self._turns: deque[Sending] = deque()
        self._more = trio.Event()

    def __len__(self) -> int:
        return len(self._turns)

    def add(self, sending: Sending) -> None:
        """Queue it behind the others."""
        self._turns.append(sending)
        self._more.set()

    def drop(self, call: int) -> bool:
        """Send no more of this call; whether nothing of it was sent so far."""
        mine = [sending for sending in self._turns if sending.call == call]
        for sending in mine:
            self._turns.remove(sending)
        return bool(mine) and not mine[0].begun

    async def run(self) -> None:
        """Write until the stream breaks; its error is raised."""
        while True:
            await self._more.wait()
            self._more = trio.Event()
            while self._turns:
                await self._write_batch()

    async def _write_batch(self) -> None:
        sent: list[tuple[Sending, int]] = []
        finished: list[Sending] = []
        pieces: list[bytes] = []
        small: list[bytes] = []
        size_bytes = 0
        while self._turns and size_bytes < BATCH_BYTES:
            sending = self._turns.popleft()
            frame = sending.take()
            if sending.is_taken:
                finished.append(sending)
            else:
                self._turns.append(sending)
            if frame is None:
                continue
            sent.append((sending, len(frame)))
            size_bytes += len(frame)
            if len(frame) < SMALL_BYTES:
                small.append(frame)
            else:
                pieces += (*_joined(small), frame)
                small = []
        pieces += _joined(small)
        if pieces:
            await self._write(pieces)
        for sending, size in sent:
            if sending.kind is not None:
                self._counters.frame_up(sending.kind, size)
        for sending in finished:
            sending.written()


def _joined(frames: list[bytes]) -> list[bytes]:
    return [b"".join(frames)] if frames else []
