"""A network of dictionaries and a worker that sleeps, for the real shell under virtual time.

Messages arrive in order after `LATENCY_S`, payloads after `FETCH_S`; peers in `down` cannot
be reached.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from node.driver import Driver
from node.sim.toy import ToyLearner
from protocol.changes import InForce
from protocol.errors import PeerUnavailable, WorkerLost
from protocol.ids import Digest, PeerId, Round
from protocol.messages import Decision, Message
from protocol.spsa import Frame
from trainers.effects import ApplyOuter, Closed, Finished, Paused, Unpaused, Wait
from trainers.events import Received, Resumed, Sampled

LATENCY_S = 0.05
FETCH_S = 0.5
STEP_S = 0.1
OUTER_S = 0.05


@dataclass
class MemoryNetwork:
    """All peers' ports."""

    drivers: dict[PeerId, Driver] = field(default_factory=dict)
    arenas: dict[PeerId, dict[Digest, object]] = field(default_factory=dict)
    down: set[PeerId] = field(default_factory=set)

    async def reach(self, peer: PeerId, after_s: float) -> None:
        """Be there after a while, or not at all."""
        await asyncio.sleep(after_s)
        if peer in self.down:
            raise PeerUnavailable(peer, "down")


@dataclass
class Port:
    """`node.shell_ports.Network` as one peer has it."""

    network: MemoryNetwork
    me: PeerId
    blamed: list[tuple[PeerId, str]] = field(default_factory=list)

    async def send(self, to: PeerId, message: Message) -> None:
        await self.network.reach(to, LATENCY_S)
        await self.network.drivers[to].post(Received(self.me, message))

    async def fetch(self, digest: Digest, size_bytes: int, source: PeerId) -> None:
        await self.network.reach(source, FETCH_S)
        if digest not in self.network.arenas[source]:
            raise PeerUnavailable(source, "does not hold it")
        self.network.arenas[self.me][digest] = self.network.arenas[source][digest]

    def release(self, digest: Digest) -> None:
        self.network.arenas[self.me].pop(digest, None)

    def blame(self, peer: PeerId, reason: str) -> None:
        self.blamed.append((peer, reason))


@dataclass(frozen=True)
class Made:
    """`node.shell_ports.InnerResult`."""

    steps: int
    tokens: int


class MemoryLearner:
    """`node.shell_ports.Learner`: a slow toy; between kill and restart it is lost."""

    def __init__(self, toy: ToyLearner, arena: dict[Digest, object]) -> None:
        self.toy = toy
        self.round = Round(0)
        self.changes: tuple[InForce, ...] = ()
        self._arena = arena
        self._steps = 0
        self._closing = False
        self._killed = asyncio.Event()
        self._saved = toy.save()

    def kill(self) -> None:
        """The worker dies with what is under way."""
        self._killed.set()

    def restart(self) -> Resumed:
        """A new worker starts from the last saved state."""
        self._killed = asyncio.Event()
        self._steps = 0
        self.toy.load(self._saved)
        return Resumed(self.round, self.toy.weights())

    async def inner(self, round: Round, steps: int) -> Made:
        self._closing = False
        while self._steps < steps and not self._closing:
            await self._work(STEP_S)
            self.toy.train(round, 1)
            self._steps += 1
        return Made(self._steps, self._steps)

    def close_inner(self) -> None:
        self._closing = True

    def change(self, changes: tuple[InForce, ...]) -> None:
        self.changes = changes

    async def snapshot(self, round: Round, fragment: int) -> tuple[Digest, int]:
        digest, size_bytes, content = self.toy.snapshot(round, fragment)
        await self._work(OUTER_S)
        self._steps = 0
        self._arena[digest] = content
        return digest, size_bytes

    async def sample(self, boot: bytes, step: int, steps: int) -> Sampled:
        raise AssertionError("no spsa here")

    async def add_scalars(self, frames: tuple[Frame, ...]) -> None:
        raise AssertionError("no spsa here")

    async def name_sum(self, less: tuple[Frame, ...]) -> Digest:
        raise AssertionError("no spsa here")

    async def outer(self, effect: ApplyOuter) -> Digest:
        await self._work(OUTER_S)
        self.toy.outer(effect, self._arena)
        self.round, self._saved = effect.round, self.toy.save()
        return self.toy.weights()

    async def catch_up(self, source: PeerId) -> Resumed:
        raise PeerUnavailable(source, "gives no weights")

    async def _work(self, for_s: float) -> None:
        try:
            async with asyncio.timeout(for_s):
                await self._killed.wait()
        except TimeoutError:
            return
        raise WorkerLost("killed")


@dataclass
class Notes:
    """`node.shell_ports.Journal`: remembers."""

    decisions: tuple[Decision, ...] = ()
    rounds: list[Closed] = field(default_factory=list)
    waits: list[tuple[Wait, float]] = field(default_factory=list)
    holds: list[Paused | Unpaused] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def publish(self, decisions: tuple[Decision, ...]) -> None:
        self.decisions = decisions

    def closed(self, closed: Closed) -> None:
        self.rounds.append(closed)

    def waiting(self, wait: Wait, for_s: float) -> None:
        self.waits.append((wait, for_s))

    def held(self, held: Paused | Unpaused) -> None:
        self.holds.append(held)

    def finished(self, finished: Finished) -> None:
        self.done.set()
