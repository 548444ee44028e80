"""Who sees whom in a simulated world, told by the world itself instead of by gossip.

Each peer sees those that train, or a random part of them where they are many, and hears of
changes after a while.  What a proposer decided about its payloads stands in its presence, too;
it is shown to those whom it can concern, who answered its proposal.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable

from node.sim.clock import Clock
from node.sim.peer import Conditions, Peer
from protocol.ids import Digest, PeerId
from protocol.messages import Accept, Decision, Have
from trainers import reanchor
from trainers.events import DecisionsSeen, Event, LeftBehind, MembersChanged
from trainers.noloco import Noloco
from trainers.reanchor import AWAY_ROUNDS

PRESENCE_TICK_S = 0.5
"""Views change on this grid, so that many joiners cost one look at the swarm."""
AGAIN_S = 1.0
"""Until who was away is told again, see `node.training`."""
MAX_DOUBTS = 64
"""Peers remembered of one proposer: as many as can be seen at once."""


class Part:
    """Peers of one part of the swarm, to be drawn from at random."""

    __slots__ = ("_places", "ids")

    def __init__(self) -> None:
        self.ids: list[PeerId] = []
        self._places: dict[PeerId, int] = {}

    def add(self, id: PeerId) -> None:
        """It is not there yet."""
        self._places[id] = len(self.ids)
        self.ids.append(id)

    def discard(self, id: PeerId) -> None:
        """The last one takes its place: a list has no holes, and no order that counts."""
        place, last = self._places.pop(id), self.ids.pop()
        if last != id:
            self.ids[place], self._places[last] = last, place


class Presence:
    """What peers know of each other without having been told."""

    def __init__(
        self,
        clock: Clock,
        rng: random.Random,
        peers: dict[PeerId, Peer],
        lost: dict[PeerId, Peer],
        conditions: Conditions,
        tell: Callable[[Peer, Event], None],
    ) -> None:
        self.conditions = conditions
        self._clock = clock
        self._rng = rng
        self._peers = peers
        self._lost = lost
        self._tell = tell
        self._cut_at = math.inf
        self._healed_at = -math.inf
        self._apart: dict[PeerId, int] = {}
        """Parts before the last heal."""
        self._back: set[PeerId] = set()
        """New processes of peers that others may not have missed."""
        self._present: dict[PeerId, int] = {}
        """Who was there at the last look, with the part of the swarm that it was in."""
        self._parts: dict[int, Part] = {}
        """The same by part."""
        self._seen_by: dict[PeerId, dict[PeerId, None]] = {}
        self._looks: dict[float, dict[PeerId, None]] = {}
        """Whom to look at on which tick."""

    # --- decisions --------------------------------------------------------------------------

    def remember_doubt(self, partner: Peer, proposer: PeerId, message: Accept | Have) -> None:
        """`partner` sends this to the proposer: it will look for what that decides."""
        target = self._peers.get(proposer)
        if target is None:
            return
        if isinstance(message, Accept):
            proposed = message.proposed
        else:
            proposed = message.exchange.proposer_digest
        target.doubts.pop(partner.id, None)
        target.doubts[partner.id] = proposed
        if len(target.doubts) > MAX_DOUBTS:
            del target.doubts[next(iter(target.doubts))]
        if target.decisions:
            self._show(target, partner.id, proposed)

    def publish(self, me: Peer, decisions: tuple[Decision, ...]) -> None:
        """From now on these stand in the presence of `me`."""
        me.decisions = decisions
        for id, proposed in me.doubts.items():
            self._show(me, id, proposed)

    def _show(self, proposer: Peer, to: PeerId, proposed: Digest) -> None:
        if any(decision.proposed == proposed for decision in proposer.decisions):
            self._clock.after(self._delay(), self._see, proposer, to, proposed)

    def _see(self, proposer: Peer, id: PeerId, proposed: Digest) -> None:
        watcher = self._peers.get(id)
        if watcher and proposer.reaches(watcher) and proposer.alive and proposer.backlog is None:
            if proposer.doubts.get(id) == proposed:
                del proposer.doubts[id]
            self._tell(watcher, DecisionsSeen(proposer.id, proposer.decisions))

    # --- views ------------------------------------------------------------------------------

    def changed(self, peer: Peer) -> None:
        """It came, or says something else: others see it soon."""
        self._look_after(self._delay(), (peer.id,))

    def came_back(self, peer: Peer) -> None:
        """A new process of it, which sees nobody yet; others may not have missed the old one."""
        self._back.add(peer.id)
        self.changed(peer)

    def fell_silent(self, peer: Peer) -> None:
        """It says nothing any more: others see it when its presence expires."""
        self._look_after(self.conditions.expiry_s, (peer.id,))

    def meet(self) -> None:
        """All that are here see each other at once."""
        now = self._clock.now
        self._looks[now] = dict.fromkeys(self._peers)
        self._look(now)

    def cut(self) -> None:
        """The swarm fell apart."""
        self._cut_at = self._clock.now
        self._look_after(self.conditions.expiry_s, self._peers)

    def heal(self) -> None:
        """Everyone will reach everyone; told before they do."""
        self._cut_at, self._healed_at = math.inf, self._clock.now
        self._apart = {id: peer.group for id, peer in self._peers.items()}
        for peer in self._peers.values():
            self.publish(peer, peer.decisions)
        self._look_after(self._delay(), self._peers)

    def _look_after(self, delay_s: float, ids: Iterable[PeerId]) -> None:
        """Look at these peers on the next tick after the delay."""
        tick = math.ceil((self._clock.now + delay_s) / PRESENCE_TICK_S) * PRESENCE_TICK_S
        if tick not in self._looks:
            self._looks[tick] = {}
            self._clock.at(tick, self._look, tick)
        self._looks[tick].update(dict.fromkeys(ids))

    def _look(self, tick: float) -> None:
        """Tell everybody whose view changes."""
        gone, news = [], []
        for id in self._looks.pop(tick):
            before, part = self._present.get(id), self._part_of(id)
            if before == part and id not in self._back:
                continue
            self._back.discard(id)
            if before is not None:
                gone.append(id)
                self._parts[before].discard(id)
                del self._present[id]
            if part is not None:
                news.append(id)
                self._parts.setdefault(part, Part()).add(id)
                self._present[id] = part
        watchers: dict[PeerId, list[PeerId]] = {}
        """Whose view may change, with the news that they take in."""
        for id in gone:
            watchers.update({watcher: [] for watcher in self._seen_by.pop(id, {})})
        most = self.conditions.view
        for id in news:
            watchers.setdefault(id, [])
            others = self._parts[self._present[id]].ids
            if len(others) > most + 1:
                others = [others[self._rng.randrange(len(others))] for _ in range(most)]
            for other in others:
                watchers.setdefault(other, []).append(id)
        for id, mine in watchers.items():
            if id in self._peers:
                around = self._parts.get(self._part(self._peers[id]), Part())
                self._update(self._peers[id], around.ids, mine)
        for id in news:
            if id in self._peers:
                self.compare_rounds(self._peers[id], AWAY_ROUNDS)

    def compare_rounds(self, me: Peer, most: int) -> None:
        """Who is left behind is told, again and again until it has caught up."""
        if not (isinstance(me.trainer, Noloco) and me.alive and me.trains):
            return
        seen = {id: self._peers[id].worker.round for id in me.view if id in self._peers}
        if source := reanchor.source(me.worker.round, seen, most):
            self._tell(me, LeftBehind(source))
            self._clock.after(AGAIN_S, self.compare_rounds, me, most)

    def live(self, me: Peer) -> list[PeerId]:
        """Whom the presence of a node shows: also those that train no more, or not yet."""
        part = self._part(me)
        others = (*self._peers.values(), *self._lost.values())
        return sorted(
            other.id
            for other in others
            if other is not me and self._part(other) == part and self._shows(me, other)
        )

    def _shows(self, me: Peer, other: Peer) -> bool:
        """Neither has only just come, or come back, and `other` has not expired."""
        now, slow_s = self._clock.now, self.conditions.presence_s[1]
        met_at = max(me.started_at, other.started_at)
        if self._apart.get(me.id, 0) != self._apart.get(other.id, 0):
            met_at = max(met_at, self._healed_at)
        is_met = met_at == 0.0 or now - met_at >= slow_s
        return is_met and now - other.silent_since < self.conditions.expiry_s

    def _part_of(self, id: PeerId) -> int | None:
        """Where others see it; None: nowhere."""
        peer = self._peers.get(id) or self._lost[id]
        silent_s = self._clock.now - peer.silent_since
        is_member = peer.trains or peer.worker.adds_scalars
        if is_member and not peer.starting and silent_s < self.conditions.expiry_s:
            return self._part(peer)
        return None

    def _part(self, peer: Peer) -> int:
        """Of the swarm, as others see it: a partition shows when presences expire."""
        cut = self._clock.now - self._cut_at >= self.conditions.expiry_s
        return peer.group if cut else 0

    def _update(self, me: Peer, present: list[PeerId], news: list[PeerId]) -> None:
        """Keep whom one sees, make room for the news, fill up at random."""
        most, part = self.conditions.view, self._part(me)
        if len(present) <= most + 1:
            kept = {id: None for id in present if id != me.id}
        else:
            kept = {id: None for id in me.view if self._present.get(id) == part}
            for id in news:
                if len(kept) >= most:
                    del kept[list(kept)[self._rng.randrange(most)]]
                kept[id] = None
            kept.pop(me.id, None)
            while len(kept) < most:
                id = present[self._rng.randrange(len(present))]
                if id != me.id:
                    kept[id] = None
        for id in me.view:
            if id not in kept and id in self._seen_by:
                self._seen_by[id].pop(me.id, None)
        for id in kept:
            self._seen_by.setdefault(id, {})[me.id] = None
        view = tuple(sorted(kept))
        if view != me.view:
            me.view = view
            self._tell(me, MembersChanged(view))

    def _delay(self) -> float:
        return self._rng.uniform(*self.conditions.presence_s)
