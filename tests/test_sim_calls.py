"""Calls between simulated peers: late, lost, doubled, cut off; presence with clocks an hour off."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace

import numpy as np
from small_sim import Script, name

from node.presence import TTL_MS, Boot, Facts, PresenceService
from node.presence_view import GONE_S, PresenceView
from node.sim.calls import Calls, Port, Reply
from node.sim.loop import Loop
from node.sim.peer import Conditions, Peer
from node.sim.records import WALL_S
from node.sim.toy import ToyLearner
from node.sim.worker import Speed
from node.sim.world import World
from protocol import codec, rpc
from protocol.algorithms import NolocoConfig
from protocol.envelope import Signer
from protocol.errors import PeerUnavailable
from protocol.ids import PeerId, Round, RunId
from protocol.rpc import RECORDS, RecordCall

RUN = RunId(b"r" * 32)
CALM = Conditions(latency_s=(0.1, 0.1), gone_s=(1.0, 1.0))
HOUR_S = 3600.0
UP_S = 86400.0
"""Since the machines were started: no monotonic clock is below 0."""


def add(world: World, id: PeerId) -> Peer:
    return world.add(id, Script(), ToyLearner(id, np.ones(2), NolocoConfig()), Speed())


@dataclass
class Pair:
    """One peer that asks another, who says everything twice."""

    conditions: Conditions
    asked: list[float] = field(default_factory=list)
    found: list[tuple[float, bytes | str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.world = World(1, self.conditions)
        self.me, self.other = add(self.world, name(0)), add(self.world, name(1))
        clock, peers = self.world.clock, self.world.peers
        calls = Calls(clock, random.Random(1), peers, self.conditions)
        loop = Loop(clock)  # type: ignore[abstract]  # as in `node.sim.records`
        port = Port(calls, self.me, loop)

        def serve(sender: Peer, body: bytes, reply: Reply) -> None:
            assert sender is self.me
            self.asked.append(round(clock.now, 3))
            call = codec.decode(RecordCall, body, max_bytes=1000)
            reply(codec.encode(RecordCall(RUN, 2 * call.body)))

        async def ask() -> None:
            try:
                answer = await port.call(name(1), RECORDS, RecordCall(RUN, b"ab"), deadline_s=5.0)
                self.found.append((round(clock.now, 3), answer.body))
            except PeerUnavailable as error:
                self.found.append((round(clock.now, 3), error.reason))

        calls.serve[name(1)] = serve
        loop.spawn(ask(), "ask")


def told(conditions: Conditions) -> Pair:
    pair = Pair(conditions)
    pair.world.run_until(20.0)
    return pair


def test_a_call_takes_its_way_there_and_back_and_is_counted() -> None:
    pair = told(CALM)
    assert (pair.asked, pair.found) == ([0.1], [(0.2, b"abab")])
    assert pair.me.stats.record_bytes < pair.other.stats.record_bytes < 250
    assert pair.me.up.bytes == pair.other.down.bytes == pair.me.stats.record_bytes


def test_a_call_that_is_lost_fails_by_its_deadline_or_when_that_is_noticed() -> None:
    lost = told(replace(CALM, loss=1.0))
    assert (lost.asked, lost.found) == ([], [(5.0, "no answer by the deadline")])
    noticed = told(replace(CALM, loss=1.0, told=1.0))
    assert noticed.found == [(1.0, "gone")]


def test_a_doubled_request_is_served_twice_and_answered_once() -> None:
    pair = told(replace(CALM, doubled=1.0))
    assert (pair.asked, pair.found) == ([0.1, 0.1], [(0.2, b"abab")])


def test_who_is_cut_off_while_it_is_asked_answers_nobody() -> None:
    pair = Pair(CALM)
    pair.world.clock.at(0.05, pair.world.cut, {name(1): 1})
    pair.world.run_until(20.0)
    assert (pair.asked, pair.found) == ([], [(1.1, "gone")])


# --- the node's own presence, on clocks that are wrong --------------------------------------


class Gossip:
    """Peers with the presence of real nodes."""

    def __init__(self, *skews_s: float) -> None:
        self.world = World(1, CALM)
        self.calls = Calls(self.world.clock, random.Random(1), self.world.peers, CALM)
        self.signers = [Signer(bytes([n + 1]) * 32) for n in range(len(skews_s))]
        self.ids = [signer.peer for signer in self.signers]
        self.nodes: dict[PeerId, PresenceService] = {}
        self.blamed: list[str] = []
        self.tasks: dict[PeerId, asyncio.Task[object]] = {}
        for n, skew_s in enumerate(skews_s):
            add(self.world, self.ids[n])
            self.start(n, skew_s)

    def __enter__(self) -> Gossip:
        return self

    def __exit__(self, *error: object) -> None:
        for task in self.tasks.values():
            task.cancel()
        self.world.run_until(self.world.clock.now)

    def kill(self, n: int) -> None:
        self.world.kill(self.ids[n])
        self.tasks.pop(self.ids[n]).cancel()

    def start(self, n: int, skew_s: float) -> None:
        signer, clock = self.signers[n], self.world.clock
        me = self.world.peers[signer.peer]
        loop = Loop(clock, skew_s)  # type: ignore[abstract]  # as in `node.sim.records`
        rng = random.Random(f"{n} at {clock.now}")
        node = self.nodes[me.id] = PresenceService(
            run=RUN,
            signer=signer,
            boot=Boot(nonce=rng.randbytes(8), started_unix_s=int(WALL_S + clock.now + skew_s)),
            view=PresenceView(RUN, me.id, rng),
            rpc=Port(self.calls, me, loop),
            facts=lambda: Facts(
                addrs=(),
                state="training",
                round=Round(0),
                inner_step=0,
                tokens_per_s=0.0,
                loss=0.0,
                decisions=(),
            ),
            add_addrs=lambda peer, addrs: None,
            changed=lambda live: None,
            blame=lambda peer, reason: self.blamed.append(reason),
            clock=lambda: UP_S + loop.time(),
            unix_s=lambda: WALL_S + loop.time() + skew_s,
        )

        async def answer(sender: PeerId, body: bytes, reply: Reply) -> None:
            call = codec.decode(rpc.PresenceCall, body, max_bytes=len(body))
            reply(codec.encode(await node.handle(sender, call)))

        def serve(sender: Peer, body: bytes, reply: Reply) -> None:
            loop.spawn(answer(sender.id, body, reply), "answer")

        self.calls.serve[me.id] = serve
        self.tasks[me.id] = loop.spawn(node.run(), "presence")
        if n:
            loop.spawn(node.meet(self.ids[0]), "meet")

    def seen_by(self, n: int, at: float) -> set[PeerId]:
        self.world.run_until(at)
        return {presence.peer for presence in self.nodes[self.ids[n]].live()}


def test_presence_works_among_clocks_that_are_an_hour_off_both_ways() -> None:
    with Gossip(0.0, HOUR_S, -HOUR_S, HOUR_S / 2) as gossip:
        for n in range(4):
            assert gossip.seen_by(n, 10.0) == set(gossip.ids) - {gossip.ids[n]}
        gossip.kill(1)
        for n in (0, 2, 3):
            living = {gossip.ids[m] for m in (0, 2, 3)}
            assert gossip.seen_by(n, 10.5 + TTL_MS / 1000) == living - {gossip.ids[n]}
    assert gossip.blamed == []


def test_a_peer_that_restarts_with_its_clock_set_back_is_seen_again_after_two_minutes() -> None:
    """The one place where a wall clock counts: which of two starts of a peer is the newer one."""
    with Gossip(0.0, HOUR_S) as gossip:
        assert gossip.seen_by(0, 10.0) == {gossip.ids[1]}
        gossip.kill(1)
        gossip.world.run_until(15.0)
        del gossip.world.lost[gossip.ids[1]]
        add(gossip.world, gossip.ids[1])
        gossip.start(1, -HOUR_S)
        assert gossip.seen_by(0, 60.0) == set()
        assert gossip.seen_by(0, 25.0 + GONE_S) == {gossip.ids[1]}
