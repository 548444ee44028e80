"""The simulated shell: thousands of trainers in one thread, under virtual time.

It carries out the same effects as `node.driver`, on a heap instead of an event loop.  A
message takes its latency or is lost, a payload takes as long as its bytes, an inner step as
long as that peer's speed says.  An hour costs as long as its events do, and one seed gives
one history, bit for bit.  Peers may be killed, frozen and thawed, cut apart and healed, lose
their worker, and join late.

Kept simple: transfers do not share bandwidth, and presence is told by the world itself: each
peer sees a random part of those that train, and a proposer's decisions are seen by those to
whom it sent messages last.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import assert_never

from node.driver import CATCH_UP_S
from node.sim_clock import Clock
from node.sim_peer import Conditions, Peer, Stats
from node.sim_worker import Learner, Speed, Worker
from protocol.ids import PeerId, Round
from protocol.messages import Message
from trainers.machine import (
    ApplyOuter,
    Blame,
    Closed,
    CloseInner,
    DecisionsSeen,
    Effect,
    Event,
    Fetch,
    Fetched,
    FetchFailed,
    Finished,
    MembersChanged,
    Publish,
    Received,
    Release,
    RunInner,
    Send,
    SendFailed,
    SetTimer,
    Snapshot,
    TimerFired,
    Trainer,
    Wait,
)

CORRESPONDENTS = 16
"""A peer's decisions are told to this many others, those it sent messages to last."""
FROZEN_RETRY_S = 1.0
"""How often a transfer from a frozen peer looks whether it goes on."""
PRESENCE_TICK_S = 0.5
"""Views change on this grid, so that many joiners cost one look at the swarm."""


