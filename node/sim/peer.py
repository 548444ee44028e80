"""What the simulated world keeps of a peer, and what it does to all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from node.sim.line import Link
from node.sim.worker import Worker
from protocol.ids import Digest, PeerId
from protocol.messages import Decision
from trainers.effects import Closed, Wait
from trainers.events import Event
from trainers.machine import Trainer

OVERDUE_S = 1.0
"""A wait that ends this late has lasted past its deadline; timers of a frozen peer are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What the world does to peers.  Pairs of seconds are bounds, drawn from uniformly."""

    latency_s: tuple[float, float] = (0.01, 0.2)
    """One-way delay of one message."""
    loss: float = 0.0
    """Probability that a message never arrives."""
    told: float = 0.0
    """Share of the lost messages that answer `SendFailed`, as a broken connection does."""
    unsure: float = 0.0
    """Share of the messages that arrive and all the same answer `SendFailed`."""
    doubled: float = 0.0
    """Probability that a message arrives twice."""
    gone_s: tuple[float, float] = (0.05, 10.0)
    """How long it takes to see that a peer cannot be reached: a reset, or the deadline."""
    send_deadline_s: float = 10.0
    """A frozen peer answers nobody: `SendFailed` after this, and yet it reads it when thawed."""
    fetch_deadline_s: float = 60.0
    broken: float = 0.0
    """Probability that a transfer breaks off half-way."""
    relay_latency_s: float = 0.1
    """Added to each message that goes through a relay."""
    relay_bytes_per_s: float = 125_000.0
    """Of each transfer that goes through a relay.  A guess: 1 Mbit/s; circuit-v2 leaves it to
    the relay, and public ones are stingy."""
    presence_s: tuple[float, float] = (0.5, 2.0)
    """Until others see what a peer says of itself."""
    expiry_s: float = 10.0
    """Until others see that it says nothing any more."""
    view: int = 64
    """Peers that one peer sees at most."""


@dataclass(slots=True)
class Stats:
    """What one peer did, or all of them together."""

    made: int = 0
    missed: int = 0
    half: int = 0
    tokens: int = 0
    payload_bytes: int = 0
    """Fetched; of spsa: frames of scalars that came in."""
    state_bytes: int = 0
    """Of weights that were taken over from others."""
    messages: int = 0
    """Sent."""
    record_bytes: int = 0
    """Sent in calls about records, asked and answered."""
    alone: dict[str, int] = field(default_factory=dict)
    """Missed exchanges by reason."""
    overdue: int = 0
    """Waits that lasted past their end."""
    overdue_s: float = 0.0
    """How long past it, all together."""

    @property
    def rounds(self) -> int:
        """Closed."""
        return self.made + self.missed

    def count(self, closed: Closed) -> None:
        """Take in the end of a round."""
        self.tokens += closed.tokens
        if closed.receipt:
            self.made += 1
        else:
            self.missed += 1
            self.half += closed.half
            self.alone[closed.reason] = self.alone.get(closed.reason, 0) + 1

    def __add__(self, other: Stats) -> Stats:
        reasons = {**self.alone, **other.alone}
        return Stats(
            self.made + other.made,
            self.missed + other.missed,
            self.half + other.half,
            self.tokens + other.tokens,
            self.payload_bytes + other.payload_bytes,
            self.state_bytes + other.state_bytes,
            self.messages + other.messages,
            alone={
                why: self.alone.get(why, 0) + other.alone.get(why, 0) for why in sorted(reasons)
            },
            overdue=self.overdue + other.overdue,
            overdue_s=self.overdue_s + other.overdue_s,
            record_bytes=self.record_bytes + other.record_bytes,
        )


@dataclass(slots=True, eq=False)
class Transfer:
    """Bytes on their way from one peer to another; `node.sim.links` moves them."""

    source: Peer
    target: Peer
    left: float
    """Bytes to go."""
    deadline: float
    ended: Callable[[str], None]
    """Told once: all is here (empty), or why not."""
    breaks: bool = False
    """It ends before it is complete."""
    rate: float = 0.0
    since: float = 0.0
    """When `left` was counted."""
    due: int = 0
    """Names the newest appointment for its end."""
    over: bool = False


@dataclass(slots=True, eq=False)
class Peer:
    """One simulated node; only its world changes it."""

    id: PeerId
    trainer: Trainer
    worker: Worker
    up: Link
    down: Link
    latency_s: float
    """Its line's, see `node.sim.line.Line`."""
    relayed: bool
    came_at: float
    """Later by as long as it was away."""
    gone_at: float = math.inf
    stats: Stats = field(default_factory=Stats)
    alive: bool = True
    trains: bool = True
    """Until `Finished`."""
    starting: bool = False
    """It has nothing to train from yet."""
    backlog: list[Event] | None = None
    """What a frozen peer will be told when it is thawed; None while it runs."""
    silent_since: float = math.inf
    """Frozen or killed then: others see it until its presence expires."""
    group: int = 0
    """Peers of different groups cannot reach each other."""
    view: tuple[PeerId, ...] = ()
    fetching: dict[Digest, Transfer] = field(default_factory=dict)
    catching: Transfer | None = None
    """A saved state on its way."""
    decisions: tuple[Decision, ...] = ()
    doubts: dict[PeerId, Digest] = field(default_factory=dict)
    """Who may wait to see what this peer decided about which of its payloads."""
    closed_at: float = 0.0
    skew_s: float = 0.0
    """How far its clock is ahead of the world's."""
    started_at: float = 0.0
    """This process of it."""
    waiting: Wait | None = None

    def reaches(self, other: Peer | None) -> bool:
        """Whether bytes get through: they do to a frozen peer, too."""
        return other is not None and other.alive and other.group == self.group

    def wait_for(self, wait: Wait | None, now: float) -> None:
        """Another wait begins, or none: the one before is over."""
        before, self.waiting = self.waiting, wait
        if before and now - before.until > OVERDUE_S:
            self.stats.overdue += 1
            self.stats.overdue_s += now - before.until
