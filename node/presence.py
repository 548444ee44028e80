"""Gossip about who is alive: what this node says of itself, and what it hears of others.

Every second the node signs what it says of itself and pushes it, with a few entries of
others, to four peers of its view; their answers bring entries back.  So a peer that dies is
gone from all views within `TTL_MS`, and one that leaves says so and is gone at once.  The
view is small whatever the size of the swarm, and so is the traffic: see `TICK_S`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from node.pausing import pause
from node.ports import Rpc
from node.presence_view import PresenceView
from node.wall_clock import WallClock
from protocol import codec, rpc
from protocol.envelope import Domain, Signer
from protocol.errors import Malformed, PeerUnavailable, RemoteProtocolError
from protocol.ids import PeerId, Round, RunId, short
from protocol.limits import MAX_ADDRS
from protocol.messages import Decision, Presence, PresenceEntry

log = logging.getLogger(__name__)

TICK_S = 1.0
"""An entry has 0.3 to 0.6 KB on the wire, a push or an answer its own and at most eight others.
Simulated: 4 peers send 6 KB/s each, 64 or 1,000 peers 35 KB/s each, and never more."""
ROTATE_TICKS = 10
"""Every so many ticks one active peer makes room for a passive one.  A guess."""
TTL_MS = 10_000
"""A peer is dead after ten seconds of silence.  A guess: ten pushes lost."""
MAX_PUSHES = 8
"""Pushes under way; one more is skipped."""
LEAVE_S = 0.7
"""For the last presence to be taken; within `node.node.LEAVE_S`."""
LEAVE_PEERS = 16
"""Peers told when we leave; they tell the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What this node says of itself at this moment."""

    addrs: tuple[str, ...]
    state: str
    round: Round
    inner_step: int
    tokens_per_s: float
    loss: float
    decisions: tuple[Decision, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """This start of the process."""

    nonce: bytes
    """8 random bytes."""
    started_unix_s: int


class PresenceService:
    """Gossips for this node.  Everything happens in the one event loop."""

    def __init__(
        self,
        *,
        run: RunId,
        signer: Signer,
        boot: Boot,
        view: PresenceView,
        rpc: Rpc,
        facts: Callable[[], Facts],
        add_addrs: Callable[[PeerId, list[str]], None],
        changed: Callable[[tuple[Presence, ...]], None],
        blame: Callable[[PeerId, str], None],
        clock: Callable[[], float],
        unix_s: Callable[[], float],
    ) -> None:
        """
        Args:
            unix_s: the wall clock; told to others, and compared with theirs.
            facts: asked at every tick.
            add_addrs: told the addresses of a live peer when they are new.
            changed: told the live peers when one came or went, or one's state or decisions
                changed; must not wait.
            blame: told who passed on what is no presence, and why.
        """
        self._run = run
        self._signer = signer
        self._boot = boot
        self._view = view
        self._rpc = rpc
        self._facts = facts
        self._add_addrs = add_addrs
        self._changed = changed
        self._blame = blame
        self._clock = clock
        self._unix_s = unix_s
        self._wall_clock = WallClock()
        self._soon = asyncio.Event()
        self._seq = 0
        self._leaving = False
        self._pushing: set[PeerId] = set()
        self._told: list[tuple[object, ...]] = []
        self._addrs: dict[PeerId, tuple[str, ...]] = {}
        self._own = self._sign()

    def live(self) -> tuple[Presence, ...]:
        """The peers that are there now, by id, without this node."""
        return self._view.live(self._clock())

    def speak(self) -> None:
        """What this node says of itself has changed: say it now, not at the next tick."""
        self._soon.set()

    async def run(self) -> None:
        """Gossip until cancelled."""
        ticks = 0
        async with asyncio.TaskGroup() as pushes:
            while True:
                ticks += 1
                now = self._clock()
                self._view.expire(now)
                if ticks % ROTATE_TICKS == 0:
                    self._view.rotate(now)
                    self._wall_clock.compare(self.live(), self._unix_s())
                self._own = self._sign()
                for peer in self._view.targets(now):
                    pushes.create_task(self.meet(peer))
                self._tell()
                self._soon.clear()
                await pause(TICK_S, self._soon)

    async def meet(self, peer: PeerId) -> None:
        """Exchange entries with `peer`, which need not be in the view; never raises for it."""
        if peer in self._pushing or len(self._pushing) >= MAX_PUSHES:
            return
        self._pushing.add(peer)
        try:
            entries = (self._own, *self._view.sample(peer, self._clock()))
            call = rpc.PresenceCall(self._run, entries)
            answer = await self._rpc.call(peer, rpc.PRESENCE, call)
        except (PeerUnavailable, RemoteProtocolError) as error:
            log.debug("presence not taken: %s", error)
            self._view.failed(peer, self._clock())
        else:
            self._take(peer, answer.entries)
        finally:
            self._pushing.discard(peer)

    async def handle(self, peer: PeerId, call: rpc.PresenceCall) -> rpc.PresenceCall:
        """Serve a push: its entries in, ours out but for those that it brought."""
        self._take(peer, call.entries)
        known = frozenset(entry.body for entry in call.entries)
        sample = self._view.sample(peer, self._clock(), known=known)
        return rpc.PresenceCall(self._run, (self._own, *sample))

    async def leave(self) -> None:
        """Tell the view that this node leaves; takes `LEAVE_S` at most."""
        self._leaving = True
        self._own = self._sign()
        call = rpc.PresenceCall(self._run, (self._own,))
        async with asyncio.TaskGroup() as pushes:
            for presence in self.live()[:LEAVE_PEERS]:
                pushes.create_task(self._tell_leaving(presence.peer, call))

    async def _tell_leaving(self, peer: PeerId, call: rpc.PresenceCall) -> None:
        try:
            await self._rpc.call(peer, rpc.PRESENCE, call, deadline_s=LEAVE_S)
        except (PeerUnavailable, RemoteProtocolError) as error:
            log.debug("leaving not told: %s", error)

    def _sign(self) -> PresenceEntry:
        self._seq += 1
        facts = self._facts()
        body = codec.encode(
            Presence(
                peer=self._signer.peer,
                boot=self._boot.nonce,
                seq=self._seq,
                started_unix_s=self._boot.started_unix_s,
                unix_s=int(self._unix_s()),
                ttl_ms=TTL_MS,
                addrs=facts.addrs[:MAX_ADDRS],
                state="leaving" if self._leaving else facts.state,
                round=facts.round,
                inner_step=facts.inner_step,
                tokens_per_s=_clamped(facts.tokens_per_s, 1e12),
                loss=_clamped(facts.loss, 1e6),
                decisions=facts.decisions,
            )
        )
        signature = self._signer.sign(Domain.PRESENCE, self._run, body)
        return PresenceEntry(body, signature, TTL_MS)

    def _take(self, sender: PeerId, entries: tuple[PresenceEntry, ...]) -> None:
        for entry in entries:
            try:
                self._view.take(entry, sender, self._clock())
            except Malformed as error:
                self._blame(sender, f"passed on a bad presence: {error}")
                break
        self._tell()

    def _tell(self) -> None:
        live = self.live()
        for presence in live:
            if presence.addrs and self._addrs.get(presence.peer) != presence.addrs:
                self._add_addrs(presence.peer, list(presence.addrs))
        self._addrs = {presence.peer: presence.addrs for presence in live}
        told: list[tuple[object, ...]] = [(p.peer, p.boot, p.state, p.decisions) for p in live]
        if told != self._told:
            self._told = told
            log.debug("live peers: %s", " ".join(short(p.peer) for p in live))
            self._changed(live)


def _clamped(value: float, most: float) -> float:
    """A diverging run has a loss that is no number; the presence goes out all the same."""
    return min(float(value), most) if value >= 0 else (0.0 if value < 0 else most)
