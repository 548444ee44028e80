"""The ledger: the same at all peers, its sum what was trained, and what others confirm of it."""

from __future__ import annotations

import asyncio
import random
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_network import SETTLED_S, Node, swarm
from record_samples import ALICE, BOB, CAROL, JOINED, MALLORY, digest
from status_sample import rendered
from virtual_time import in_virtual_time

from crdt.schema import ClosedRound, Content, Member, NoView, Progress, Totals, View
from node import view
from node.api import Contributions
from node.records.contributions import Contribution, ledger, told, total
from node.records.sync import SYNC_S
from protocol.envelope import Signer
from protocol.ids import Digest, PeerId, Round

FOUR = (ALICE, BOB, CAROL, MALLORY)


def closing(
    content: Content,
    round: int,
    tokens: int,
    *,
    partner: PeerId | None = None,
    mine: Digest | None = None,
    theirs: Digest | None = None,
    their_tokens: int = 0,
) -> Content:
    """`content` after one more round."""
    closed = ClosedRound(
        round=Round(round),
        tokens=tokens,
        partner=partner,
        mine=mine,
        theirs=theirs,
        their_tokens=their_tokens,
    )
    progress = Progress(round=Round(round), tokens=tokens, loss=2.0, weights=digest(round))
    return content.with_round(closed, progress, half=False)


def pair(round: int, me: Signer, other: Signer, tokens: dict[PeerId, int]) -> partial[Content]:
    """What a round with `other` changes in our record."""
    return partial(
        closing,
        round=round,
        tokens=tokens[me.peer],
        partner=other.peer,
        mine=digest(round, me.peer),
        theirs=digest(round, other.peer),
        their_tokens=tokens[other.peer],
    )


def rows(views: dict[PeerId, View], *, is_group: bool = False) -> dict[PeerId, Contribution]:
    return {PeerId(row.peer): row for row in ledger(views, is_group=is_group)}


def checked(views: dict[PeerId, View], *, is_group: bool = False) -> list[tuple[int, int, int]]:
    """(confirmed, contradicted, unconfirmed) of each author, in the order of the views."""
    found = rows(views, is_group=is_group)
    return [
        (found[peer].confirmed, found[peer].contradicted, found[peer].unconfirmed) for peer in views
    ]


# --- a swarm ----------------------------------------------------------------------------


async def trains(
    nodes: list[Node], first: int, rounds: int, rng: random.Random, trained: dict[PeerId, int]
) -> None:
    """Rounds in random pairs of these nodes, each with its own number of tokens."""
    signers = {signer.peer: signer for signer in FOUR}
    for round in range(first, first + rounds):
        tokens = {node.peer: rng.randrange(1, 1000) for node in nodes}
        order = rng.sample(nodes, len(nodes))
        for one, other in zip(order[::2], order[1::2], strict=True):
            for me, partner in ((one, other), (other, one)):
                change = pair(round, signers[me.peer], signers[partner.peer], tokens)
                me.records.write(change)
                trained[me.peer] = trained.get(me.peer, 0) + tokens[me.peer]
        await asyncio.sleep(0.7)


def left(content: Content) -> Content:
    assert content.member
    return replace(content, member=replace(content.member, status="left"))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("seed", range(2))
def test_all_peers_have_the_same_ledger_and_its_sum_is_what_was_trained(
    tmp_path: Path, seed: int
) -> None:
    """Through a partition, a member that leaves, a kill -9 and a lost disk."""

    async def story() -> None:
        rng, trained = random.Random(seed), dict[PeerId, int]()
        async with swarm(tmp_path, *FOUR) as (network, nodes):
            alice, bob, carol, mallory = nodes
            await trains(nodes, 0, 5, rng, trained)
            network.cut = {
                frozenset((one.peer, other.peer)) for one in (alice, bob) for other in nodes[2:]
            }
            await trains([alice, bob], 6, 4, rng, trained)
            await trains([carol, mallory], 6, 5, rng, trained)
            network.cut = set()
            mallory.records.write(left)
            await mallory.records.flush(1.0)
            del network.nodes[mallory.peer]
            await trains([alice, bob], 20, 5, rng, trained)
            await asyncio.sleep(5 * SYNC_S)
            found = [node.records.views() for node in (alice, bob, carol)]
            assert len({node.records.root() for node in (alice, bob, carol)}) == 1
            ledgers = [ledger(views, is_group=False) for views in found]
            assert ledgers[0] == ledgers[1] == ledgers[2]
            assert {PeerId(row.peer): row.tokens for row in ledgers[0]} == trained
            assert total(ledgers[0]).tokens == sum(trained.values())
            assert total(ledgers[0]).contradicted == 0
            assert rows(found[0])[mallory.peer].status == "left"
            assert checked(found[0])[:2] == [(4, 0, 0), (4, 0, 0)]

    in_virtual_time(story())


