"""Calls between simulated peers, one request and one answer, over the same lines as messages.

A request or an answer takes its latency and the time that its bytes take on the slower of two
lines; it may be lost, late or doubled, as a message may (`node.sim.peer.Conditions`).  Chance
comes from a generator of its own, so calls change nothing in the history of the trainers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from node.sim.clock import Clock
from node.sim.links import OVERHEAD_BYTES, latency_s
from node.sim.peer import Conditions, Peer
from protocol import codec
from protocol.errors import PeerUnavailable
from protocol.ids import PeerId
from protocol.rpc import A, Method, Q

Reply = Callable[[bytes], None]
Serve = Callable[[Peer, bytes, Reply], None]
"""Told who asks, what, and whom to give the answer; not called by who is not there."""


class Calls:
    """All calls of a world that are under way."""

    def __init__(
        self, clock: Clock, rng: random.Random, peers: dict[PeerId, Peer], conditions: Conditions
    ) -> None:
        self.conditions = conditions
        self.serve: dict[PeerId, Serve] = {}
        self._clock = clock
        self._rng = rng
        self._peers = peers

    def ask(self, me: Peer, peer: PeerId, body: bytes, answer: asyncio.Future[bytes]) -> None:
        """Have `answer` set: to what the peer answers, to `PeerUnavailable`, or never."""
        me.stats.record_bytes += len(body) + OVERHEAD_BYTES
        target = self._peers.get(peer)

        def fail() -> None:
            after_s = self._rng.uniform(*self.conditions.gone_s)
            self._clock.after(after_s, _refuse, answer, peer)

        if target is None or not me.reaches(target):
            me.up.add(self._clock.now, len(body) + OVERHEAD_BYTES)
            fail()
            return
        back = partial(self._go_back, target, me, answer, fail)
        self._carry(me, target, body, lambda: self.serve[peer](me, body, back), fail)

    def _go_back(
        self,
        target: Peer,
        me: Peer,
        answer: asyncio.Future[bytes],
        fail: Callable[[], None],
        body: bytes,
    ) -> None:
        if me.reaches(target):  # else it died over the answer
            target.stats.record_bytes += len(body) + OVERHEAD_BYTES
            self._carry(target, me, body, lambda: _give(answer, body), fail)

    def _carry(
        self,
        source: Peer,
        target: Peer,
        body: bytes,
        arrived: Callable[[], None],
        fail: Callable[[], None],
    ) -> None:
        """One way of a call."""
        world, size_bytes = self.conditions, len(body) + OVERHEAD_BYTES
        source.up.add(self._clock.now, size_bytes)

        def arrive() -> None:
            if not (source.reaches(target) and target.reaches(source)):
                fail()
                return
            target.down.add(self._clock.now, size_bytes)
            arrived()

        if self._happens(world.loss):
            if self._happens(world.told):
                fail()
            return
        for _ in range(1 + self._happens(world.doubled)):
            takes_s = size_bytes / min(source.up.capacity, target.down.capacity)
            self._clock.after(latency_s(world, self._rng, source, target) + takes_s, arrive)
        if self._happens(world.unsure):
            fail()

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self._rng.random() < probability


class Port:
    """`node.ports.Rpc` as one simulated peer has it."""

    def __init__(self, calls: Calls, me: Peer, loop: asyncio.AbstractEventLoop) -> None:
        self._calls = calls
        self._me = me
        self._loop = loop

    async def call(
        self,
        peer: PeerId,
        method: Method[Q, A],
        request: Q,
        *,
        deadline_s: float | None = None,
        into: memoryview | None = None,
    ) -> A:
        """See `node.ports.Rpc`."""
        assert into is None, "payloads are fetched elsewhere"
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._calls.ask(self._me, peer, codec.encode(request), answer)
        try:
            async with asyncio.timeout(method.deadline_s if deadline_s is None else deadline_s):
                body = await answer
        except TimeoutError:
            raise PeerUnavailable(peer, "no answer by the deadline") from None
        return codec.decode(method.answer, body, max_bytes=method.max_answer_bytes)


def _give(answer: asyncio.Future[Any], body: bytes) -> None:
    if not answer.done():  # doubled, or given up
        answer.set_result(body)


def _refuse(answer: asyncio.Future[Any], peer: PeerId) -> None:
    if not answer.done():
        answer.set_exception(PeerUnavailable(peer, "gone"))
