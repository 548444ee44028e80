"""Each round that is trained counts once in our totals, wherever we are killed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import in_virtual_time

from crdt.schema import Content, Totals
from node.journal import Journal
from node.learner import InnerResult, Learner
from node.noted_learner import NotedLearner
from node.records.tally import MAX_DUES, Due, Tally, counted
from node.telemetry import Waits
from node.worker import wire
from protocol.errors import PayloadRefused, WorkerLost
from protocol.ids import Digest, PeerId, Round, digest_of
from trainers.effects import ApplyOuter, Closed, Gathered, Share

ME = PeerId("me")
WEIGHTS = digest_of(b"weights")
THEIRS = digest_of(b"theirs")
GIVEN = digest_of(b"weights of a member")


def tokens_of(round: int) -> int:
    return 100 + round


@dataclass
class Disk:
    """What a kill -9 leaves: our record, the worker's snapshot, the tally."""

    folder: Path
    content: Content = field(default_factory=Content)
    round: int = 0
    weights: Digest = WEIGHTS


class ToyLearner:
    """A worker that saves when it is told to."""

    progress = None

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.saves = True
        self.dies = False
        self.refuses = False

    async def inner(self, round: Round, steps: int) -> InnerResult:
        return InnerResult(steps, tokens_of(round))

    async def snapshot(self, round: Round, fragment: int) -> tuple[Digest, int]:
        return digest_of(b"%d" % round), 1

    async def outer(self, effect: ApplyOuter) -> wire.OuterDone:
        if self.refuses:
            raise PayloadRefused(THEIRS, "too long")
        if self.saves:
            self.disk.round, self.disk.weights = effect.round, WEIGHTS
        if self.dies:
            raise WorkerLost("killed")
        return wire.OuterDone(round=effect.round, weights=WEIGHTS, gradient_norm=1.0, spread=0.0)

    async def add_scalars(self, frames: object) -> None:
        self.disk.round += self.saves


