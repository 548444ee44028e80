"""Whether this node can be reached, and through whom if not: a machine without input or output.

Addresses that may be ours are *claims*: those where others see our listening port, those of the
machine that are of the open internet, and one that a router opened for us.  A claim holds when
two peers, which had no connection to us, have dialled it; it falls when two others could not.
While none holds, two relays take connections for us; one that goes silent is replaced.

Handlers record facts; `_advance` looks at all of them and decides.  It is to be called with
`Tick` every second or so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import assert_never

from protocol.ids import PeerId, seed_of
from protocol.limits import MAX_ADDRS

AGREE = 2
"""Peers that make a verdict: one may lie, or sit in our own network."""
RELAYS = 2
"""One may die, and peers then come through the other until it is replaced."""
MAX_CLAIMS = 4
"""Addresses under examination; a machine has one or two."""
MAX_VOTES = 16
"""Kept of one claim, the newest."""
VERDICT_S = 900.0
"""A vote is forgotten after it: routers restart and addresses change."""
ASK_AGAIN_S = 30.0
"""Until the same helper is asked about the same claim again."""
ANSWER_S = 20.0
"""Until an unanswered helper counts as gone."""
RENEW_SHARE = 0.5
"""A reservation is renewed when so much of its time is over."""
AVOID_S = 10.0
"""A relay that refused; doubles with each refusal up to:"""
AVOID_MOST_S = 600.0


# --- events ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Direct:
    """Peers that are connected, not through a relay, at addresses of the open internet."""

    peers: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Claims:
    """Addresses that may be ours, without /p2p."""

    addrs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """`peer`, which had no connection to us, has dialled us at `addr`."""

    peer: PeerId
    addr: str


@dataclass(frozen=True, slots=True)
class Unseen:
    """`helper` answered: so many others could not dial us at `addr`; 0: it has nobody to ask."""

    helper: PeerId
    addr: str
    failed: int


@dataclass(frozen=True, slots=True)
class Reserved:
    """`relay` takes connections for us, for so long, at these addresses."""

    relay: PeerId
    for_s: float
    addrs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NotReserved:
    """`relay` does not."""

    relay: PeerId


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Direct | Claims | Seen | Unseen | Reserved | NotReserved | Tick

# --- effects -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AskDialBack:
    """Ask `helper` to have `addr` dialled by others; answers: `Unseen`, and `Seen` from them."""

    helper: PeerId
    addr: str


@dataclass(frozen=True, slots=True)
class Reserve:
    """Ask `relay` to take connections for us; the answer is `Reserved` or `NotReserved`."""

    relay: PeerId


@dataclass(frozen=True, slots=True)
class Announce:
    """From now on this is known of us."""

    verdict: str
    """public, private or unknown."""
    addrs: tuple[str, ...]
    """Claims that hold, then addresses through relays."""


Effect = AskDialBack | Reserve | Announce


@dataclass(slots=True)
class _Claim:
    """An address and who could dial it."""

    votes: dict[str, tuple[bool, float]] = field(default_factory=dict)
    """By voter: whether it got through, and when."""
    asked: dict[PeerId, float] = field(default_factory=dict)
    """Helpers, and when."""
    waits_until: float = 0.0

    def count(self, reached: bool, now: float) -> int:
        return sum(got is reached and now - at < VERDICT_S for got, at in self.votes.values())


@dataclass(slots=True)
class _Relay:
    """A relay that we have, or ask."""

    until: float
    renew_at: float
    addrs: tuple[str, ...] = ()
    asking: bool = True


class Reachability:
    """One per node."""

    def __init__(self, me: PeerId) -> None:
        self._me = me
        self._direct: tuple[PeerId, ...] = ()
        self._claims: dict[str, _Claim] = {}
        self._relays: dict[PeerId, _Relay] = {}
        self._avoided: dict[PeerId, tuple[int, float]] = {}
        """Who refused to be our relay: how often in a row, and until when it is not asked."""
        self._announced = Announce("unknown", ())

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in a fact; what is to be done."""
        match event:
            case Direct(peers):
                self._direct = peers
                for relay in [relay for relay in self._relays if relay not in peers]:
                    del self._relays[relay]
            case Claims(addrs):
                self._claims = {a: self._claims.get(a, _Claim()) for a in addrs[:MAX_CLAIMS]}
            case Seen(peer, addr):
                self._vote(addr, peer, True, now)
            case Unseen(helper, addr, failed):
                for n in range(min(failed, AGREE)):
                    self._vote(addr, f"{helper} {n}", False, now)
                if addr in self._claims:
                    self._claims[addr].waits_until = now
            case Reserved(relay, for_s, addrs):
                if relay in self._direct:
                    self._avoided.pop(relay, None)
                    renew_at = now + for_s * RENEW_SHARE
                    self._relays[relay] = _Relay(now + for_s, renew_at, addrs, asking=False)
            case NotReserved(relay):
                failures, _ = self._avoided.pop(relay, (0, 0.0))
                for_s = min(AVOID_S * 2**failures, AVOID_MOST_S)
                self._avoided[relay] = (min(failures + 1, 16), now + for_s)
                self._relays.pop(relay, None)
            case Tick():
                pass
            case _:
                assert_never(event)
        return self._advance(now)

    @property
    def relays(self) -> tuple[PeerId, ...]:
        """Those that take connections for us now."""
        return tuple(sorted(peer for peer, relay in self._relays.items() if relay.addrs))

    def _vote(self, addr: str, voter: str, reached: bool, now: float) -> None:
        if claim := self._claims.get(addr):
            claim.votes.pop(voter, None)
            claim.votes[voter] = (reached, now)
            while len(claim.votes) > MAX_VOTES:
                del claim.votes[next(iter(claim.votes))]

    def _verdict(self, claim: _Claim, now: float) -> str:
        if claim.count(True, now) >= AGREE:
            return "public"
        if claim.count(False, now) >= AGREE:
            return "private"
        return "unknown"

    def _advance(self, now: float) -> list[Effect]:
        verdicts = {addr: self._verdict(claim, now) for addr, claim in self._claims.items()}
        held = [addr for addr, verdict in verdicts.items() if verdict == "public"]
        effects: list[Effect] = []
        for addr, claim in self._claims.items():
            if verdicts[addr] == "unknown" and claim.waits_until <= now:
                effects += self._ask(addr, claim, now)
        if held or not self._claims:  # who is seen at no such address is among its own
            self._relays = {}
        else:
            effects += self._keep_relays(now)
        if held:
            verdict = "public"
        elif verdicts and "unknown" not in verdicts.values():
            verdict = "private"
        else:
            verdict = "unknown"
        through = [addr for _, r in sorted(self._relays.items()) for addr in r.addrs]
        announce = Announce(verdict, (*held, *through)[:MAX_ADDRS])
        if announce != self._announced:
            self._announced = announce
            effects.append(announce)
        return effects

    def _ask(self, addr: str, claim: _Claim, now: float) -> list[Effect]:
        """Ask the helper that was asked longest ago."""
        able = [p for p in self._direct if now - claim.asked.get(p, -ASK_AGAIN_S) >= ASK_AGAIN_S]
        if not able:
            return []
        helper = min(able, key=lambda peer: (claim.asked.get(peer, -1.0), peer))
        claim.asked = {p: at for p, at in claim.asked.items() if p in self._direct}
        claim.asked[helper] = now
        claim.waits_until = now + ANSWER_S
        return [AskDialBack(helper, addr)]

    def _keep_relays(self, now: float) -> list[Effect]:
        """Renew those that we have, replace those that are gone."""
        effects: list[Effect] = []
        for peer, relay in list(self._relays.items()):
            if relay.until <= now:
                del self._relays[peer]
            elif relay.renew_at <= now and not relay.asking:
                relay.asking = True
                effects.append(Reserve(peer))
        for peer in [p for p, (_, until) in self._avoided.items() if until <= now]:
            if peer not in self._direct:
                del self._avoided[peer]
        able = [
            peer
            for peer in self._direct
            if peer not in self._relays and self._avoided.get(peer, (0, 0.0))[1] <= now
        ]
        # Each node prefers others, so that no relay serves everybody.
        able.sort(key=lambda peer: (self._avoided.get(peer, (0, 0.0))[0], seed_of(self._me, peer)))
        for peer in able[: max(0, RELAYS - len(self._relays))]:
            self._relays[peer] = _Relay(now + ANSWER_S, now + ANSWER_S)
            effects.append(Reserve(peer))
        return effects
