"""The tables of a scenario file: groups of peers, their network, and what happens to them.

Constructors check ranges and name field, value and range; `node.sim.scenario` reads the file
and says where.  docs/simulator.md explains each key.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.sim.line import MBIT
from node.sim.peer import Conditions
from protocol import check

MAX_PEERS = 20_000
"""At the start, and as many may come later: some GB of memory."""
MAX_TIME_S = 30 * 86400.0
MAX_SKEW_S = 86400.0
"""Of a clock: a day, as between time zones."""
HAPPENINGS = ("kill", "wipe", "leave", "join", "freeze", "crash", "cut", "heal")


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupConfig:
    """Peers that are alike."""

    name: str = ""
    """Empty: its number."""
    count: int = 1
    step_s: float = 1.0
    """Seconds of an inner step."""
    step_spread: float = 0.1
    """Each peer's own step lasts up to this share longer or shorter."""
    tokens: int = 0
    """In an inner step; 0: as many as [inner] and [model] say."""
    up_mbit: float = 40.0
    """Mbit/s."""
    down_mbit: float = 40.0
    latency_s: tuple[float, ...] = (0.005, 0.03)
    """From here to the middle of the internet: each peer's own lies between these two."""
    clock_s: tuple[float, ...] = (0.0, 0.0)
    """How far a peer's clock is ahead of the others', below 0 behind: between these two."""
    relayed: float = 0.0
    """Share of the peers that are reached through a relay only."""
    target: float = 1.0
    """Of the toy: around what the data of its first peers pull, in every entry.  Those who join
    later pull to the mean of all."""

    def __post_init__(self) -> None:
        check.text("name", self.name, 32)
        check.integer("count", self.count, 0, MAX_PEERS)
        check.number("step_s", self.step_s, 1e-3, 1e4)
        check.number("step_spread", self.step_spread, 0.0, 0.9)
        check.integer("tokens", self.tokens, 0, 1 << 24)
        check.number("up_mbit", self.up_mbit, 1e-3, 1e6)
        check.number("down_mbit", self.down_mbit, 1e-3, 1e6)
        bounds("latency_s", self.latency_s, 10.0)
        bounds("clock_s", self.clock_s, MAX_SKEW_S, least=-MAX_SKEW_S)
        check.number("relayed", self.relayed, 0.0, 1.0)
        check.number("target", self.target, -1e3, 1e3)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """What the internet does to everybody.  Probabilities are of one message or transfer."""

    jitter_s: tuple[float, ...] = (0.0, 0.02)
    """Drawn anew for each message and added to both latencies."""
    loss: float = 0.0
    """A message never arrives."""
    told: float = 0.5
    """Of those lost, the share of which the sender is told."""
    doubled: float = 0.0
    """A message arrives twice."""
    unsure: float = 0.0
    """A message arrives, and the sender is told that it did not."""
    broken: float = 0.0
    """A transfer breaks off half-way."""
    relay_latency_s: float = 0.1
    relay_mbit: float = 1.0
    """Of each transfer through a relay."""
    expiry_s: float = 10.0
    """Until a peer that fell silent is missed."""
    view: int = 64
    """Peers that one peer sees at most."""

    def __post_init__(self) -> None:
        bounds("jitter_s", self.jitter_s, 10.0)
        for name in ("loss", "told", "doubled", "unsure", "broken"):
            check.number(name, getattr(self, name), 0.0, 1.0)
        check.number("relay_latency_s", self.relay_latency_s, 0.0, 10.0)
        check.number("relay_mbit", self.relay_mbit, 1e-3, 1e6)
        check.number("expiry_s", self.expiry_s, 0.5, 3600.0)
        check.integer("view", self.view, 1, 1024)

    def conditions(self) -> Conditions:
        """As the world takes them."""
        return Conditions(
            latency_s=pair(self.jitter_s),
            loss=self.loss,
            told=self.told,
            doubled=self.doubled,
            unsure=self.unsure,
            broken=self.broken,
            relay_latency_s=self.relay_latency_s,
            relay_bytes_per_s=self.relay_mbit * MBIT,
            expiry_s=self.expiry_s,
            view=self.view,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HappeningConfig:
    """Something that happens to some peers at a time."""

    what: str
    at_s: float
    share: float = 0.0
    """Of the peers (of the group) to whom it happens; cut: that are cut off from the others."""
    count: int = 0
    """The same as a number."""
    group: str = ""
    """To peers of this group only; join: who comes.  Empty: any."""
    for_s: float = 0.0
    """freeze: how long; kill, wipe: until it comes back under the same key, kill with 0: never."""

    def __post_init__(self) -> None:
        check.one_of("what", self.what, HAPPENINGS)
        check.number("at_s", self.at_s, 0.0, MAX_TIME_S)
        check.number("share", self.share, 0.0, 1.0)
        check.integer("count", self.count, 0, MAX_PEERS)
        check.text("group", self.group, 32)
        check.number("for_s", self.for_s, 0.0, MAX_TIME_S)
        if (self.what != "heal") == (self.share == 0.0 and self.count == 0):
            expected = "neither" if self.what == "heal" else "one of them above 0"
            raise ValueError(
                f"share is {self.share:g} and count is {self.count} of what = {self.what!r}, "
                f"expected {expected}"
            )
        is_back = self.what in ("freeze", "wipe")
        if is_back != (self.for_s > 0) and self.what != "kill":
            expected = "above 0" if is_back else "0"
            raise ValueError(
                f"for_s is {self.for_s:g} of what = {self.what!r}, expected {expected}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChurnConfig:
    """What happens by chance, so many times a minute in the whole swarm."""

    joins: float = 0.0
    leaves: float = 0.0
    kills: float = 0.0
    freezes: float = 0.0
    freeze_s: float = 20.0
    crashes: float = 0.0
    """Of workers."""
    wipes: float = 0.0
    """Killed, and the disk is lost."""
    back_s: float = 0.0
    """Until a killed or wiped peer comes back under the same key; 0: never, and no wipes."""
    from_s: float = 0.0
    until_s: float = MAX_TIME_S

    def __post_init__(self) -> None:
        for name in ("joins", "leaves", "kills", "freezes", "crashes", "wipes"):
            check.number(name, getattr(self, name), 0.0, 60_000.0)
        check.number("freeze_s", self.freeze_s, 0.1, 86400.0)
        check.number("back_s", self.back_s, 0.0, MAX_TIME_S)
        if self.wipes and not self.back_s:
            raise ValueError(f"back_s is 0 with wipes = {self.wipes:g}, expected above 0")
        check.number("from_s", self.from_s, 0.0, MAX_TIME_S)
        check.number("until_s", self.until_s, 0.0, MAX_TIME_S)

    def rates(self) -> dict[str, float]:
        """Times a minute, by the words of `HAPPENINGS`."""
        return {
            "join": self.joins,
            "leave": self.leaves,
            "kill": self.kills,
            "freeze": self.freezes,
            "crash": self.crashes,
            "wipe": self.wipes,
        }

    def for_s(self, what: str) -> float:
        """How long it lasts."""
        return {"freeze": self.freeze_s, "kill": self.back_s, "wipe": self.back_s}.get(what, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyConfig:
    """The task of the toy: each peer's data pull a vector to a target of its own."""

    numbers: int = 8
    spread: float = 0.5
    """Of the targets around those of the groups: how different the peers' data are."""

    def __post_init__(self) -> None:
        check.integer("numbers", self.numbers, 1, 100_000)
        check.number("spread", self.spread, 0.0, 1e3)


def bounds(name: str, value: tuple[float, ...], most: float, *, least: float = 0.0) -> None:
    """`value` is two numbers from `least` to `most`, the smaller first."""
    if len(value) != 2:
        raise ValueError(f"{name} has {len(value)} numbers, expected two: least and most")
    check.number(f"{name}[0]", value[0], least, most)
    check.number(f"{name}[1]", value[1], value[0], most)


def pair(value: tuple[float, ...]) -> tuple[float, float]:
    """Bounds as their type says."""
    least, most = value
    return least, most