class Node:
    """The journal of one start of a node, and its worker."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.content = disk.content
        self.learner = ToyLearner(disk)
        self.journal = Journal(
            ME, Waits(lambda: 0.0), self._write, lambda: None, Tally(disk.folder / "tally")
        )
        self.worker = NotedLearner(cast(Learner, self.learner), self.journal, self._go_over_to)
        self.journal.goes_on(Round(disk.round), disk.weights)

    def _write(self, change: object) -> None:
        self.content = change(self.content)  # type: ignore[operator]

    async def _go_over_to(self, source: PeerId) -> wire.Ready:
        """As `node.beginning`: the member is at round 2."""
        await self.journal.may_begin(Round(2), GIVEN)
        if self.learner.saves:
            self.disk.round, self.disk.weights = 2, GIVEN
        if self.learner.dies:
            raise WorkerLost("killed")
        return wire.Ready(Round(2), 0, GIVEN, "")

    def save_record(self) -> None:
        self.disk.content = self.content

    async def train(self, round: int, *, with_other: bool = True) -> None:
        """The worker trains a round and takes its outer step."""
        await self.worker.inner(Round(round), 10)
        mine, _ = await self.worker.snapshot(Round(round), 0)
        both = (Share(mine, Round(round), 0.5), Share(THEIRS, Round(round), 0.5))
        await self.worker.outer(ApplyOuter(Round(round + 1), 0, mine, both if with_other else ()))

    def close(self, round: int, *, with_other: bool = True) -> None:
        receipt = Gathered(Round(round), 1, 1, THEIRS) if with_other else None
        self.journal.closed(Closed(Round(round), tokens_of(round), receipt, False, ""))


def totals(rounds: int, *, alone: int = 0) -> Totals:
    return Totals(
        tokens=sum(tokens_of(round) for round in range(rounds)),
        rounds=rounds,
        exchanges=rounds - alone,
        alone=alone,
        counted_to=Round(rounds),
    )


async def two_rounds(disk: Disk) -> Node:
    node = Node(disk)
    for round in range(2):
        await node.train(round)
        node.close(round)
    node.save_record()
    return node


@pytest.mark.parametrize("with_other", [True, False])
def test_killed_after_the_snapshot_and_before_the_record_the_round_is_counted(
    tmp_path: Path, with_other: bool
) -> None:
    async def story() -> None:
        node = await two_rounds(Disk(tmp_path))
        await node.train(2, with_other=with_other)
        assert Node(node.disk).content.totals == totals(3, alone=int(not with_other))

    in_virtual_time(story())


def test_killed_before_the_snapshot_the_round_is_trained_again_and_counted_once(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        node = await two_rounds(Disk(tmp_path))
        node.learner.saves = False
        await node.train(2)
        again = Node(node.disk)
        assert again.content.totals == totals(2)
        await again.train(2)
        again.close(2)
        assert again.content.totals == totals(3)
        again.save_record()
        assert Node(again.disk).content.totals == totals(3)

    in_virtual_time(story())


def test_a_round_that_the_record_has_and_the_snapshot_lost_is_not_counted_again(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        node = await two_rounds(Disk(tmp_path))
        node.disk.round = 0  # the newest snapshots are broken
        again = Node(node.disk)
        for round in range(3):
            await again.train(round)
            again.close(round)
        assert again.content.totals == totals(3)
        assert again.content.progress is not None
        assert again.content.progress.round == 2

    in_virtual_time(story())


def test_a_worker_that_dies_with_the_round_saved_has_it_counted(tmp_path: Path) -> None:
    """Nobody says `Closed` then: the trainer hears that the worker was lost."""

    async def story() -> None:
        node = await two_rounds(Disk(tmp_path))
        node.learner.dies = True
        with pytest.raises(WorkerLost):
            await node.train(2)
        node.journal.goes_on(Round(node.disk.round), WEIGHTS)
        assert node.content.totals == totals(3)

    in_virtual_time(story())


def test_a_payload_that_is_refused_counts_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        node = await two_rounds(Disk(tmp_path))
        node.learner.refuses = True
        with pytest.raises(PayloadRefused):
            await node.train(2)
        node.journal.goes_on(Round(9), WEIGHTS)
        assert node.content.totals == totals(2)

    in_virtual_time(story())


def test_what_is_trained_from_another_peers_weights_is_new(tmp_path: Path) -> None:
    async def story() -> None:
        node = await two_rounds(Disk(tmp_path))
        for round in (2, 3):
            await node.train(round)
            node.close(round)
        await node.worker.catch_up(PeerId("donor"))  # who is at round 2
        assert [closed.round for closed in node.content.closed] == [0, 1]
        await node.train(2)
        node.close(2)
        assert node.content.totals.rounds == 5
        assert node.content.totals.tokens == totals(4).tokens + tokens_of(2)
        node.save_record()
        assert Node(node.disk).content.totals == node.content.totals

    in_virtual_time(story())


async def four_rounds(disk: Disk) -> Node:
    """All of them in our record on disk."""
    node = await two_rounds(disk)
    for round in (2, 3):
        await node.train(round)
        node.close(round)
    node.save_record()
    return node


@pytest.mark.parametrize("trained", [0, 1, 2])
@pytest.mark.parametrize("records", [False, True], ids=["record old", "record new"])
@pytest.mark.parametrize("dies", [False, True], ids=["node", "worker first"])
def test_killed_after_weights_of_an_earlier_round_were_taken_over_what_follows_is_new(
    tmp_path: Path, trained: int, records: bool, dies: bool
) -> None:
    """However much was trained from there, and whether our record on disk says so."""

    async def story() -> None:
        node = await four_rounds(Disk(tmp_path))
        node.learner.dies = dies
        if dies:
            with pytest.raises(WorkerLost):
                await node.worker.catch_up(PeerId("donor"))
            node.journal.goes_on(Round(2), GIVEN)
            node.learner.dies = False
        else:
            await node.worker.catch_up(PeerId("donor"))
        for round in range(2, 2 + trained):
            await node.train(round)
            node.close(round)
        if records:
            node.save_record()
        again = Node(node.disk)
        for round in range(2 + trained, 4):
            await again.train(round)
            again.close(round)
        both = tokens_of(2) + tokens_of(3)
        assert (again.content.totals.rounds, again.content.totals.tokens) == (
            6,
            totals(4).tokens + both,
        )
        again.save_record()
        assert Node(again.disk).content.totals == again.content.totals

    in_virtual_time(story())


@pytest.mark.parametrize("is_refused", [False, True])
def test_killed_before_weights_that_were_to_be_taken_over_are_saved_what_was_ours_counts(
    tmp_path: Path, is_refused: bool
) -> None:
    async def story() -> None:
        node = await two_rounds(Disk(tmp_path))
        await node.train(2)  # saved, and not in our record on disk
        node.learner.saves = False
        await node.journal.may_begin(Round(1), GIVEN)
        if is_refused:
            node.journal.tally.stay()
        assert Node(node.disk).content.totals == totals(3)

    in_virtual_time(story())


def test_a_record_that_is_ahead_of_the_snapshot_after_a_takeover_counts_no_round_twice(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        node = await four_rounds(Disk(tmp_path))
        await node.worker.catch_up(PeerId("donor"))
        node.learner.saves = False
        await node.train(2)
        node.close(2)
        node.save_record()
        again = Node(node.disk)  # from what was taken over
        await again.train(2)
        again.close(2)
        assert again.content.totals.rounds == 5

    in_virtual_time(story())


def test_who_took_over_other_weights_vouches_for_none_of_those_before(tmp_path: Path) -> None:
    async def story() -> None:
        node = await four_rounds(Disk(tmp_path))
        assert node.journal.past == {Round(round): WEIGHTS for round in range(5)}
        await node.worker.catch_up(PeerId("donor"))
        assert node.journal.past == {Round(2): GIVEN}
        assert node.journal.weights == GIVEN

    in_virtual_time(story())


def test_scalars_of_a_closed_round_are_noted_before_the_worker_adds_them(tmp_path: Path) -> None:
    async def story() -> None:
        node = Node(Disk(tmp_path))
        node.close(0)
        await node.worker.add_scalars(())
        assert Node(node.disk).content.totals == totals(1)

    in_virtual_time(story())


rounds = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=12)


@given(rounds)
@settings(max_examples=40, deadline=None)
def test_whatever_was_saved_before_each_kill_all_rounds_count_once(
    kills: list[tuple[bool, bool, bool]],
) -> None:
    """Each time: whether the worker saved, whether the record was saved, whether we are killed."""

    async def story() -> None:
        with TemporaryDirectory() as folder:
            node = Node(Disk(Path(folder)))
            round = 0
            for saves, records, is_killed in kills:
                node.learner.saves = saves
                await node.train(round)
                node.close(round)
                round += 1
                if records:
                    node.save_record()
                if is_killed:
                    node = Node(node.disk)
                    round = node.disk.round
            node.learner.saves = True
            for left in range(round, 13):
                await node.train(left)
                node.close(left)
            assert node.content.totals == totals(13)

    in_virtual_time(story())


def test_a_broken_tally_counts_for_nothing_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    async def story() -> None:
        path = tmp_path / "tally"
        path.write_bytes(b"junk")
        tally = Tally(path)
        assert tally.settle(Round(99)) == ()
        for round in range(MAX_DUES + 3):
            tally.add(Due(Round(round), Round(round + 1), 1, alone=False))
        await tally.flush()
        dues = Tally(path).settle(Round(10))
        assert [due.closes for due in dues] == list(range(3, 10))
        assert counted(Content(), dues).totals.rounds == 7
        tally.begin(Round(2), GIVEN)
        await tally.flush()
        assert Tally(path).settle(Round(99)) == ()

    in_virtual_time(story())
