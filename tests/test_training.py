"""When one node begins, and what its training tells the rest of the node."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from samples import CREATOR, EXCHANGE, OTHER, PRESENCE, ROSTER
from training_parts import MINE, R0, R1, Node, ready
from virtual_time import in_virtual_time

from crdt.schema import ClosedRound
from node.driver import Driver
from node.learner import Learner
from node.noted_learner import NotedLearner
from node.training import AGAIN_S, QUIET_S, RETRY_S
from node.worker import wire
from node.worker.wire_save import Saved, SaveFailed
from protocol.ids import PeerId, Round, digest_of
from trainers.effects import Agreed, ApplyOuter, Closed, Finished, Share, Wait
from trainers.events import LeftBehind, Resumed
from trainers.reanchor import AWAY_ROUNDS


async def at_once() -> None:
    """Our own record is known."""


@pytest.mark.parametrize("round", [0, 5])
def test_only_round_0_waits_for_members(tmp_path: Path, round: int) -> None:
    async def run() -> None:
        node = Node(tmp_path, me=OTHER)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(node.training._train(tasks, ready(Round(round)), at_once))
            await asyncio.sleep(1)
            assert node.journal.state == ("training" if round else "starting")
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    in_virtual_time(run())


def test_no_round_begins_before_our_record_is_known_for_each_is_a_change_of_it(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        node, known = Node(tmp_path), asyncio.Event()

        async def until_known() -> None:
            await known.wait()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(node.training._train(tasks, ready(R1), until_known))
            await asyncio.sleep(1)
            assert node.journal.state == "starting"
            known.set()
            await asyncio.sleep(1)
            assert node.journal.state == "training"
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    in_virtual_time(run())


def test_at_the_end_a_node_saves_then_is_finished_then_measures(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        node.at_round(3)
        seen: list[tuple[str, str]] = []
        node.learner.told = lambda what: seen.append((what, node.journal.state))
        node.journal.finished(Finished(Round(3)))
        assert node.journal.ended.is_set()
        end = asyncio.create_task(node.training._finish())
        await asyncio.sleep(1000.0)
        assert seen == [("save", "training"), ("evaluate", "finished")]
        assert node.training.val_end == 1.7
        end.cancel()

    in_virtual_time(run())


FULL = SaveFailed("disk full")


@pytest.mark.parametrize(
    ("news", "again_s"),
    [
        ([(FULL,), (FULL,)], 2 * RETRY_S),
        ([(Saved(Round(3), 1), FULL)], RETRY_S),  # spsa: of one round, what came last is the newest
        ([(Saved(Round(2), 1),)], AGAIN_S),  # spsa: our last scalars were still to be added
    ],
    ids=["full twice", "full after one of this round", "of the round before"],
)
def test_nobody_is_finished_before_its_last_round_is_on_disk(
    tmp_path: Path, news: list[tuple[Saved | SaveFailed, ...]], again_s: float
) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        node.at_round(3)
        node.journal.finished(Finished(Round(3)))
        node.training._on_saved(Saved(Round(3), 1))  # of before we asked
        node.learner.news = list(news)
        end = asyncio.create_task(node.training._finish())
        await asyncio.sleep(again_s - 0.1)
        assert (node.journal.state, node.waits.current is None) == ("training", False)
        assert node.journal.trouble == (FULL.reason if FULL in news[0] else None)
        await asyncio.sleep(0.2)
        assert (node.journal.state, node.journal.trouble) == ("finished", None)
        end.cancel()

    in_virtual_time(run())


def test_a_worker_that_dies_before_the_last_round_is_saved_is_waited_for(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        node.at_round(3)
        node.journal.finished(Finished(Round(3)))
        node.learner.lost = True
        node.training._on_saved(Saved(Round(3), 1))  # spsa: less of that round than there is now
        end = asyncio.create_task(node.training._finish())
        await asyncio.sleep(100.0)
        node.learner.lost = False
        node.journal.resumed(Round(2))  # from its last snapshot
        node.learner.round = Round(2)
        await asyncio.sleep(100.0)
        assert node.journal.state == "training"
        node.learner.round = Round(3)  # trained again
        await asyncio.sleep(AGAIN_S)
        assert node.journal.state == "finished"
        end.cancel()

    in_virtual_time(run())


def test_who_is_asked_to_stop_waits_for_no_disk(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        node.at_round(3)
        node.learner.news = [(FULL,)] * 1000
        end = asyncio.create_task(node.training._finish())
        await asyncio.sleep(RETRY_S / 2)
        end.cancel()
        await asyncio.sleep(0)
        assert end.done()

    in_virtual_time(run())


def test_the_last_validation_is_measured_again_once_scalars_of_others_come_no_more(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        node.at_round(3)
        clock = asyncio.get_running_loop().time
        began, measured = clock(), []
        node.learner.told = lambda what: measured.append((what, clock() - began))
        end = asyncio.create_task(node.training._finish())
        for saved_at in (1.0, 6.0, 11.0, 16.0, 40.0):
            await asyncio.sleep(began + saved_at - clock())
            node.learner.round = Round(node.learner.round + 1)
            node.training._on_saved(Saved(node.learner.round, 1))
        await asyncio.sleep(1000.0)
        assert measured == [
            ("save", 0.0),
            ("evaluate", 0.0),
            ("evaluate", 16.0 + QUIET_S),
            ("evaluate", 40.0 + QUIET_S),
        ]
        assert node.training.val_end == 2.0 - 8 / 10
        end.cancel()

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


def test_who_was_away_takes_over_weights_again_until_that_succeeds_and_then_may_be_slow(
    tmp_path: Path,
) -> None:
    class Posts:
        def __init__(self) -> None:
            self.times: list[float] = []

        async def post(self, event: object) -> None:
            if isinstance(event, LeftBehind):
                self.times.append(asyncio.get_running_loop().time())

    async def run() -> None:
        node = Node(tmp_path)
        node.at_round(7)
        posts = Posts()
        node.training._driver = cast(Driver, posts)
        telling = asyncio.create_task(node.training._tell_driver())
        await asyncio.sleep(5.0)  # with nobody there
        ahead = replace(PRESENCE, state="training", round=Round(7 + AWAY_ROUNDS))
        node.live = [ahead]
        await asyncio.sleep(60.0)  # a takeover that does not come about
        assert len(posts.times) >= 30
        assert posts.times[-1] > 60.0
        tried = len(posts.times)
        for _ in range(60):  # now each one succeeds, and at once the other is as far ahead again
            if len(posts.times) > tried:
                node.at_round(node.live[0].round)
                tried = len(posts.times)
            node.live = [replace(ahead, round=Round(node.journal.round + AWAY_ROUNDS))]
            await asyncio.sleep(AGAIN_S)
        assert posts.times[-1] < 85.0
        telling.cancel()

    in_virtual_time(run())


def test_a_snapshot_that_failed_is_trouble_until_one_is_written(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        node.journal.save_failed("disk full")
        await driven(node).outer(outer_of(1))
        assert node.journal.trouble == "disk full"
        node.journal.saved(Saved(R1, 20))
        assert node.journal.trouble is None

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
                their_tokens=EXCHANGE.proposer_tokens,
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
                their_tokens=roster.tokens,
            ),
        )

    in_virtual_time(run())


def driven(node: Node) -> NotedLearner:
    """The made-up learner as the driver sees it."""

    async def go_over_to(source: PeerId) -> wire.Ready:
        return ready(Round(7))

    return NotedLearner(cast(Learner, node.learner), node.journal, go_over_to)


def outer_of(shares: int) -> ApplyOuter:
    """The outer step of a mean of so many."""
    share = Share(MINE, R0, 1.0 / shares)
    return ApplyOuter(R1, 0, MINE, (share,) * shares)


def test_who_caught_up_stands_where_the_member_does(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        node.journal.waiting(Wait("rosters", None, 5.0), 5.0)
        assert await driven(node).catch_up(OTHER.peer) == Resumed(Round(7), MINE)
        assert (node.journal.round, node.waits.current) == (7, None)

    in_virtual_time(run())
