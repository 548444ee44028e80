"""What the simulated world keeps of a peer, and what it does to all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from node.sim_worker import Worker
from protocol.ids import Digest, PeerId
from protocol.messages import Decision
from trainers.machine import Closed, Event, Fetch, Trainer, Wait


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
    bytes_per_s: float = 5e6
    """Of one transfer."""
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
    payload_bytes: int = 0
    """Fetched."""
    messages: int = 0
    """Sent."""
    alone: dict[str, int] = field(default_factory=dict)
    """Missed exchanges by reason."""

    def count(self, closed: Closed) -> None:
        """Take in the end of a round."""
        if closed.exchange:
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
            self.payload_bytes + other.payload_bytes,
            self.messages + other.messages,
            {why: self.alone.get(why, 0) + other.alone.get(why, 0) for why in sorted(reasons)},
        )


@dataclass(slots=True, eq=False)
class Peer:
    """One simulated node; only its world changes it."""

    id: PeerId
    trainer: Trainer
    worker: Worker
    stats: Stats = field(default_factory=Stats)
    alive: bool = True
    trains: bool = True
    """Until `Finished`."""
    backlog: list[Event] | None = None
    """What a frozen peer will be told when it is thawed; None while it runs."""
    silent_since: float = math.inf
    """Frozen or killed then: others see it until its presence expires."""
    group: int = 0
    """Peers of different groups cannot reach each other."""
    view: tuple[PeerId, ...] = ()
    fetching: dict[Digest, Fetch] = field(default_factory=dict)
    talked_to: dict[PeerId, None] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()
    closed_at: float = 0.0
    waiting: Wait | None = None

    def reaches(self, other: Peer | None) -> bool:
        """Whether bytes get through: they do to a frozen peer, too."""
        return other is not None and other.alive and other.group == self.group
