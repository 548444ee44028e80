"""A tiny world for machines of a group: what is under way arrives in any order, or not at all.

There is no speed here: any message, worker answer or payload that is under way may be the next
to arrive.  Timers fire when nothing is under way.  Weights are hashes of all that was averaged.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from protocol.envelope import Signer
from protocol.ids import Digest, PeerId, Round, RunId, digest_of
from trainers.effects import (
    ApplyOuter,
    Blame,
    CatchUp,
    Closed,
    Effect,
    Fetch,
    Finished,
    Release,
    RunInner,
    Send,
    SetTimer,
    Snapshot,
    Wait,
)
from trainers.events import (
    CatchUpFailed,
    Event,
    Fetched,
    FetchFailed,
    InnerDone,
    MembersChanged,
    OuterDone,
    Received,
    Resumed,
    SnapshotDone,
    TimerFired,
)
from trainers.streaming import Streaming
from trainers.timers import Timer

RUN = RunId(digest_of(b"run"))
SIGNERS = {signer.peer: signer for signer in (Signer(bytes([n]) * 32) for n in range(1, 25))}
PEERS = sorted(SIGNERS)
START = digest_of(b"start")
SIZE = 100
SECONDS = 1e-3
"""That pass with each event."""


class Node:
    """One machine and what its shell holds."""

    def __init__(self, machine: Streaming) -> None:
        self.machine = machine
        self.weights = START
        self.round = Round(0)
        self.held: set[Digest] = set()
        self.steps = 0
        self.life = 0
        self.timers: list[tuple[float, Timer]] = []
        self.said: list[Effect] = []


class Pump:
    """All nodes, and what is under way between them."""

    def __init__(self, machines: list[Streaming], *, seed: int = 0, loss: float = 0.0) -> None:
        self.rng = random.Random(seed)
        self.loss = loss
        self.now = 0.0
        self.nodes = {machine.me: Node(machine) for machine in machines}
        self.cut: Callable[[PeerId, PeerId], bool] = lambda one, other: False
        self._under_way: list[tuple[PeerId, int, Callable[[Node], Event | None]]] = []
        for id in sorted(self.nodes):
            self.see(id)
            self._later(id, lambda node: Resumed(node.round, node.weights))

    def see(self, id: PeerId) -> None:
        """It sees who is there."""
        members = tuple(p for p in sorted(self.nodes) if p != id and not self.cut(id, p))
        self._tell(id, MembersChanged(members))

    def run(self, most: int = 100_000) -> None:
        """Until all have finished, and have nothing more to say but the time."""
        for _ in range(most):
            if not self.step():
                return
        stuck = {id[-4:]: (n.machine.round, n.said[-1:]) for id, n in self.nodes.items()}
        raise AssertionError(f"not finished: {stuck}")

    def step(self) -> bool:
        """One event; False: there is none, and all have finished."""
        self.now += SECONDS
        if self._under_way:
            n = self.rng.randrange(len(self._under_way))
            self._under_way[n], self._under_way[-1] = self._under_way[-1], self._under_way[n]
            id, life, event_of = self._under_way.pop()
            node = self.nodes.get(id)
            event = event_of(node) if node and node.life == life else None
            if event:
                self._tell(id, event)
            return True
        due = min(
            ((at, id) for id, node in self.nodes.items() for at, _ in node.timers), default=None
        )
        is_over = all(node.machine.finished for node in self.nodes.values())
        if due is None or (is_over and len({n.weights for n in self.nodes.values()}) == 1):
            return False
        self.now = max(self.now, due[0])
        timers = self.nodes[due[1]].timers
        first = min(range(len(timers)), key=lambda n: timers[n][0])
        self._tell(due[1], TimerFired(timers.pop(first)[1]))
        return True

    def kill(self, id: PeerId) -> None:
        """It is gone; the others see that soon."""
        del self.nodes[id]
        for other in self.nodes:
            self.see(other)

    def crash(self, id: PeerId) -> None:
        """Its worker dies, and comes back where the last outer step was."""
        node = self.nodes[id]
        self._resume(id, node.round, node.weights)

    def _resume(self, id: PeerId, round: Round, weights: Digest) -> None:
        node = self.nodes[id]
        node.round, node.weights, node.steps = round, weights, 0
        node.life += 1
        self._tell(id, Resumed(round, weights))

    def _later(self, id: PeerId, event_of: Callable[[Node], Event | None]) -> None:
        life = self.nodes[id].life if id in self.nodes else 0
        self._under_way.append((id, life, event_of))

    def _arrives(self, one: PeerId, other: PeerId) -> bool:
        return other in self.nodes and not self.cut(one, other)

    def _tell(self, id: PeerId, event: Event) -> None:
        for effect in self.nodes[id].machine.handle(event, self.now):
            self.nodes[id].said.append(effect)
            self._carry_out(id, self.nodes[id], effect)

    def _carry_out(self, id: PeerId, node: Node, effect: Effect) -> None:
        match effect:
            case Send(to, message):
                for _ in range(self.rng.choice((1, 1, 1, 2))):
                    if self._arrives(id, to) and self.rng.random() >= self.loss:
                        self._under_way.append(
                            (to, self.nodes[to].life, lambda n: Received(id, message))
                        )
            case SetTimer(at, timer):
                node.timers.append((at, timer))
            case RunInner(steps=steps):
                node.steps = max(steps, node.steps)
                made = node.steps
                self._later(id, lambda n: InnerDone(made, made))
            case Snapshot(round, fragment):
                digest = digest_of(f"{id}|{round}|{fragment}".encode() + node.weights)
                node.steps = 0
                self._later(id, lambda n: self._snapshot(n, round, fragment, digest))
            case ApplyOuter():
                self._later(id, lambda n: self._outer(n, effect))
            case Fetch(digest, _, source):
                self._later(id, lambda n: self._fetched(id, digest, source))
            case Release(digest):
                node.held.discard(digest)
            case CatchUp(source):
                if self._arrives(id, source):
                    other = self.nodes[source]
                    self._resume(id, other.round, other.weights)
                else:
                    self._later(id, lambda n: CatchUpFailed("gone"))
            case _:
                assert isinstance(effect, Wait | Closed | Finished | Blame) or True

    def _snapshot(self, node: Node, round: Round, fragment: int, digest: Digest) -> Event:
        node.held.add(digest)
        return SnapshotDone(round, fragment, digest, SIZE)

    def _outer(self, node: Node, effect: ApplyOuter) -> Event:
        names = [share.digest for share in effect.shares]
        assert node.held.issuperset(names), "an outer step with payloads that are not held"
        assert effect.round == node.round + 1
        averaged = "".join(f"{s.digest.hex()}{s.weight!r}" for s in effect.shares)
        mine = b"" if averaged else effect.mine or b""
        node.weights = digest_of(node.weights + averaged.encode() + mine)
        node.round = effect.round
        return OuterDone(effect.round, node.weights)

    def _fetched(self, id: PeerId, digest: Digest, source: PeerId) -> Event:
        if self._arrives(id, source) and digest in self.nodes[source].held:
            self.nodes[id].held.add(digest)
            return Fetched(digest)
        return FetchFailed(digest, "not there")
