"""How one node comes to its first round, what it offers joiners, and what it tells the rest."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from memory_network import in_virtual_time
from samples import CREATOR, EXCHANGE, OTHER, PRESENCE, ROSTER, spec
from small_run import small_run

from crdt.schema import ClosedRound, Content
from node import worker_wire as wire
from node.arena import Arena, ArenaFull
from node.exchange import Exchange
from node.journal import Journal, Worker
from node.learner import Learner
from node.telemetry import Waits
from node.training import ALONE_S, ORPHANED_S, Training
from protocol.envelope import Signer
from protocol.errors import PeerUnavailable, WorkerLost
from protocol.ids import Digest, PeerId, Round, digest_of
from protocol.messages import Checkpoint, Presence
from trainers.effects import Agreed, ApplyOuter, Closed, Share, Wait
from trainers.events import Resumed

R0, R1 = Round(0), Round(1)
MINE = digest_of(b"mine")


class FakeLearner:
    """A worker of a few lines: exports `size_bytes`, starts from anything."""

    def __init__(self, arena: Arena, size_bytes: int = 100) -> None:
        self.arena = arena
        self.size_bytes = size_bytes
        self.round = R0
        self.progress: wire.Progress | None = None
        self.has_snapshot = False
        self.started: list[wire.Start] = []
        self.exports = 0
        self.export_s = 1.0
        self.lost = False
        self.during_outer: Callable[[], None] = lambda: None

    async def start(self, how: wire.Start) -> wire.Ready:
        self.started.append(how)
        return ready(self.round)

    async def export(self) -> Checkpoint:
        self.exports += 1
        await asyncio.sleep(self.export_s)
        if self.lost:
            raise WorkerLost("killed")
        data = bytes([self.round]) * self.size_bytes
        return Checkpoint(self.round, self.arena.put(data), len(data), digest_of(data))

    async def outer(self, effect: ApplyOuter) -> wire.OuterDone:
        self.during_outer()
        return wire.OuterDone(round=effect.round, weights=MINE, gradient_norm=1.0, spread=4.0)


class Node:
    """A training whose worker and peers are made up.  Build it inside of a loop."""

    def __init__(
        self, root: Path, *, me: Signer = CREATOR, max_bytes: int = 4096, size_bytes: int = 100
    ) -> None:
        self.arena = Arena(max_bytes)
        self.live: list[Presence] = []
        self.content = Content()
        self.waits = Waits(lambda: 0.0)
        self.journal = Journal(me.peer, self.waits, self._write, speak=lambda: None)
        self.learner = FakeLearner(self.arena, size_bytes)
        self.training = Training(
            spec=spec(min_members=2, start_deadline_s=1000.0),
            signer=me,
            boot=bytes(8),
            setup=small_run(root).setup(),
            socket_path=root / "worker.sock",
            arena=self.arena,
            exchange=cast(Exchange, None),
            journal=self.journal,
            live=lambda: self.live,
            fetch_checkpoint=self._no_checkpoint,
            clock=asyncio.get_running_loop().time,
        )
        self.training.learner = cast(Learner, self.learner)
        self._exporter = asyncio.create_task(self.training._export_when_asked())

    def _write(self, change: Callable[[Content], Content]) -> None:
        self.content = change(self.content)

    async def _no_checkpoint(self, donor: PeerId) -> Checkpoint:
        raise PeerUnavailable(donor, "it gives nothing")

    def at_round(self, round: int) -> None:
        self.journal.state = "training"
        self.journal.round = self.learner.round = Round(round)

    def held(self) -> set[Digest]:
        """Of the exports of rounds 0 to 9, those in the arena."""
        names = {digest_of(bytes([round]) * self.learner.size_bytes) for round in range(10)}
        return {name for name in names if name in self.arena}


async def exported(node: Node) -> Checkpoint:
    checkpoint = await node.training.checkpoint()
    assert checkpoint is not None
    return checkpoint


# --- checkpoints for joiners ------------------------------------------------------------


def test_the_last_two_checkpoints_are_held_so_that_slow_joiners_do_not_cut_each_other_off(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        offers = []
        for round in (1, 2, 3):
            node.at_round(round)
            offers += [await exported(node), await exported(node)]
        assert [offer.round for offer in offers] == [1, 1, 2, 2, 3, 3]
        assert (node.held(), node.learner.exports) == ({offers[2].digest, offers[4].digest}, 3)

    in_virtual_time(run())


def test_a_second_checkpoint_is_not_held_at_the_cost_of_payloads(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path, max_bytes=4096, size_bytes=600)
        for round in (1, 2):
            node.at_round(round)
            newest = await exported(node)
        assert node.held() == {newest.digest}

    in_virtual_time(run())


def test_a_joiner_that_gives_up_leaves_one_export_and_not_one_more(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        node.at_round(1)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await node.training.checkpoint()
        assert (await exported(node)).round == 1
        assert (node.learner.exports, len(node.arena)) == (1, 1)

    in_virtual_time(run())


def test_an_export_repeated_before_the_round_is_closed_is_held_once(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        node.at_round(1)
        node.learner.round = Round(2)  # the outer step is taken, the round not yet closed
        first, second = await exported(node), await exported(node)
        assert first == second
        node.arena.release(first.digest)
        assert node.held() == set()

    in_virtual_time(run())


def test_a_full_arena_offers_nothing_and_makes_room_for_the_next_who_asks(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path, max_bytes=1000, size_bytes=600)
        node.at_round(1)
        await exported(node)
        node.at_round(2)
        assert await node.training.checkpoint() is None
        assert (await exported(node)).round == 2
        with pytest.raises(ArenaFull):
            node.arena.put(bytes(500))

    in_virtual_time(run())


def test_while_the_worker_is_replaced_the_checkpoint_before_is_offered(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        node.at_round(1)
        node.learner.lost = True
        assert await node.training.checkpoint() is None
        node.learner.lost = False
        before = await exported(node)
        node.at_round(2)
        node.learner.lost = True
        assert await node.training.checkpoint() == before

    in_virtual_time(run())


# --- the way to the first round ---------------------------------------------------------


def first_weights(node: Node) -> asyncio.Task[wire.Ready]:
    return asyncio.create_task(node.training._weights(is_new=False))


@pytest.mark.parametrize(
    ("me", "patience_s"),
    [(CREATOR, ALONE_S), (OTHER, ORPHANED_S)],
    ids=["creator", "other"],
)
def test_who_meets_nobody_beyond_round_0_begins_from_the_seed(
    tmp_path: Path, me: Signer, patience_s: float
) -> None:
    async def run() -> None:
        node = Node(tmp_path, me=me)
        node.live = [replace(PRESENCE, state="serving", round=R0)]
        weights = first_weights(node)
        await asyncio.sleep(patience_s - 1)
        assert node.learner.started == []
        await asyncio.sleep(3)
        assert weights.done()
        assert node.learner.started == [wire.StartFresh()]

    in_virtual_time(run())


def test_nobody_begins_afresh_while_a_member_is_further(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        node.live = [replace(PRESENCE, peer=OTHER.peer, round=R1)]
        weights = first_weights(node)
        await asyncio.sleep(10 * ORPHANED_S)
        assert node.learner.started == []
        weights.cancel()

    in_virtual_time(run())


@pytest.mark.parametrize("round", [0, 5])
def test_only_round_0_waits_for_members(tmp_path: Path, round: int) -> None:
    async def run() -> None:
        node = Node(tmp_path, me=OTHER)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(node.training._train(tasks, ready(Round(round))))
            await asyncio.sleep(1)
            assert node.journal.state == ("training" if round else "starting")
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    in_virtual_time(run())


# --- what the journal tells -------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "recorded"), [(2.5, 2.5), (math.nan, None), (math.inf, None), (2e6, None)]
)
def test_a_loss_that_no_record_can_hold_is_recorded_as_none(
    tmp_path: Path, loss: float, recorded: float | None
) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        node.journal.weights, node.journal.loss = MINE, loss
        node.journal.closed(Closed(R0, 100, None, half=False, reason="nobody"))
        assert node.content.progress is not None
        assert node.content.progress.loss == recorded

    in_virtual_time(run())


def test_the_wait_of_a_worker_that_died_is_over_when_the_next_one_stands(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        node.journal.waiting(Wait("the answer to a proposal", OTHER.peer, 5.0), 5.0)
        node.training._on_resumed(ready(R1))
        told = asyncio.create_task(node.training._tell_resumed())
        await asyncio.sleep(0.1)
        assert (node.journal.round, node.waits.current) == (R1, None)
        told.cancel()

    in_virtual_time(run())


def test_a_snapshot_that_failed_is_trouble_until_one_is_written(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        worker = driven(node)
        trouble = []
        for fails in (False, True, True, False):
            if fails:
                node.learner.during_outer = lambda: node.journal.save_failed("disk full")
            else:
                node.learner.during_outer = lambda: None
            await worker.outer(outer_of(1))
            trouble.append(node.journal.trouble)
        assert trouble == [None, "disk full", "disk full", None]

    in_virtual_time(run())


def test_only_what_a_pair_tells_counts_for_the_consensus(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        worker = driven(node)
        for shares in (1, 2, 3):
            assert await worker.outer(outer_of(shares)) == MINE
        assert (node.journal.spreads, node.journal.weights) == ([4.0], MINE)

    in_virtual_time(run())


def test_the_record_names_the_partner_and_both_payloads(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path, me=OTHER)
        node.journal.weights = MINE
        node.journal.closed(Closed(Round(2), 100, EXCHANGE, half=False, reason=""))
        assert node.content.closed == (
            ClosedRound(
                round=Round(2),
                tokens=100,
                partner=CREATOR.peer,
                mine=EXCHANGE.partner_digest,
                theirs=EXCHANGE.proposer_digest,
            ),
        )
        assert node.journal.round == 4  # one after the partner's

    in_virtual_time(run())


@pytest.mark.parametrize("is_in", [True, False])
def test_the_record_names_the_leader_its_roster_and_our_part_in_it(
    tmp_path: Path, is_in: bool
) -> None:
    async def run() -> None:
        node = Node(tmp_path, me=OTHER)
        node.journal.weights = MINE
        entries = tuple(e for e in ROSTER.entries if is_in or e.peer != OTHER.peer)
        roster = replace(ROSTER, entries=entries)
        ours = next(e.digest for e in ROSTER.entries if e.peer == OTHER.peer)
        name = digest_of(b"roster")
        node.journal.closed(Closed(Round(3), 100, Agreed(roster, name), half=False, reason=""))
        assert node.content.closed == (
            ClosedRound(
                round=Round(3),
                tokens=100,
                partner=CREATOR.peer,
                mine=ours if is_in else None,
                theirs=name,
            ),
        )

    in_virtual_time(run())


def driven(node: Node) -> Worker:
    """The made-up learner as the driver sees it."""

    async def go_over_to(source: PeerId) -> wire.Ready:
        return ready(Round(7))

    return Worker(cast(Learner, node.learner), node.journal, go_over_to)


def outer_of(shares: int) -> ApplyOuter:
    """The outer step of a mean of so many."""
    share = Share(MINE, R0, 1.0 / shares)
    return ApplyOuter(R1, 0, MINE, (share,) * shares)


def ready(round: Round) -> wire.Ready:
    """A worker at this round."""
    return wire.Ready(round, 0, MINE, "")


def test_who_caught_up_stands_where_the_member_does(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        node.journal.waiting(Wait("rosters", None, 5.0), 5.0)
        assert await driven(node).catch_up(OTHER.peer) == Resumed(Round(7), MINE)
        assert (node.journal.round, node.waits.current) == (7, None)

    in_virtual_time(run())
