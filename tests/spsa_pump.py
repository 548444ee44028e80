"""A tiny world for spsa machines: what is under way arrives in any order, doubled, or not at all.

There is no speed here: any message, any worker and any inbox may be the next to go on.  A worker
carries out its commands in their order and an inbox is read in order, as with `node.driver`;
answers of before a `Resumed` are dropped.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from protocol import codec
from protocol.algorithms import SpsaConfig
from protocol.envelope import Signer
from protocol.ids import Digest, PeerId, Round, RunId, digest_of
from protocol.spsa import Frame, LogId, log_id, packed
from trainers.effects import (
    AddScalars,
    Blame,
    CatchUp,
    Closed,
    CloseInner,
    Effect,
    Finished,
    NameSum,
    Paused,
    Sample,
    Send,
    SetTimer,
    Unpaused,
)
from trainers.events import (
    Added,
    CatchUpFailed,
    Event,
    MembersChanged,
    Received,
    Resumed,
    Sampled,
    SumNamed,
    TimerFired,
)
from trainers.spsa import Spsa
from trainers.timers import Timer

RUN = RunId(digest_of(b"run"))
SIGNERS = {signer.peer: signer for signer in (Signer(bytes([n]) * 32) for n in range(1, 25))}
PEERS = sorted(SIGNERS)
SECONDS = 0.02
"""That pass with each event: a frame in half a second or so."""
SAVE_EVERY = 7
"""Additions between two saved states: what came since is lost with the worker."""


def machine(
    n: int, config: SpsaConfig, *, rounds: int, boot: bytes = b"boot", run: RunId = RUN
) -> Spsa:
    """The n-th peer's."""
    me = PEERS[n]
    return Spsa(
        me,
        config,
        run=run,
        seal=SIGNERS[me],
        boot=boot.ljust(8, b"-"),
        rng=random.Random(n),
        rounds=rounds,
    )


class Sum(Protocol):
    """A worker's sum."""

    @property
    def horizon(self) -> dict[LogId, int]: ...
    def add(self, frames: Sequence[Frame]) -> None: ...
    def name(self, less: Sequence[Frame]) -> Digest: ...
    def sample(self, boot: bytes, step: int, steps: int) -> bytes: ...
    def save(self) -> object: ...
    def load(self, saved: object) -> None: ...