@pytest.mark.timeout(60)
@pytest.mark.parametrize("is_disk_lost", [False, True])
def test_a_node_that_was_killed_goes_on_with_its_totals(tmp_path: Path, is_disk_lost: bool) -> None:
    async def story() -> None:
        rng, trained = random.Random(5), dict[PeerId, int]()
        async with swarm(tmp_path, BOB) as (network, (bob,)):
            alice = Node(network, tmp_path, ALICE)
            async with alice.running():
                alice.write(JOINED)
                await asyncio.sleep(SETTLED_S)
                await trains([alice, bob], 0, 6, rng, trained)
                await asyncio.sleep(2 * SYNC_S)
                killed = tmp_path / "killed"
                killed.mkdir()
                if not is_disk_lost:
                    shutil.copytree(tmp_path / ALICE.peer, killed / ALICE.peer)
            again = Node(network, killed, ALICE, boot=2)
            async with again.running():
                await asyncio.sleep(SETTLED_S)
                await trains([again, bob], 6, 6, rng, trained)
                await asyncio.sleep(3 * SYNC_S)
                for node in (again, bob):
                    found = ledger(node.records.views(), is_group=False)
                    assert {PeerId(row.peer): row.tokens for row in found} == trained
                    assert [row.rounds for row in found] == [12, 12]

    in_virtual_time(story())


# --- what others confirm ----------------------------------------------------------------

TOKENS = {ALICE.peer: 100, BOB.peer: 70, CAROL.peer: 50}


def test_both_sides_of_an_exchange_confirm_each_other() -> None:
    views: dict[PeerId, View] = {
        ALICE.peer: pair(3, ALICE, BOB, TOKENS)(JOINED),
        BOB.peer: pair(3, BOB, ALICE, TOKENS)(Content()),
    }
    assert checked(views) == [(1, 0, 0), (1, 0, 0)]


@pytest.mark.parametrize(
    "lie",
    [{"tokens": 900}, {"mine": digest("other")}, {"their_tokens": 1}, {"theirs": digest("x")}],
)
def test_who_says_something_else_than_its_partner_is_contradicted(lie: dict[str, object]) -> None:
    honest = pair(3, ALICE, BOB, TOKENS)
    lying = partial(honest, **lie)(JOINED)
    views: dict[PeerId, View] = {
        ALICE.peer: lying,
        BOB.peer: pair(3, BOB, ALICE, TOKENS)(Content()),
    }
    assert checked(views) == [(0, 1, 0), (0, 1, 0)]


def test_the_exchange_of_others_is_not_ours() -> None:
    """Carol says that she exchanged with Bob the payload that he exchanged with Alice."""
    stolen = partial(pair(3, CAROL, BOB, TOKENS), mine=digest(3, ALICE.peer))
    views: dict[PeerId, View] = {
        ALICE.peer: pair(3, ALICE, BOB, TOKENS)(Content()),
        BOB.peer: pair(3, BOB, ALICE, TOKENS)(Content()),
        CAROL.peer: stolen(Content()),
    }
    assert checked(views) == [(1, 0, 0), (1, 0, 0), (0, 1, 0)]


def test_of_what_nobody_speaks_nothing_is_confirmed() -> None:
    """The partner went alone, is frozen, has no record, or has forgotten; spsa has no partner."""
    ours = pair(3, ALICE, BOB, TOKENS)(Content())
    scalars = closing(Content(), 3, 100, theirs=digest("horizon"))
    alone = closing(Content(), 3, 70)
    later = pair(9, BOB, CAROL, TOKENS)(Content())
    for other in (alone, NoView("equivocated", is_frozen=True), later):
        assert checked({ALICE.peer: ours, BOB.peer: other})[0] == (0, 0, 1)
    assert checked({ALICE.peer: ours}) == [(0, 0, 1)]
    assert checked({ALICE.peer: scalars, BOB.peer: scalars}) == [(0, 0, 1), (0, 0, 1)]
    assert checked({ALICE.peer: alone}) == [(0, 0, 0)]


def in_roster(tokens: int, *, mine: str = "", said: int = 150, leader: Signer = ALICE) -> Content:
    return closing(
        Content(),
        3,
        tokens,
        partner=leader.peer,
        mine=digest(mine) if mine else None,
        theirs=digest("roster"),
        their_tokens=said,
    )


def test_members_of_a_roster_confirm_each_other() -> None:
    views: dict[PeerId, View] = {
        ALICE.peer: in_roster(100, mine="a"),
        BOB.peer: in_roster(50, mine="b"),
        CAROL.peer: in_roster(0),
    }
    assert checked(views, is_group=True) == [(1, 0, 0)] * 3
    assert checked({ALICE.peer: in_roster(100, mine="a")}, is_group=True) == [(0, 0, 1)]


@pytest.mark.parametrize(
    "other",
    [
        in_roster(51, mine="b"),
        in_roster(50, mine="b", said=151),
        in_roster(50, mine="b", leader=BOB),
    ],
    ids=["more tokens than the roster has", "another roster's tokens", "another leader"],
)
def test_members_who_do_not_agree_on_their_roster_are_contradicted(other: Content) -> None:
    views: dict[PeerId, View] = {ALICE.peer: in_roster(100, mine="a"), BOB.peer: other}
    assert checked(views, is_group=True) == [(0, 1, 0), (0, 1, 0)]


