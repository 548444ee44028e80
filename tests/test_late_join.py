"""Whose weights a joiner starts from."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from small_sim import digest, name
from training_parts import numbers

from node import late_join
from node.late_join import Choice
from protocol.errors import PeerUnavailable
from protocol.ids import Digest, PeerId, Round
from protocol.messages import Checkpoint
from protocol.witness import Sketch

ALICE, BOB, CAROL, DAVE = (name(n) for n in range(4))


def checkpoint(text: str, round: int) -> Checkpoint:
    return Checkpoint(Round(round), digest(text), 1000, digest("weights of " + text))


def sketch(value: float, distance: float | None = 1.0) -> Sketch:
    return Sketch(Round(7), digest("weights"), distance, numbers(value))


async def nobody_knows(peer: PeerId, round: Round) -> Digest | None:
    return None


async def test_a_group_starts_from_what_most_members_offer_alike() -> None:
    old, new, mine = checkpoint("old", 4), checkpoint("new", 5), checkpoint("mine", 99)
    offers = {DAVE: mine, CAROL: new, ALICE: new, BOB: old, name(4): old, name(5): new}
    found = [
        (choice.checkpoint, set(choice.donors))
        for choice in await late_join.of_group(offers, nobody_knows)
    ]
    assert found == [(new, {ALICE, CAROL, name(5)}), (old, {BOB, name(4)})]


async def test_of_two_offers_of_two_members_neither_counts_and_of_one_member_its_own_does() -> None:
    old, new = checkpoint("old", 4), checkpoint("new", 5)
    assert await late_join.of_group({ALICE: old, BOB: new}, nobody_knows) == []
    assert await late_join.of_group({ALICE: old}, nobody_knows) == [Choice(old, (ALICE,))]
    assert await late_join.of_group({}, nobody_knows) == []


async def test_offers_of_one_round_that_differ_in_bytes_are_not_alike() -> None:
    true, false = checkpoint("true", 5), checkpoint("false", 5)
    assert await late_join.of_group({ALICE: true, BOB: false}, nobody_knows) == []


def test_a_sum_is_the_same_whatever_rounds_its_donors_stand_in_and_begins_in_the_middle() -> None:
    false, lone = checkpoint("false", 99), checkpoint("lone", 8)
    sums = [replace(checkpoint("sum", 0), round=Round(round)) for round in (9, 2, 6, 7)]
    offers = dict(zip((ALICE, BOB, CAROL, DAVE), sums, strict=True))
    offers |= {name(4): false, name(5): lone}
    found = [(choice.checkpoint, set(choice.donors)) for choice in late_join.of_sums(offers)]
    assert found == [
        (sums[2], {ALICE, BOB, CAROL, DAVE}), (false, {name(4)}), (lone, {name(5)}),
    ]  # fmt: skip
    assert late_join.of_sums({}) == []


def test_sums_of_one_name_in_other_bytes_are_not_alike() -> None:
    """The one may be another horizon under the same sum."""
    one = checkpoint("sum", 5)
    other = replace(one, digest=digest("other bytes"))
    assert [len(choice.donors) for choice in late_join.of_sums({ALICE: one, BOB: other})] == [1, 1]


def test_without_a_group_each_member_is_a_choice_the_newest_first() -> None:
    old, new = checkpoint("old", 4), checkpoint("new", 5)
    assert late_join.of_each({ALICE: old, BOB: new}) == [Choice(new, (BOB,)), Choice(old, (ALICE,))]


async def test_who_does_not_answer_is_left_out() -> None:
    async def ask(peer: PeerId) -> str:
        if peer == BOB:
            raise PeerUnavailable(peer, "gone")
        return f"of {peer}"

    assert await late_join.asked((ALICE, BOB), ask, "offer") == {ALICE: f"of {ALICE}"}


async def test_a_choice_is_compared_with_others_than_its_donor_under_one_fresh_nonce() -> None:
    nonces: set[int] = set()

    async def ask(peer: PeerId, nonce: int) -> Sketch:
        nonces.add(nonce)
        return sketch(0.0)

    choices = late_join.of_each({ALICE: checkpoint("a", 1), BOB: checkpoint("b", 1)})
    found = await late_join.witnessed(choices, [ALICE, BOB, CAROL], ask, random.Random(1))
    assert [{peer for peer, _ in choice.sketches} for choice in found] == [
        {BOB, CAROL},
        {ALICE, CAROL},
    ]
    assert {choice.nonce for choice in found} == nonces
    again = await late_join.witnessed(choices, [ALICE, BOB, CAROL], ask, random.Random(2))
    assert again[0].nonce != found[0].nonce


@pytest.mark.parametrize(
    ("sketches", "apart", "is_taken"),
    [
        ([], 99.0, True),  # a swarm of two
        ([sketch(0.0, None)], 99.0, True),  # nobody has had a partner yet
        ([sketch(0.0)], 3.0, True),
        ([sketch(0.0)], 3.1, False),
        ([sketch(0.0), sketch(98.0)], 99.0, True),  # half of them are enough
        ([sketch(0.0), sketch(98.0), sketch(1.0)], 99.0, False),
        ([sketch(0.0, None), sketch(0.0)], 3.1, False),
        ([sketch(0.0, 0.0)], 0.0, True),
        ([sketch(0.0)], float("nan"), False),
    ],
)
def test_weights_are_taken_that_lie_near_another_members(
    sketches: list[Sketch], apart: float, is_taken: bool
) -> None:
    seen = tuple((name(n), one) for n, one in enumerate(sketches))
    choice = Choice(checkpoint("a", 7), (DAVE,), seen, 5)
    found = late_join.objection(choice, Round(7), numbers(apart))
    assert (found is None) == is_taken
    assert is_taken or "expected 3 at most" in str(found)
