"""The checkpoints that a node offers to joiners."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from training_parts import MINE, Node, name_of
from virtual_time import in_virtual_time

from protocol.algorithms import SpsaConfig
from protocol.ids import Round
from protocol.messages import Checkpoint
from protocol.witness import Sketch


async def exported(node: Node) -> Checkpoint:
    checkpoint = await node.offers.checkpoint()
    assert checkpoint is not None
    return checkpoint


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
        assert (node.held(), node.learner.exports) == (
            {offers[2].digest, offers[4].digest},
            [False] * 3,
        )
        assert node.content.checkpoints == (offers[2], offers[4])  # and nothing that is not here

    in_virtual_time(run())


def test_a_joiner_that_gives_up_leaves_one_export_and_not_one_more(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        node.at_round(1)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await node.offers.checkpoint()
        assert (await exported(node)).round == 1
        assert (node.learner.exports, node.store.holders) == ([False], {name_of(1): 1})

    in_virtual_time(run())


def test_an_export_repeated_before_the_round_is_closed_is_held_once(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        node.at_round(1)
        node.learner.round = Round(2)  # the outer step is taken, the round not yet closed
        first, second = await exported(node), await exported(node)
        assert first == second
        assert node.store.holders == {first.digest: 1}

    in_virtual_time(run())


def test_a_sum_at_a_base_is_made_once_a_base_and_apart_from_that_of_now(tmp_path: Path) -> None:
    """As the worker of an spsa run: at a base it offers what is named by the journal."""

    async def run() -> None:
        node = Node(tmp_path, trainer=SpsaConfig())
        node.at_round(1)
        node.journal.weights = MINE
        first = await node.offers.checkpoint(at_base=True)
        node.at_round(2)
        now = await exported(node)
        assert await node.offers.checkpoint(at_base=True) == first != now
        assert node.learner.exports == [True, False]
        node.journal.weights = name_of(9)
        assert await node.offers.checkpoint(at_base=True) != first
        assert node.learner.exports == [True, False, True]

    in_virtual_time(run())


def test_the_sum_of_now_is_made_anew_for_whoever_asks_but_once_for_all_who_ask_at_once(
    tmp_path: Path,
) -> None:
    """Scalars of others come when our own rounds are over, too, and then no round tells."""

    async def run() -> None:
        node = Node(tmp_path, trainer=SpsaConfig())
        node.at_round(5)
        node.journal.weights = MINE
        node.journal.enter("finished")
        first, same = await asyncio.gather(exported(node), exported(node))
        node.learner.round = Round(99)  # a sum with more in it
        then = await exported(node)
        assert (first == same, then.round, node.learner.exports) == (True, 99, [False] * 2)

    in_virtual_time(run())


def test_what_was_made_before_other_weights_of_the_same_round_were_taken_over_is_not_offered(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        node.at_round(5)
        node.journal.stands_at(Round(5), name_of(5))
        given_up = await exported(node)
        node.journal.begins(Round(5), MINE)
        node.learner.lost = True
        assert await node.offers.checkpoint() is None
        node.learner.lost = False
        node.learner.round = Round(6)  # so that it has another name
        assert await exported(node) != given_up

    in_virtual_time(run())


def test_while_the_worker_of_an_spsa_run_is_replaced_no_old_sum_is_offered(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path, trainer=SpsaConfig())
        node.at_round(1)
        node.journal.stands_at(Round(1), name_of(1))
        assert await node.offers.checkpoint(at_base=True)
        node.learner.lost = True
        assert await node.offers.checkpoint() is None

    in_virtual_time(run())


def test_a_full_disk_offers_nothing_and_makes_room_for_the_next_who_asks(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path, room=1)
        node.at_round(1)
        await exported(node)
        node.at_round(2)
        assert await node.offers.checkpoint() is None
        troubles = [node.offers.trouble]
        assert (await exported(node)).round == 2
        assert node.held() == {name_of(2)}
        trouble = "no room for a checkpoint, so nobody can join from here: disk quota: no room"
        assert [*troubles, node.offers.trouble] == [trouble, None]

    in_virtual_time(run())


def test_a_sum_that_had_to_go_is_made_again(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path, room=1, trainer=SpsaConfig())
        node.at_round(1)
        first = await node.offers.checkpoint(at_base=True)
        assert first
        node.at_round(2)
        assert await node.offers.checkpoint() is None  # there is room for one
        assert node.held() == set()
        assert await node.offers.checkpoint(at_base=True) != first
        assert node.held() == {name_of(2)}

    in_virtual_time(run())


def test_while_the_worker_is_replaced_the_checkpoint_before_is_offered(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        node.at_round(1)
        node.learner.lost = True
        assert await node.offers.checkpoint() is None
        node.learner.lost = False
        node.journal.stands_at(Round(1), name_of(1))
        before = await exported(node)
        node.at_round(2)
        node.learner.lost = True
        assert await node.offers.checkpoint() == before

    in_virtual_time(run())


def test_a_sketch_says_how_far_the_last_partners_were_as_if_of_the_whole_model(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        assert await node.offers.sketch(5) is None  # it serves nothing yet
        node.at_round(3)
        assert await node.offers.sketch(5) == Sketch(Round(3), MINE, None, node.learner.numbers)
        node.journal.spreads = [1.0, 3.0]  # half the squared distance of one of two fragments
        sketch = await node.offers.sketch(5)
        assert sketch is not None
        assert sketch.distance == pytest.approx(8**0.5)

    in_virtual_time(run())