# --- rows -------------------------------------------------------------------------------


def test_a_frozen_author_has_a_row_that_says_so_and_nothing_in_it() -> None:
    views: dict[PeerId, View] = {
        ALICE.peer: NoView("two chains", is_frozen=True),
        BOB.peer: NoView("unreadable: junk"),
    }
    assert rows(views) == {
        ALICE.peer: Contribution(peer=ALICE.peer, status="frozen"),
        BOB.peer: Contribution(peer=BOB.peer, status="unreadable"),
    }


def test_a_name_is_shown_only_if_one_was_set() -> None:
    nameless = replace(JOINED, member=Member(since=Round(0)))
    found = rows({ALICE.peer: JOINED, BOB.peer: nameless, CAROL.peer: Content()})
    names = {peer: row.name for peer, row in found.items()}
    assert names == {ALICE.peer: "alice", BOB.peer: "", CAROL.peer: ""}


counts = st.integers(0, 1 << 20)
totals = st.builds(
    Totals, tokens=counts, rounds=counts, exchanges=counts, alone=counts, half=counts
)


@given(st.lists(totals, max_size=4), st.randoms(use_true_random=False))
def test_the_ledger_does_not_depend_on_the_order_and_adds_up(
    found: list[Totals], rng: random.Random
) -> None:
    views: dict[PeerId, View] = {
        signer.peer: Content(totals=one) for signer, one in zip(FOUR, found, strict=False)
    }
    mixed = rng.sample(sorted(views), len(views))
    made = ledger(views, is_group=False)
    assert made == ledger({peer: views[peer] for peer in mixed}, is_group=False)
    assert [row.tokens for row in made] == sorted((one.tokens for one in found), reverse=True)
    for name in ("tokens", "rounds", "exchanges", "alone", "half"):
        assert getattr(total(made), name) == sum(getattr(one, name) for one in found)


def test_the_table_has_a_line_for_each_author_and_the_sum() -> None:
    views: dict[PeerId, View] = {
        ALICE.peer: pair(3, ALICE, BOB, TOKENS)(JOINED),
        BOB.peer: pair(3, BOB, ALICE, TOKENS)(Content()),
        CAROL.peer: NoView("two chains", is_frozen=True),
    }
    lines = rendered(view.contributions_table(told(views, digest(), is_group=False)))  # type: ignore[arg-type]
    assert [line.split() for line in lines[1:]] == [
        [ALICE.peer[-8:], "alice", "joined", "100", "58.8", "%", *"1100", *["1", "of", "1"]],
        [BOB.peer[-8:], "70", "41.2", "%", *"1100", *["1", "of", "1"]],
        [CAROL.peer[-8:], "frozen", "0", "0.0", "%", *"0000-"],
        ["sum", "170", "100.0", "%", *"2200", *["2", "of", "2"]],
    ]
    empty = told({}, Digest(b""), is_group=False)
    assert rendered(view.contributions_table(empty))[1].split() == ["sum", "0", "-", *"0000-"]  # type: ignore[arg-type]


def test_no_number_is_cut_on_a_terminal_of_80_columns() -> None:
    """A name is, and takes two lines, if need be."""
    counts = {"rounds": 99_000, "exchanges": 98_000, "alone": 999, "half": 1}
    checks = {"confirmed": 3, "contradicted": 0, "unconfirmed": 1}
    row: dict[str, str | int] = {"name": "a name of some length", "status": "finished"}
    row |= {"peer": ALICE.peer, "tokens": 5_456_789_012, **counts, **checks}
    ledger: Contributions = {"records": "", "authors": [row], "sum": {**row, "peer": ""}}
    first, *_ = rendered(view.contributions_table(ledger), 80)[1:]
    numbers = ["5,456,789,012", "100.0", "%", "99,000", "98,000", "999", "1", "3", "of", "4"]
    assert first.split() == [ALICE.peer[-8:], "a", "name", "finished", *numbers]


def test_the_table_says_of_how_many_rounds_others_tell_another_story() -> None:
    views: dict[PeerId, View] = {
        ALICE.peer: pair(3, ALICE, BOB, TOKENS)(JOINED),
        BOB.peer: pair(3, BOB, ALICE, {**TOKENS, ALICE.peer: 1})(Content()),
    }
    lines = rendered(view.contributions_table(told(views, digest(), is_group=False)))  # type: ignore[arg-type]
    assert [line.split()[-6:] for line in lines[1:]] == [
        *[["0", "of", "1", "1", "of", "1"]] * 2,
        ["0", "of", "2", "2", "of", "2"],
    ]


def test_a_run_without_records_has_an_empty_ledger() -> None:
    assert ledger({}, is_group=True) == ()
    assert total(()) == Contribution()
