"""Fetches bytes in pieces, a few at a time, so that a link that dies costs only those.

A piece that fails because the stream broke, or because the peer cannot be reached for a while, is
asked for again, over whatever link there is then.  A refusal says that it is of no use, and a
broken protocol that the peer is to blame: those end the fetch at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from node.arena import Arena
from node.p2p.answering import TRANSIENT
from node.rpc import CallRefused
from protocol.errors import PeerError, PeerUnavailable
from protocol.ids import Digest, PeerId
from protocol.limits import KIB

FIRST_WAIT_S = 0.1
"""Before a piece is asked for again; twice as long each time.  A redial takes a few round trips."""
LONGEST_WAIT_S = 2.0
UNREACHABLE_S = 20.0
"""No piece for so long after a failure, and the peer is taken for gone.  A guess: a node that is
started again, or a link that gives way to another through a relay, is back before."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How a payload is fetched over one kind of link."""

    piece_bytes: int
    in_flight: int


DIRECT = Cut(512 * KIB, 4)
"""2 MiB under way: more than 100 Mbit/s hold in 100 ms.  docs/results/rpc.md has what others
bring."""
RELAYED = Cut(128 * KIB, 2)
"""A relay is somebody's gift: what is under way fills its queue."""

Ask = Callable[[int, memoryview, float], Awaitable[None]]
"""Fill this memory with what is at this offset, within so many seconds."""


async def fetch_into(
    memory: Arena,
    digest: Digest,
    size_bytes: int,
    peer: PeerId,
    ask: Ask,
    *,
    deadline_s: float,
    is_relayed: Callable[[PeerId], bool],
) -> None:
    """Hold what has this name, from `peer`.

    Raises:
        ArenaFull: there is no room.
        Malformed: `peer` sent something else.
        PeerError: as `fetch_pieces`.
    """
    slot = memory.reserve(size_bytes)
    try:
        await fetch_pieces(peer, slot.view, ask, deadline_s=deadline_s, is_relayed=is_relayed)
        await slot.verify_and_commit(digest)
    finally:
        slot.abandon()


async def fetch_pieces(
    peer: PeerId,
    view: memoryview,
    ask: Ask,
    *,
    deadline_s: float,
    is_relayed: Callable[[PeerId], bool],
) -> None:
    """Fill `view` from `peer`; nothing writes into it once this returns or raises.

    Raises:
        PeerUnavailable: not all of it came, and why.
        RemoteProtocolError: the peer broke the protocol.
    """
    fetch = _Fetch(peer, view, ask, deadline_s, is_relayed)
    try:
        async with asyncio.timeout(deadline_s), asyncio.TaskGroup() as group:
            for number in range(max(DIRECT.in_flight, RELAYED.in_flight)):
                group.create_task(fetch.run(number), name=f"pieces {number}")
    except TimeoutError:
        raise PeerUnavailable(peer, fetch.too_late()) from None
    except ExceptionGroup as group:
        if fetch.failure is None or group.split(PeerError)[1] is not None:
            raise
        raise fetch.failure from None


def cuts(size_bytes: int, piece_bytes: int) -> Iterator[int]:
    """The lengths of the pieces."""
    for start in range(0, size_bytes, piece_bytes):
        yield min(piece_bytes, size_bytes - start)


class _Fetch:
    """One fetch under way."""

    def __init__(
        self,
        peer: PeerId,
        view: memoryview,
        ask: Ask,
        deadline_s: float,
        is_relayed: Callable[[PeerId], bool],
    ) -> None:
        self.failure: PeerError | None = None
        self._peer = peer
        self._view = view
        self._ask = ask
        self._deadline_s = deadline_s
        self._is_relayed = is_relayed
        self._next = 0
        self._got_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + deadline_s
        self._last_good = self._loop.time()
        self._reason = ""

    async def run(self, number: int) -> None:
        """Fetch one piece after the other while this many are wanted at once."""
        while self._next < len(self._view):
            cut = RELAYED if self._is_relayed(self._peer) else DIRECT
            if number >= cut.in_flight:
                return
            start = self._next
            self._next = min(start + cut.piece_bytes, len(self._view))
            try:
                await self._piece(start, self._next)
            except PeerError as error:
                self.failure = self.failure or error
                raise

    def too_late(self) -> str:
        """What the deadline found."""
        why = f"; {self._reason}" if self._reason else ""
        return f"{self._got_bytes} of {len(self._view)} bytes within {self._deadline_s:g} s{why}"

    async def _piece(self, start: int, end: int) -> None:
        wait_s = FIRST_WAIT_S
        while True:
            try:
                with self._view[start:end] as part:  # released, whoever may still remember it
                    await self._ask(start, part, self._until - self._loop.time())
            except PeerUnavailable as error:
                if isinstance(error, CallRefused) and error.code not in TRANSIENT:
                    raise
                if self._loop.time() - self._last_good > UNREACHABLE_S:
                    raise
                self._reason = error.reason
            else:
                self._got_bytes += end - start
                self._last_good = self._loop.time()
                return
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
