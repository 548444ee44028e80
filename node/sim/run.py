"""A simulation from beginning to end: what a scenario says happens, and is looked at.

The driver of `node.sim.world.World`: happenings and chance come from a generator of their own, so
that what is done to peers does not depend on what they do.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

from node.sim.cast import Cast
from node.sim.learners import Learners, Measured
from node.sim.peer import Peer, Stats
from node.sim.report import Curves, GroupReport, LinkReport, Report
from node.sim.scenario import Scenario
from node.sim.settings import HappeningConfig
from node.sim.watch import Watch
from node.sim.world import World
from protocol.ids import PeerId, seed_of


@dataclass(frozen=True, slots=True)
class _Point:
    """What was seen at one time."""

    at: float
    peers: int
    """That train."""
    found: Measured
    passed: float
    """Bytes since the start."""


class Simulation:
    """One run of a scenario."""

    def __init__(self, scenario: Scenario, learners: Learners) -> None:
        self.world = World(scenario.seed, scenario.conditions)
        self._scenario = scenario
        self._learners = learners
        self._cast = Cast(scenario, learners, self.world)
        self._rng = random.Random(seed_of(scenario.seed, "happenings"))
        self._watch = Watch(self.world)
        self._points: list[_Point] = []
        for happening in scenario.happens:
            self.world.clock.at(happening.at_s, self._happen, happening)
        for what, per_minute in scenario.churn.rates().items():
            if per_minute:
                self._by_chance(what, per_minute, scenario.churn.from_s)

    def run(self, on_point: Callable[[float], None] | None = None) -> Report:
        """Let it happen; `on_point` is told the virtual time now and then."""
        scenario, world = self._scenario, self.world
        self._look()
        for n in itertools.count(1):
            if world.clock.now >= scenario.end_s or not self._goes_on():
                break
            end = min(scenario.end_s, n * scenario.every_s)
            world.run_until(end)
            self._look()
            if on_point:
                on_point(end)
        report = replace(self._report(), records=self._watch.records())
        if world.records:
            world.records.close()
        return report

    def _goes_on(self) -> bool:
        """Somebody trains, or will."""
        return any(peer.trains for peer in self.world.peers.values())

    def _look(self) -> None:
        now, peers = self.world.clock.now, self.world.peers
        for peer in peers.values():
            peer.down.settle(now)
        passed = sum(peer.down.bytes for peer in self._everyone())
        there = [id for id, peer in peers.items() if not peer.starting]
        if there:
            trains = sum(peer.trains for peer in peers.values())
            self._points.append(_Point(now, trains, self._learners.measure(there), passed))

    def _everyone(self) -> Iterable[Peer]:
        return (*self.world.peers.values(), *self.world.lost.values())

    # --- what happens -----------------------------------------------------------------------

    def _by_chance(self, what: str, per_minute: float, after: float) -> None:
        """The next of its kind: times between two are exponential."""
        at = after + self._rng.expovariate(per_minute / 60)
        if at < self._scenario.churn.until_s:
            self.world.clock.at(at, self._chance, what, per_minute)

    def _chance(self, what: str, per_minute: float) -> None:
        for_s = self._scenario.churn.for_s(what)
        self._happen(HappeningConfig(what=what, at_s=0.0, count=1, for_s=for_s))
        self._by_chance(what, per_minute, self.world.clock.now)

    def _happen(self, happening: HappeningConfig) -> None:
        world = self.world
        match happening.what:
            case "join":
                for _ in range(happening.count or round(happening.share * self._scenario.size)):
                    self._cast.enter(happening.group or self._any_group(), late=True)
            case "heal":
                world.heal()
                self._watch.heal()
            case "cut":
                world.cut(dict.fromkeys(self._chosen(happening), 1))
                self._watch.cut()
            case "freeze":
                for id in self._chosen(happening):
                    world.freeze(id)
                    world.clock.after(happening.for_s, self._thaw, id)
            case "kill" | "wipe":
                for id in self._chosen(happening):
                    world.kill(id)
                    if happening.for_s:
                        is_wiped = happening.what == "wipe"
                        back = partial(self._cast.come_back, id, is_wiped=is_wiped)
                        world.clock.after(happening.for_s, back)
            case "leave":
                self._each(happening, self._leave)
            case "crash":
                self._each(happening, world.crash_worker)

    def _leave(self, id: PeerId) -> None:
        """At once; with a record, when a few others have its last words."""
        world, peer = self.world, self.world.peers[id]
        if world.records:
            world.records.keepers[id].flush(
                lambda: world.leave(id) if world.peers.get(id) is peer else None
            )
        else:
            world.leave(id)

    def _each(self, happening: HappeningConfig, do: Callable[[PeerId], None]) -> None:
        for id in self._chosen(happening):
            do(id)

    def _thaw(self, id: PeerId) -> None:
        if id in self.world.peers:
            self.world.thaw(id)

    def _any_group(self) -> str:
        groups = self._scenario.groups
        sizes = [group.count for group in groups]
        return self._rng.choices(groups, sizes)[0].name

    def _chosen(self, happening: HappeningConfig) -> list[PeerId]:
        """Those whom it hits, of those that are there and awake."""
        named = [happening.group] if happening.group else list(self._cast.members)
        there = [
            peer.id
            for name in named
            for peer in self._cast.members[name]
            if peer.alive and peer.backlog is None and not peer.starting
        ]
        count = happening.count or round(happening.share * len(there))
        return self._rng.sample(there, min(count, len(there)))

    # --- what was found ---------------------------------------------------------------------

    def _report(self) -> Report:
        scenario, world = self._scenario, self.world
        now = world.clock.now
        everyone = list(self._everyone())
        for peer in everyone:
            self._close(peer, now)
        total = world.total()
        stills = [peer.worker.still for peer in everyone]
        last = self._points[-1]
        there_s = sum(min(now, peer.gone_at) - peer.came_at for peer in everyone)
        still_s = sum(still.total_s for still in stills)
        return Report(
            scenario=scenario.name,
            trainer=scenario.spec.trainer.KIND,
            learner=scenario.learner,
            seed=scenario.seed,
            peers_start=scenario.size,
            peers_end=len(world.peers),
            virtual_s=now,
            events=world.events,
            rounds_closed=total.made + total.missed,
            round_max=max(peer.worker.round for peer in everyone),
            made=total.made,
            alone=total.missed,
            half=total.half,
            reasons=dict(sorted(total.alone.items(), key=lambda item: (-item[1], item[0]))),
            blamed=len(world.blamed),
            standstills=sum(still.times for still in stills),
            still_s=still_s,
            longest_still_s=max(still.longest_s for still in stills),
            still_share=still_s / there_s if there_s else 0.0,
            overdue=total.overdue,
            overdue_s=total.overdue_s,
            links=self._links(everyone, total),
            loss_wanted=scenario.loss,
            time_to_loss_s=self._time_to_loss(),
            loss=last.found.loss,
            consensus=last.found.consensus,
            cuts=self._watch.cuts(),
            records=None,
            groups=tuple(
                self._group(name, members)
                for name, members in self._cast.members.items()
                if members
            ),
            curves=self._curves(),
        )

    def _close(self, peer: Peer, now: float) -> None:
        """What is open at the end counts as if it ended then."""
        if peer.alive:
            peer.wait_for(None, now + peer.skew_s)
        if peer.alive and peer.trains and not peer.starting:
            peer.worker.still.end(now)

    def _links(self, everyone: list[Peer], total: Stats) -> LinkReport:
        now = self.world.clock.now
        peaks = [max(peer.up.peak(now), peer.down.peak(now)) for peer in everyone]
        ups = [peer.up.bytes for peer in everyone]
        downs = [peer.down.bytes for peer in everyone]
        return LinkReport(
            up_max_bytes=max(ups),
            up_median_bytes=median(ups),
            down_max_bytes=max(downs),
            down_median_bytes=median(downs),
            peak_max_bytes_per_s=max(peaks),
            peak_median_bytes_per_s=median(peaks),
            all_bytes=sum(downs),
            payload_bytes=total.payload_bytes,
            state_bytes=total.state_bytes,
            messages=total.messages,
            record_bytes=total.record_bytes,
        )

    def _group(self, name: str, members: list[Peer]) -> GroupReport:
        now = self.world.clock.now
        stats = sum((peer.stats for peer in members), Stats())
        stills = [peer.worker.still for peer in members]
        return GroupReport(
            name=name,
            peers=len(members),
            rounds=stats.made + stats.missed,
            tokens=stats.tokens,
            made=stats.made,
            alone=stats.missed,
            half=stats.half,
            standstills=sum(still.times for still in stills),
            still_s=sum(still.total_s for still in stills),
            longest_still_s=max(still.longest_s for still in stills),
            overdue=stats.overdue,
            overdue_s=stats.overdue_s,
            up_median_bytes=median(peer.up.bytes for peer in members),
            down_median_bytes=median(peer.down.bytes for peer in members),
            peak_bytes_per_s=max(max(peer.up.peak(now), peer.down.peak(now)) for peer in members),
        )

    def _time_to_loss(self) -> float | None:
        wanted = self._scenario.loss
        times = [point.at for point in self._points if wanted and point.found.loss <= wanted]
        return times[0] if times else None

    def _curves(self) -> Curves:
        points = self._points
        pairs = [(one, two) for one, two in itertools.pairwise(points) if two.at > one.at]
        return Curves(
            time_s=tuple(point.at for point in points),
            peers=tuple(point.peers for point in points),
            loss=tuple(point.found.loss for point in points),
            consensus=tuple(point.found.consensus for point in points),
            bytes_per_s=(
                0.0,
                *((two.passed - one.passed) / (two.at - one.at) for one, two in pairs),
            ),
        )