class PlainSum:
    """Adds hashes of frames, so that each frame once, whatever the order, is the same sum."""

    def __init__(self, me: PeerId, config: SpsaConfig) -> None:
        self.horizon: dict[LogId, int] = {}
        self._me = me
        self._samples = config.samples
        self._sum = 0

    def add(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            log = log_id(RUN, frame.author, frame.boot)
            if frame.first == self.horizon.get(log, 0):
                self._sum += _number(frame)
                self.horizon[log] = frame.first + len(frame.scalars)

    def name(self, less: Sequence[Frame]) -> Digest:
        return digest_of(str(self._sum - sum(map(_number, less))).encode())

    def sample(self, boot: bytes, step: int, steps: int) -> bytes:
        scalars = hashlib.shake_128(f"{self._me}{boot!r}{step}".encode())
        return scalars.digest(steps * self._samples).replace(b"\x80", b"\0")

    def save(self) -> object:
        return self._sum, dict(self.horizon)

    def load(self, saved: object) -> None:
        assert isinstance(saved, tuple)
        self._sum, self.horizon = saved[0], dict(saved[1])


def _number(frame: Frame) -> int:
    return int.from_bytes(digest_of(codec.encode(frame)), "big")


@dataclass
class Node:
    """One machine, its worker and what its shell keeps."""

    machine: Spsa
    sum: Sum
    start: int = 0
    """`Resumed` that the machine was told."""
    starts: int = 0
    """`Resumed` that are in the inbox, or were."""
    inbox: deque[tuple[Event, int | None]] = field(default_factory=deque)
    commands: deque[tuple[Effect | object, int]] = field(default_factory=deque)
    sampling: deque[tuple[Sample, int]] = field(default_factory=deque)
    timers: list[tuple[float, Timer]] = field(default_factory=list)
    said: list[Effect] = field(default_factory=list)
    saved: object = None
    since_saved: int = 0

    @property
    def finished(self) -> bool:
        return any(isinstance(effect, Finished) for effect in self.said)

    def of(self, kind: type[Effect]) -> list[Effect]:
        return [effect for effect in self.said if isinstance(effect, kind)]


@dataclass(frozen=True)
class TakeOver:
    """The worker's command behind a `CatchUp`."""

    state: object


class Pump:
    """All nodes, and what is under way between them."""

    def __init__(
        self,
        machines: Sequence[Spsa],
        *,
        seed: int = 0,
        loss: float = 0.0,
        sum_of: Callable[[PeerId, SpsaConfig], Sum] = PlainSum,
    ) -> None:
        self.rng = random.Random(seed)
        self.loss = loss
        self.now = 0.0
        self.nodes: dict[PeerId, Node] = {}
        self.cut: Callable[[PeerId, PeerId], bool] = lambda one, other: False
        self._sum_of = sum_of
        self._under_way: list[tuple[PeerId, PeerId, Send]] = []
        for each in machines:
            self.add(each)

    def add(self, machine: Spsa, donor: PeerId | None = None) -> Node:
        """A node starts: afresh, or from a member's sum."""
        node = Node(machine, self._sum_of(machine.me, machine.config))
        if donor:
            node.sum.load(self.nodes[donor].sum.save())
        node.saved = node.sum.save()
        self.nodes[machine.me] = node
        self.see()
        self._resume(node)
        return node

    def see(self) -> None:
        """All see who is there."""
        for id in sorted(self.nodes):
            others = tuple(p for p in sorted(self.nodes) if p != id and not self.cut(id, p))
            self.nodes[id].inbox.append((MembersChanged(others), None))

    def kill(self, id: PeerId) -> Node:
        """It is gone; the others see that."""
        node = self.nodes.pop(id)
        self.see()
        return node

    def crash(self, id: PeerId) -> None:
        """The worker comes back from what it saved last."""
        node = self.nodes[id]
        node.commands.clear()
        node.sampling.clear()
        node.sum.load(node.saved)
        self._resume(node)

    def _resume(self, node: Node) -> None:
        node.starts += 1
        horizon = packed(node.sum.horizon)
        round = Round(node.machine.round)
        node.inbox.append((Resumed(round, node.sum.name(()), horizon), None))

    # --- time -------------------------------------------------------------------------------

    def run(self, done: Callable[[], bool], most: int = 100_000) -> None:
        """Until then."""
        for _ in range(most):
            if done():
                return
            self.step()
        stuck = {id[-4:]: (n.machine.round, n.said[-1:]) for id, n in self.nodes.items()}
        raise AssertionError(f"not done: {stuck}")

    def settle(self, most: int = 100_000) -> None:
        """Until all have finished and have the same; nothing is lost meanwhile."""
        self.loss = 0.0
        self.run(self.is_settled, most)

    def is_settled(self) -> bool:
        nodes = list(self.nodes.values())
        if not all(node.finished and not node.commands and not node.inbox for node in nodes):
            return False
        horizons = [packed(n.machine.logs.horizon) for n in nodes]
        return len(set(horizons)) == 1 and all(packed(n.sum.horizon) in horizons for n in nodes)

    def step(self) -> None:
        """One thing happens."""
        self.now += SECONDS
        if self._next_timer()[0] <= self.now:
            self._fire()
            return
        ready: list[Callable[[], None]] = []
        for node in self.nodes.values():
            ready += [lambda n=node: self._read(n)] if node.inbox else []  # type: ignore[misc]
            ready += [lambda n=node: self._work(n)] if node.commands else []  # type: ignore[misc]
            ready += [lambda n=node: self._sample(n)] if node.sampling else []  # type: ignore[misc]
        some = min(len(self._under_way), 8)
        choice = self.rng.randrange(len(ready) + some) if ready or some else -1
        if choice < 0:
            self._fire()
        elif choice < len(ready):
            ready[choice]()
        else:
            self._arrive()

    def _next_timer(self) -> tuple[float, PeerId]:
        timers = [(at, id) for id, node in self.nodes.items() for at, _ in node.timers]
        return min(timers, default=(math.inf, PEERS[0]))

    def _fire(self) -> None:
        at, id = self._next_timer()
        self.now = max(self.now, at)
        timers = self.nodes[id].timers
        first = min(range(len(timers)), key=lambda n: timers[n][0])
        self.nodes[id].inbox.append((TimerFired(timers.pop(first)[1]), None))

    def _arrive(self) -> None:
        n = self.rng.randrange(len(self._under_way))
        self._under_way[n], self._under_way[-1] = self._under_way[-1], self._under_way[n]
        sender, to, send = self._under_way.pop()
        if to in self.nodes and sender in self.nodes and not self.cut(sender, to):
            self.nodes[to].inbox.append((Received(sender, send.message), None))

    # --- shell and worker -------------------------------------------------------------------

    def _read(self, node: Node) -> None:
        event, asked = node.inbox.popleft()
        if isinstance(event, Resumed):
            node.start += 1
        if asked is not None and asked != node.start:
            return
        for effect in node.machine.handle(event, self.now):
            node.said.append(effect)
            self._carry_out(node, effect)

    def _carry_out(self, node: Node, effect: Effect) -> None:
        match effect:
            case Send(to, _):
                for _ in range(self.rng.choice((1, 1, 1, 2))):
                    if self.rng.random() >= self.loss:
                        self._under_way.append((node.machine.me, to, effect))
            case SetTimer(at, timer):
                node.timers.append((at, timer))
            case Sample() | AddScalars() | NameSum() | CatchUp() if node.start == node.starts:
                node.commands.append((effect, node.start))
            case _:
                known = Blame | Closed | CloseInner | Finished | Sample | AddScalars | NameSum
                assert isinstance(effect, known | CatchUp | Paused | Unpaused), effect

    def _sample(self, node: Node) -> None:
        effect, start = node.sampling.popleft()
        steps = self.rng.randint(1, effect.steps)
        scalars = node.sum.sample(effect.boot, effect.step, steps)
        node.inbox.append((Sampled(effect.step, scalars, steps), start))

    def _work(self, node: Node) -> None:
        command, start = node.commands.popleft()
        match command:
            case Sample():
                node.sampling.append((command, start))
            case AddScalars(frames):
                node.sum.add(frames)
                node.since_saved += 1
                if node.since_saved >= SAVE_EVERY:
                    node.since_saved, node.saved = 0, node.sum.save()
                node.inbox.append((Added(), start))
            case NameSum(less):
                node.inbox.append((SumNamed(node.sum.name(less)), start))
            case CatchUp(source):  # a while later, behind what was asked for meanwhile
                there = source in self.nodes and not self.cut(node.machine.me, source)
                if there:
                    node.commands.append((TakeOver(self.nodes[source].sum.save()), start))
                else:
                    node.inbox.append((CatchUpFailed("gone"), start))
            case TakeOver(state):
                node.sum.load(state)
                node.since_saved, node.saved = 0, node.sum.save()
                node.sampling.clear()
                self._resume(node)