class World:
    """All peers and the links between them."""

    def __init__(self, seed: int, conditions: Conditions | None = None) -> None:
        self.rng = random.Random(seed)
        self.conditions = conditions or Conditions()
        self.clock = Clock()
        self.events = 0
        self.peers: dict[PeerId, Peer] = {}
        self.lost: dict[PeerId, Peer] = {}
        """Killed."""
        self.blamed: list[tuple[PeerId, PeerId, str]] = []
        self.trace: Callable[[float, PeerId, Event, list[Effect]], None] | None = None
        self._cut_at = math.inf
        self._known: set[PeerId] = set()
        self._refreshes: set[float] = set()

    # --- what happens to peers --------------------------------------------------------------

    def add(
        self,
        id: PeerId,
        trainer: Trainer,
        learner: Learner,
        speed: Speed,
        *,
        donor: PeerId | None = None,
    ) -> Peer:
        """A peer starts: at round 0, or late, from the saved state of `donor`."""
        worker = Worker(learner, speed, self.clock, lambda event: self._tell(peer, event))
        peer = self.peers[id] = Peer(id, trainer, worker, closed_at=self.clock.now)
        source = self.peers[donor].worker if donor else None
        worker.start(source.round if source else Round(0), source.saved if source else None)
        self._refresh_after(self._draw(self.conditions.presence_s))
        return peer

    def kill(self, id: PeerId) -> None:
        """The peer is gone at once and for good."""
        peer = self.lost[id] = self.peers.pop(id)
        peer.alive, peer.silent_since = False, self.clock.now
        self._refresh_after(self.conditions.expiry_s)

    def freeze(self, id: PeerId) -> None:
        """The node handles nothing (SIGSTOP); its worker ends what it was asked for."""
        peer = self.peers[id]
        peer.backlog, peer.silent_since = [], self.clock.now
        self._refresh_after(self.conditions.expiry_s)

    def thaw(self, id: PeerId) -> None:
        """The node goes on, and handles late all that came meanwhile."""
        peer = self.peers[id]
        backlog, peer.backlog, peer.silent_since = peer.backlog or [], None, math.inf
        for event in backlog:
            late_s = CATCH_UP_S if isinstance(event, TimerFired) else 0.0
            self.clock.after(late_s, self._tell, peer, event)
        self._publish(peer)
        self._refresh_after(self._draw(self.conditions.presence_s))

    def cut(self, groups: dict[PeerId, int]) -> None:
        """Only peers of one group reach each other; who is not named is in group 0."""
        for peer in self.peers.values():
            peer.group = groups.get(peer.id, 0)
        self._cut_at = self.clock.now
        self._refresh_after(self.conditions.expiry_s)

    def heal(self) -> None:
        """Everyone reaches everyone."""
        self._cut_at = math.inf
        for peer in self.peers.values():
            peer.group = 0
            self._publish(peer)
        self._refresh_after(self._draw(self.conditions.presence_s))

    def crash_worker(self, id: PeerId) -> None:
        """The worker dies with all it was doing, and comes back from its saved state."""
        self.peers[id].worker.crash()

    def run_until(self, end: float) -> None:
        """Let virtual time pass."""
        self.clock.run_until(end)

    def total(self) -> Stats:
        """What all peers did, the killed ones included."""
        everyone = (*self.peers.values(), *self.lost.values())
        return sum((peer.stats for peer in everyone), Stats())

    # --- effects ----------------------------------------------------------------------------

    def _tell(self, me: Peer, event: Event) -> None:
        if not me.alive:
            return
        if me.backlog is not None:
            me.backlog.append(event)
            return
        self.events += 1
        effects = me.trainer.handle(event, self.clock.now)
        if self.trace:
            self.trace(self.clock.now, me.id, event, effects)
        for effect in effects:
            self._carry_out(me, effect)

    def _carry_out(self, me: Peer, effect: Effect) -> None:
        match effect:
            case Send(to, message):
                self._send(me, to, message)
            case SetTimer(at, timer):
                self.clock.after(at - self.clock.now, self._tell, me, TimerFired(timer))
            case RunInner(round, steps):
                me.worker.run_inner(round, steps)
            case CloseInner():
                me.worker.close_inner()
            case Snapshot(round):
                me.worker.snapshot(round)
            case ApplyOuter():
                me.worker.apply_outer(effect)
            case Fetch():
                self._fetch(me, effect)
            case Release(digest):
                me.worker.held.pop(digest, None)
                me.fetching.pop(digest, None)
            case Publish(decisions):
                me.decisions = decisions
                self._publish(me)
            case Wait():
                me.waiting = effect
            case Closed():
                me.stats.count(effect)
                me.closed_at = self.clock.now
            case Finished():
                me.trains = False
                self._refresh_after(self._draw(self.conditions.presence_s))
            case Blame(peer, reason):
                self.blamed.append((me.id, peer, reason))
            case _:
                assert_never(effect)

    # --- links ------------------------------------------------------------------------------

    def _send(self, me: Peer, to: PeerId, message: Message) -> None:
        me.stats.messages += 1
        me.talked_to.pop(to, None)
        me.talked_to[to] = None
        if len(me.talked_to) > CORRESPONDENTS:
            del me.talked_to[next(iter(me.talked_to))]
        world, target = self.conditions, self.peers.get(to)
        if not me.reaches(target):
            self._fail(me, to, message)
        elif self._happens(world.loss):
            if self._happens(world.told):
                self._fail(me, to, message)
        else:
            for _ in range(1 + self._happens(world.doubled)):
                self.clock.after(self._draw(world.latency_s), self._arrive, me, target, message)
            if self._happens(world.unsure):
                self._fail(me, to, message)

    def _arrive(self, sender: Peer, target: Peer, message: Message) -> None:
        world = self.conditions
        if not sender.reaches(target):
            self._fail(sender, target.id, message)
            return
        if target.backlog is not None:
            silent_since = target.silent_since
            self.clock.after(
                world.send_deadline_s, self._unanswered, sender, target, silent_since, message
            )
        self._tell(target, Received(sender.id, message))

    def _fail(self, sender: Peer, to: PeerId, message: Message) -> None:
        """Tell it once it has noticed."""
        failed = SendFailed(to, message)
        self.clock.after(self._draw(self.conditions.gone_s), self._tell, sender, failed)

    def _unanswered(
        self, sender: Peer, target: Peer, silent_since: float, message: Message
    ) -> None:
        if target.silent_since == silent_since:  # since the message came
            self._tell(sender, SendFailed(target.id, message))

    def _fetch(self, me: Peer, effect: Fetch) -> None:
        world = self.conditions
        me.fetching[effect.digest] = effect
        if me.reaches(self.peers.get(effect.source)):
            takes_s = self._draw(world.latency_s) * 2 + effect.size_bytes / world.bytes_per_s
        else:
            takes_s = self._draw(world.gone_s)
        deadline = self.clock.now + world.fetch_deadline_s
        self.clock.after(min(takes_s, world.fetch_deadline_s), self._fetched, me, effect, deadline)

    def _fetched(self, me: Peer, effect: Fetch, deadline: float) -> None:
        if me.fetching.get(effect.digest) is not effect:
            return  # released meanwhile
        source = self.peers.get(effect.source)
        stalled = source is not None and source.backlog is not None and me.reaches(source)
        if stalled and self.clock.now < deadline:
            self.clock.after(FROZEN_RETRY_S, self._fetched, me, effect, deadline)
            return
        del me.fetching[effect.digest]
        if source is None or not me.reaches(source):
            self._tell(me, FetchFailed(effect.digest, "its source is gone"))
        elif self.clock.now >= deadline:
            self._tell(me, FetchFailed(effect.digest, "not here by the deadline"))
        elif effect.digest not in source.worker.held:
            self._tell(me, FetchFailed(effect.digest, "its source does not hold it"))
        else:
            me.worker.held[effect.digest] = source.worker.held[effect.digest]
            me.stats.payload_bytes += effect.size_bytes
            self._tell(me, Fetched(effect.digest))

    # --- presence ---------------------------------------------------------------------------

    def _publish(self, me: Peer) -> None:
        for id in me.talked_to:
            self.clock.after(self._draw(self.conditions.presence_s), self._see, me, id)

    def _see(self, proposer: Peer, id: PeerId) -> None:
        watcher = self.peers.get(id)
        if watcher and proposer.reaches(watcher) and proposer.alive and proposer.backlog is None:
            self._tell(watcher, DecisionsSeen(proposer.id, proposer.decisions))

    def _refresh_after(self, delay_s: float) -> None:
        """Look at all views on the next tick after the delay."""
        tick = math.ceil((self.clock.now + delay_s) / PRESENCE_TICK_S) * PRESENCE_TICK_S
        if tick not in self._refreshes:
            self._refreshes.add(tick)
            self.clock.after(tick - self.clock.now, self._refresh, tick)

    def _refresh(self, tick: float) -> None:
        self._refreshes.remove(tick)
        now, expiry_s = self.clock.now, self.conditions.expiry_s
        cut = now - self._cut_at >= expiry_s
        groups: dict[int, list[PeerId]] = {}
        for peer in (*self.peers.values(), *self.lost.values()):
            if peer.trains and now - peer.silent_since < expiry_s:
                groups.setdefault(peer.group if cut else 0, []).append(peer.id)
        present = {id: group for group, ids in groups.items() for id in ids}
        news = [id for id in present if id not in self._known]
        self._known = set(present)
        for peer in self.peers.values():
            group = peer.group if cut else 0
            kept = [id for id in peer.view if present.get(id) == group]
            mine = [id for id in news if present[id] == group and id != peer.id]
            view = self._view(peer.id, kept, groups.get(group, []), mine)
            if view != peer.view:
                peer.view = view
                self._tell(peer, MembersChanged(view))

    def _view(
        self, me: PeerId, kept: list[PeerId], present: list[PeerId], news: list[PeerId]
    ) -> tuple[PeerId, ...]:
        """Keep whom one sees, fill up at random, make room for some of the news."""
        most = self.conditions.view
        if len(present) <= most:
            return tuple(sorted(id for id in present if id != me))
        for id in news if len(kept) == most else []:
            if id not in kept and self._happens(most / len(present)):
                kept[self.rng.randrange(most)] = id
        while len(kept) < most:
            id = present[self.rng.randrange(len(present))]
            if id != me and id not in kept:
                kept.append(id)
        return tuple(sorted(kept))

    # --- chance -----------------------------------------------------------------------------

    def _draw(self, bounds: tuple[float, float]) -> float:
        return self.rng.uniform(*bounds)

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self.rng.random() < probability
