"""The simulated shell: thousands of trainers in one thread, under virtual time.

It carries out the same effects as `node.driver`, on a heap instead of an event loop.  A
message takes its latency or is lost, transfers share lines, an inner step takes as long as
that peer's speed says.  An hour costs as long as its events do, and one seed gives one
history, bit for bit.  Peers may join late, leave, be killed, frozen and thawed, cut apart and
healed, and lose their worker.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from node.driver import CATCH_UP_S
from node.sim.clock import Clock, world_time
from node.sim.line import Line, Link
from node.sim.links import Links
from node.sim.peer import Conditions, Peer, Stats
from node.sim.presence import Presence
from node.sim.records import RecordKeeping
from node.sim.state import Origin, Saved
from node.sim.worker import AnyLearner, Speed, Worker
from protocol.ids import PeerId
from protocol.messages import Accept, Have
from protocol.spec import RunSpec
from trainers.effects import (
    AddScalars,
    ApplyOuter,
    Blame,
    CatchUp,
    ChangeSettings,
    Closed,
    CloseInner,
    Effect,
    Fetch,
    Finished,
    NameSum,
    Paused,
    Publish,
    Release,
    RunInner,
    Sample,
    Send,
    SetTimer,
    Snapshot,
    Unpaused,
    Wait,
)
from trainers.events import Event, TimerFired
from trainers.machine import Trainer

ALONE_S = 10.0
"""How often a joiner that finds nobody looks again."""


class World:
    """All peers and what happens to them."""

    def __init__(self, seed: int, conditions: Conditions | None = None) -> None:
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.events = 0
        """That trainers were told."""
        self.peers: dict[PeerId, Peer] = {}
        self.lost: dict[PeerId, Peer] = {}
        """Killed, and left."""
        self.blamed: list[tuple[PeerId, PeerId, str]] = []
        self.trace: Callable[[float, PeerId, Event, list[Effect]], None] | None = None
        world = conditions or Conditions()
        self.links = Links(self.clock, self.rng, self.peers, world, self._tell)
        self._do = self._table()
        self._presence = Presence(self.clock, self.rng, self.peers, self.lost, world, self._tell)
        self.records: RecordKeeping | None = None
        """Unless `keep_records`."""

    @property
    def conditions(self) -> Conditions:
        """What the world does to all peers; may be changed at any time."""
        return self.links.conditions

    @conditions.setter
    def conditions(self, conditions: Conditions) -> None:
        self.links.conditions = self._presence.conditions = conditions
        if self.records:
            self.records.calls.conditions = conditions

    def keep_records(self, spec: RunSpec, seed: int) -> RecordKeeping:
        """Peers of this run have records from now on: each is to be opened."""
        self.records = RecordKeeping(
            spec,
            seed=seed,
            clock=self.clock,
            peers=self.peers,
            conditions=self.conditions,
            live=self._presence.live,
            blame=lambda me, peer, reason: self.blamed.append((me, peer, reason)),
        )
        return self.records

    # --- what happens to peers --------------------------------------------------------------

    def add(
        self,
        id: PeerId,
        trainer: Trainer,
        learner: AnyLearner,
        speed: Speed,
        *,
        line: Line | None = None,
        donor: PeerId | None = None,
    ) -> Peer:
        """A peer starts: at round 0, or at once from the saved state of `donor`."""
        peer = self._new(id, trainer, learner, speed, line or Line())
        self._start(peer, self.peers[donor].worker.saved if donor else None)
        return peer

    def meet(self) -> None:
        """Those added so far see each other before they train: nodes wait for `min_members`."""
        self._presence.meet()

    def join(
        self,
        id: PeerId,
        trainer: Trainer,
        learner: AnyLearner,
        speed: Speed,
        line: Line,
    ) -> Peer:
        """A peer comes late: it fetches a saved state from one that trains, and starts there."""
        peer = self._new(id, trainer, learner, speed, line)
        peer.starting = True
        self._seek(peer)
        return peer

    def come_back(
        self, id: PeerId, trainer: Trainer, learner: AnyLearner, speed: Speed, *, is_wiped: bool
    ) -> Peer:
        """A killed peer starts again under its key: from its own saved state, or as a joiner."""
        old = self.lost.pop(id)
        peer = self._new(id, trainer, learner, speed, _line_of(old))
        peer.stats, peer.up, peer.down = old.stats, old.up, old.down
        peer.came_at += old.came_at - old.gone_at
        peer.skew_s = old.skew_s
        peer.worker.still.go_on_from(old.worker.still)
        self._presence.came_back(peer)
        if is_wiped:
            peer.starting = True
            self._seek(peer)
        else:
            self._start(peer, old.worker.saved, Origin.OWN)
        return peer

    def _seek(self, peer: Peer, found: Saved | None = None) -> None:
        if found:
            peer.starting = False
            self._start(peer, found)
            return
        others = [id for id, other in self.peers.items() if not other.starting]
        if others and peer.alive:
            source = others[self.rng.randrange(len(others))]
            self.links.join(peer, source, lambda found: self._seek(peer, found))
        elif peer.alive:
            self.clock.after(ALONE_S, self._seek, peer)

    def _new(
        self,
        id: PeerId,
        trainer: Trainer,
        learner: AnyLearner,
        speed: Speed,
        line: Line,
    ) -> Peer:
        worker = Worker(learner, speed, self.clock, lambda event: self._tell(peer, event))
        peer = self.peers[id] = Peer(
            id,
            trainer,
            worker,
            Link(line.up_bytes_per_s),
            Link(line.down_bytes_per_s),
            line.latency_s,
            line.relayed,
            self.clock.now,
            closed_at=self.clock.now,
            started_at=self.clock.now,
        )
        return peer

    def _start(self, peer: Peer, saved: Saved | None, origin: Origin = Origin.GIVEN) -> None:
        peer.worker.start(saved, origin)
        self._presence.changed(peer)

    def kill(self, id: PeerId) -> None:
        """The peer is gone at once."""
        self._presence.fell_silent(self._lose(id, self.clock.now))

    def leave(self, id: PeerId) -> None:
        """The peer says that it goes, and goes."""
        self._presence.changed(self._lose(id, -math.inf))

    def _lose(self, id: PeerId, silent_since: float) -> Peer:
        peer = self.lost[id] = self.peers.pop(id)
        peer.alive, peer.silent_since, peer.gone_at = False, silent_since, self.clock.now
        self.links.break_off(peer)
        if self.records:
            self.records.lost(peer)
        return peer

    def freeze(self, id: PeerId) -> None:
        """The node handles nothing (SIGSTOP); its worker ends what it was asked for."""
        peer = self.peers[id]
        peer.backlog, peer.silent_since = [], self.clock.now
        if self.records:
            self.records.keepers[id].loop.pause()
        self.links.pause(peer)
        self._presence.fell_silent(peer)

    def thaw(self, id: PeerId) -> None:
        """The node goes on, and handles late all that came meanwhile."""
        peer = self.peers[id]
        backlog, peer.backlog, peer.silent_since = peer.backlog or [], None, math.inf
        if self.records:
            self.records.keepers[id].loop.resume()
        for event in backlog:
            late_s = CATCH_UP_S if isinstance(event, TimerFired) else 0.0
            self.clock.after(late_s, self._tell, peer, event)
        self.links.pause(peer)
        self._presence.publish(peer, peer.decisions)
        self._presence.changed(peer)

    def cut(self, groups: dict[PeerId, int]) -> None:
        """Only peers of one group reach each other; who is not named is in group 0."""
        for peer in self.peers.values():
            peer.group = groups.get(peer.id, 0)
        for peer in self.peers.values():
            self.links.break_off(peer)
        self._presence.cut()

    def heal(self) -> None:
        """Everyone reaches everyone."""
        self._presence.heal()
        for peer in self.peers.values():
            peer.group = 0

    def crash_worker(self, id: PeerId) -> None:
        """The worker dies with all it was doing, and comes back from its saved state."""
        peer = self.peers[id]
        self.links.forget_state(peer)
        peer.worker.crash()

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
        if self.records:
            self.records.told(me, event)
        effects = me.trainer.handle(event, self.clock.now + me.skew_s)
        if self.trace:
            self.trace(self.clock.now, me.id, event, effects)
        for effect in effects:
            self._do[type(effect)](me, effect)

    def _table(self) -> dict[type, Callable[[Peer, Any], None]]:
        """What to do about each kind of effect: looked up, for it is done millions of times."""
        links = self.links
        return {
            Send: self._send,
            SetTimer: self._set_timer,
            Wait: lambda me, effect: me.wait_for(effect, self.clock.now + me.skew_s),
            Release: lambda me, effect: links.release(me, effect.digest),
            RunInner: lambda me, effect: me.worker.run_inner(effect.round, effect.steps),
            CloseInner: lambda me, _: me.worker.close_inner(),
            Snapshot: lambda me, effect: me.worker.snapshot(effect.round, effect.fragment),
            ApplyOuter: lambda me, effect: me.worker.apply_outer(effect),
            Sample: lambda me, effect: me.worker.sampler.sample(effect),
            AddScalars: lambda me, effect: me.worker.sampler.add(effect),
            NameSum: lambda me, effect: me.worker.sampler.name(effect),
            CatchUp: links.catch_up,
            Fetch: links.fetch,
            Publish: lambda me, effect: self._presence.publish(me, effect.decisions),
            Closed: self._closed,
            Finished: self._finished,
            Paused: lambda me, _: None,  # no simulated run has a creator
            Unpaused: lambda me, _: None,
            ChangeSettings: lambda me, _: None,
            Blame: self._blame,
        }

    def _send(self, me: Peer, effect: Send) -> None:
        if isinstance(effect.message, Accept | Have):
            self._presence.remember_doubt(me, effect.to, effect.message)
        self.links.send(me, effect)

    def _set_timer(self, me: Peer, effect: SetTimer) -> None:
        at = world_time(effect.at, me.skew_s) if me.skew_s else effect.at
        self.clock.at(at, self._tell, me, TimerFired(effect.timer))

    def _blame(self, me: Peer, effect: Blame) -> None:
        self.blamed.append((me.id, effect.peer, effect.reason))
        if self.records:
            self.records.asked(me, effect)

    def _closed(self, me: Peer, effect: Closed) -> None:
        me.stats.count(effect)
        me.closed_at = self.clock.now
        me.wait_for(None, self.clock.now + me.skew_s)
        if self.records:
            self.records.asked(me, effect)

    def _finished(self, me: Peer, effect: Finished) -> None:
        me.trains = False
        me.wait_for(None, self.clock.now + me.skew_s)
        if self.records:
            self.records.asked(me, effect)
        self._presence.changed(me)


def _line_of(peer: Peer) -> Line:
    return Line(
        up_bytes_per_s=peer.up.capacity,
        down_bytes_per_s=peer.down.capacity,
        latency_s=peer.latency_s,
        relayed=peer.relayed,
    )
