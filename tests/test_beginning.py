"""What a node starts from."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from samples import CREATOR, OTHER, PRESENCE
from training_parts import R0, R1, Node, numbers
from virtual_time import in_virtual_time

from node.beginning import ALONE_S, ORPHANED_S, SHARED_S, VOUCHED_S
from node.learner import StartRefused
from node.records.tally import Tally
from node.worker import wire
from protocol.algorithms import DilocoConfig, NolocoConfig, SpsaConfig, TrainerConfig
from protocol.envelope import Signer
from protocol.errors import Malformed, PeerUnavailable, WorkerLost
from protocol.ids import Round, digest_of
from protocol.messages import Checkpoint
from protocol.witness import Sketch
from trainers.reanchor import AWAY_ROUNDS, BACK_S

ALICE, BOB, CAROL = (Signer(bytes([n]) * 32).peer for n in (11, 12, 13))


def first_weights(node: Node) -> asyncio.Task[wire.Ready]:
    return asyncio.create_task(node.beginning.weights(is_new=False))


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


def offer(round: int, text: str = "a") -> Checkpoint:
    digest = digest_of(f"{text} {round}".encode())
    return Checkpoint(Round(round), digest, 100, digest_of(b"weights of " + digest))


def meets(node: Node, **rounds: int) -> None:
    """Members of these rounds are alive."""
    peers = {"alice": ALICE, "bob": BOB, "carol": CAROL}
    node.live = [
        replace(PRESENCE, peer=peers[name], state="training", round=Round(round))
        for name, round in rounds.items()
    ]


def taken(node: Node) -> list[Round]:
    """Of the checkpoints that the worker was given."""
    starts = node.learner.started
    return [how.checkpoint.round for how in starts if isinstance(how, wire.StartFromCheckpoint)]


def test_a_joiner_takes_the_newest_weights_that_lie_near_anothers(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        meets(node, alice=7, bob=9)
        node.members.offers = {ALICE: offer(7), BOB: offer(9)}
        node.members.sketches = {ALICE: Sketch(Round(7), digest_of(b""), 1.0, numbers(2.0))}
        assert (await node.beginning.weights(is_new=False)).round == 9
        assert node.members.fetched == [(9, (BOB,))]
        assert node.members.held == []

    in_virtual_time(run())


def test_weights_far_from_anothers_are_left_and_the_next_members_are_tried(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        meets(node, alice=7, bob=9)
        node.members.offers = {ALICE: offer(7), BOB: offer(9)}
        node.members.sketches = {ALICE: Sketch(Round(7), digest_of(b""), 1.0, numbers(4.0))}
        assert (await node.beginning.weights(is_new=False)).round == 7  # nobody else to compare
        assert node.members.fetched == [(9, (BOB,)), (7, (ALICE,))]
        assert taken(node) == [7]
        assert node.members.held == []

    in_virtual_time(run())


def test_a_joiner_of_a_group_fetches_what_two_members_offer_from_both(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path, trainer=DilocoConfig())
        meets(node, alice=7, bob=7, carol=99)
        node.members.offers = {ALICE: offer(7), BOB: offer(7), CAROL: offer(99, "false")}
        assert (await node.beginning.weights(is_new=False)).round == 7
        assert [(r, set(peers)) for r, peers in node.members.fetched] == [(7, {ALICE, BOB})]

    in_virtual_time(run())


def test_a_joiner_of_a_group_believes_one_offer_whose_weights_another_had(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path, trainer=DilocoConfig())
        meets(node, alice=7, bob=8)
        node.members.offers = {ALICE: offer(7), BOB: offer(8)}
        node.members.known = {BOB: {Round(7): offer(7).weights}}
        assert (await node.beginning.weights(is_new=False)).round == 7
        assert node.members.fetched == [(7, (ALICE,))]

    in_virtual_time(run())


def test_a_joiner_of_a_group_waits_while_its_members_contradict_each_other(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path, trainer=DilocoConfig())
        meets(node, alice=7, bob=7)
        node.members.offers = {ALICE: offer(7), BOB: offer(7, "other")}
        weights = first_weights(node)
        await asyncio.sleep(ORPHANED_S * 2)
        assert node.learner.started == []
        weights.cancel()

    in_virtual_time(run())


@pytest.mark.parametrize(("ahead", "is_taken"), [(AWAY_ROUNDS, True), (AWAY_ROUNDS - 1, False)])
def test_a_restarted_node_goes_on_from_its_disk_unless_two_members_are_far_ahead(
    tmp_path: Path, ahead: int, is_taken: bool
) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        node.learner.has_snapshot, node.learner.round = True, R1
        meets(node, alice=1 + ahead, bob=1 + ahead)
        node.members.offers = {peer: offer(1 + ahead) for peer in (ALICE, BOB)}
        assert (await node.beginning.weights(is_new=False)).round == 1 + ahead * is_taken
        assert node.learner.started[0] == wire.StartFromDisk()
        assert taken(node) == [1 + ahead] * is_taken

    in_virtual_time(run())


def test_a_restarted_node_looks_for_members_for_a_while_then_goes_on_alone(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        node.learner.has_snapshot, node.learner.round = True, R1
        weights = first_weights(node)
        await asyncio.sleep(BACK_S - 0.5)
        assert not weights.done()
        await asyncio.sleep(1.0)
        assert weights.result().round == 1

    in_virtual_time(run())


def test_a_member_that_is_left_behind_stays_where_it_is_if_nothing_can_be_trusted(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        meets(node, alice=50, bob=50)
        node.members.offers = {ALICE: offer(50)}
        node.members.sketches = {BOB: Sketch(Round(50), digest_of(b""), 1.0, numbers(9.0))}
        with pytest.raises(PeerUnavailable, match="expected 3 at most"):
            await node.beginning.go_over_to(ALICE)
        assert taken(node) == []

    in_virtual_time(run())


def test_a_restarted_node_goes_on_where_it_was_if_its_worker_dies_on_the_way_to_a_member(
    tmp_path: Path,
) -> None:
    """Where the next worker stands `Training` hears as ever."""

    async def run() -> None:
        node = Node(tmp_path)
        node.learner.has_snapshot, node.learner.round = True, R1
        meets(node, alice=60, bob=61)
        node.members.offers = {ALICE: offer(60), BOB: offer(61)}
        node.learner.refusal = WorkerLost("killed")
        assert (await node.beginning.weights(is_new=False)).round == 1
        assert node.members.held == []

    in_virtual_time(run())


def test_a_member_of_a_group_goes_over_to_what_another_member_had_too_and_to_nothing_else(
    tmp_path: Path,
) -> None:
    """Alice says that she is where the others are, and gives weights of her own."""

    async def run() -> None:
        node = Node(tmp_path, trainer=DilocoConfig())
        meets(node, alice=9, bob=9, carol=9)
        node.members.offers = {ALICE: offer(9, "false"), BOB: offer(9), CAROL: offer(9)}
        node.members.known = {peer: {Round(9): offer(9).weights} for peer in (BOB, CAROL)}
        with pytest.raises(PeerUnavailable, match="round 9 are not those of other members"):
            await node.beginning.go_over_to(ALICE)
        assert node.members.fetched == []
        assert (await node.beginning.go_over_to(BOB)).round == 9
        assert node.members.fetched == [(9, (BOB,))]

    in_virtual_time(run())


def test_a_member_of_a_group_waits_a_while_for_a_second_one_that_is_about_to_close_the_round(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        node = Node(tmp_path, trainer=DilocoConfig())
        meets(node, alice=9, bob=8, carol=8)
        node.members.offers = {ALICE: offer(9), BOB: offer(8), CAROL: offer(8)}
        taking = asyncio.create_task(node.beginning.go_over_to(ALICE))
        await asyncio.sleep(VOUCHED_S / 2)
        assert node.members.fetched == []
        node.members.known = {BOB: {Round(9): offer(9).weights}}
        assert (await taking).round == 9

    in_virtual_time(run())


@pytest.mark.parametrize("others", [{}, {"bob": 8}, {"bob": 8, "carol": 7}], ids=str)
def test_where_no_two_members_of_a_group_agree_one_word_has_to_do(
    tmp_path: Path, others: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    """Each of them trained alone while they were cut apart; somebody has to give in."""

    async def run() -> None:
        node = Node(tmp_path, trainer=DilocoConfig())
        meets(node, alice=9, **others)
        of = {"bob": (BOB, "bob's"), "carol": (CAROL, "carol's")}
        offers = {of[name][0]: offer(round, of[name][1]) for name, round in others.items()}
        node.members.offers = {ALICE: offer(9), **offers}
        assert (await node.beginning.go_over_to(ALICE)).round == 9
        assert ("on one word" in caplog.text) == bool(others)

    in_virtual_time(run())


@pytest.mark.parametrize("trainer", [NolocoConfig(), SpsaConfig()], ids=lambda one: one.KIND)
def test_weights_to_go_over_to_are_noted_before_the_worker_has_them(
    tmp_path: Path, trainer: TrainerConfig
) -> None:
    """But for spsa, which adds its own steps to the sum that it takes over."""

    async def run() -> None:
        node = Node(tmp_path, trainer=trainer)
        meets(node, alice=60)
        node.members.offers = {ALICE: offer(60)}
        node.learner.refusal = WorkerLost("killed")
        with pytest.raises(WorkerLost):
            await node.beginning.go_over_to(ALICE)
        noted = Tally(tmp_path / "tally").has_begun(Round(60), offer(60).weights)
        assert noted == isinstance(trainer, NolocoConfig)
        node.learner.refusal = StartRefused("of another model")
        with pytest.raises(PeerUnavailable):
            await node.beginning.go_over_to(ALICE)
        assert not node.journal.tally.has_begun(Round(60), offer(60).weights)

    in_virtual_time(run())


def test_a_node_without_a_snapshot_goes_on_from_the_one_that_members_hold(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path)
        meets(node, alice=1)
        node.members.offers = {ALICE: offer(1)}
        node.is_protected = True
        await first_weights(node)
        assert node.learner.started == [wire.StartFromDisk()]

    in_virtual_time(run())


def test_a_joiner_of_an_spsa_run_takes_the_sum_that_two_offer_at_a_base(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path, trainer=SpsaConfig())
        meets(node, alice=7, bob=9, carol=99)
        same = offer(5)
        node.members.bases = {
            ALICE: replace(same, round=Round(7)),
            BOB: replace(same, round=Round(9)),
            CAROL: offer(99, "false"),
        }
        assert (await node.beginning.weights(is_new=False)).round == 7
        assert [(r, set(peers)) for r, peers in node.members.fetched] == [(7, {ALICE, BOB})]

    in_virtual_time(run())


def test_a_joiner_of_an_spsa_run_waits_while_a_base_spreads(tmp_path: Path) -> None:
    async def run() -> None:
        node = Node(tmp_path, trainer=SpsaConfig())
        meets(node, alice=7, bob=7)
        node.members.bases = {ALICE: offer(7, "newer"), BOB: offer(7)}
        weights = first_weights(node)
        await asyncio.sleep(VOUCHED_S / 2)
        assert node.members.fetched == []
        node.members.bases[BOB] = offer(7, "newer")
        await weights
        assert [(r, set(peers)) for r, peers in node.members.fetched] == [(7, {ALICE, BOB})]

    in_virtual_time(run())


def test_a_joiner_of_an_spsa_run_believes_one_member_if_no_second_says_the_same_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        node = Node(tmp_path, trainer=SpsaConfig())
        meets(node, alice=7, bob=9)
        node.members.bases = {ALICE: offer(7), BOB: offer(9)}
        began = asyncio.get_running_loop().time()
        await node.beginning.weights(is_new=False)
        assert node.members.fetched == [(9, (BOB,))]
        assert asyncio.get_running_loop().time() - began == VOUCHED_S
        assert "a sum is taken on one word" in caplog.text

    in_virtual_time(run())


def test_a_joiner_of_an_spsa_run_takes_the_sum_of_now_from_the_only_member(
    tmp_path: Path,
) -> None:
    """Nobody could vouch, so there is no reason to begin at a base."""

    async def run() -> None:
        node = Node(tmp_path, trainer=SpsaConfig())
        meets(node, alice=7)
        node.members.offers, node.members.bases = {ALICE: offer(7)}, {ALICE: offer(3)}
        await node.beginning.weights(is_new=False)
        assert node.members.fetched == [(7, (ALICE,))]

    in_virtual_time(run())


def lost_its_disk(root: Path) -> tuple[Node, list[Round]]:
    """A member of a group whose own part is held by others; rounds of what it shares, as used."""
    node, used = Node(root, trainer=DilocoConfig()), list[Round]()

    async def use(checkpoint: Checkpoint) -> None:
        used.append(checkpoint.round)

    node.use_shared = use
    return node, used


def test_who_lost_its_disk_comes_back_while_the_run_is_paused(tmp_path: Path) -> None:
    async def run() -> None:
        node, used = lost_its_disk(tmp_path)
        meets(node, alice=7, bob=7)
        node.live = [replace(presence, state="paused") for presence in node.live]
        node.members.offers = {ALICE: offer(7), BOB: offer(7)}
        await first_weights(node)
        assert used == [7]
        assert node.learner.started == [wire.StartFromDisk()]
        assert node.members.held == []

    in_virtual_time(run())


def test_who_lost_its_disk_takes_what_all_share_on_the_word_of_two(tmp_path: Path) -> None:
    """Carol says that she is furthest, and would give weights of her own."""

    async def run() -> None:
        node, used = lost_its_disk(tmp_path)
        meets(node, alice=7, bob=7, carol=99)
        node.members.offers = {ALICE: offer(7), BOB: offer(7), CAROL: offer(99, "false")}
        await first_weights(node)
        assert used == [7]

    in_virtual_time(run())


def test_what_is_of_no_use_to_who_lost_its_disk_is_left_and_the_next_is_tried(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        node, used = lost_its_disk(tmp_path)
        meets(node, alice=7, bob=7, carol=8)
        node.members.offers = {ALICE: offer(7), BOB: offer(7), CAROL: offer(8)}
        node.members.known = {ALICE: {Round(8): offer(8).weights}}
        real = node.use_shared
        assert real

        async def only_the_eighth(checkpoint: Checkpoint) -> None:
            if checkpoint.round != 8:
                raise Malformed("other weights than it says")
            await real(checkpoint)

        node.use_shared = only_the_eighth
        await first_weights(node)
        assert [round for round, _ in node.members.fetched] == [7, 8]
        assert (used, node.members.held) == ([8], [])

    in_virtual_time(run())


def test_who_lost_its_disk_asks_again_while_members_contradict_each_other(tmp_path: Path) -> None:
    async def run() -> None:
        node, used = lost_its_disk(tmp_path)
        meets(node, alice=7, bob=7)
        node.members.offers = {ALICE: offer(7), BOB: offer(7, "other")}
        weights = first_weights(node)
        await asyncio.sleep(SHARED_S / 2)
        assert not weights.done()
        node.members.offers[BOB] = offer(7)
        await weights
        assert used == [7]
        assert node.learner.started == [wire.StartFromDisk()]

    in_virtual_time(run())


def test_who_lost_its_disk_begins_without_its_own_part_if_nobody_gives_the_rest(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        node, used = lost_its_disk(tmp_path)
        weights = first_weights(node)
        await asyncio.sleep(SHARED_S + ORPHANED_S + 3)
        assert weights.done()
        assert (used, node.learner.started) == ([], [wire.StartFresh()])

    in_virtual_time(run())
