"""Bases without a machine around them; with one they are in test_spsa."""

from __future__ import annotations

from spsa_pump import PEERS, RUN, SIGNERS

from protocol import codec
from protocol.algorithms import SpsaConfig
from protocol.envelope import Domain
from protocol.ids import Digest, PeerId, digest_of
from protocol.spsa import Base, Frame, SignedBase, SignedFrame, log_id, packed
from trainers.bases import NO_BASE, Bases
from trainers.effects import Effect, NameSum, SetTimer
from trainers.logs import Logs
from trainers.timers import BaseIsDue

ALICE, BOB, CAROL = PEERS[:3]
CONFIG = SpsaConfig(base_scalars=100, expected_peers=7)
BOOT = b"boot----"
SUM = digest_of(b"sum")


class World:
    """Alice's logs and bases."""

    def __init__(self) -> None:
        self.out: list[Effect] = []
        self.logs = Logs(RUN)
        seal = SIGNERS[ALICE]
        self.bases = Bases(ALICE, CONFIG, self.logs, self.out, run=RUN, seal=seal)

    def add(self, author: PeerId, scalars: int, *, told: bool = True) -> None:
        """So many more of this author."""
        for _ in range(scalars // 50):
            id = log_id(RUN, author, BOOT)
            first = self.logs.count(id)
            one = Frame(
                author=author,
                boot=BOOT,
                first=first,
                step=first,
                base=NO_BASE,
                authors=1,
                scalars=bytes(50),
            )
            self.logs.add(id, one, SignedFrame(codec.encode(one), bytes(64)))
        self.logs.tell(1000 if told else 0)

    def take(self) -> list[Effect]:
        effects = list(self.out)
        self.out.clear()
        return effects


def base_of(
    leader: PeerId, horizon: dict[PeerId, int], *, index: int = 1, authors: int, sum: Digest = SUM
) -> SignedBase:
    logs = {log_id(RUN, author, BOOT): count for author, count in horizon.items()}
    base = Base(index=index, leader=leader, horizon=packed(logs), authors=authors, sum=sum)
    body = codec.encode(base)
    return SignedBase(body, SIGNERS[leader].sign(Domain.BASE, RUN, body))


def test_a_base_is_due_after_so_many_scalars_of_all_and_once() -> None:
    world = World()
    world.add(ALICE, 50)
    world.bases.look((), 0.0)
    assert world.take() == []
    world.add(BOB, 50)
    world.bases.look((), 0.0)
    world.bases.look((), 0.0)
    assert world.take() == [SetTimer(10.0, BaseIsDue(1, 1)), NameSum(())]
    assert world.bases.on_named(SUM) == base_of(ALICE, {ALICE: 50, BOB: 50}, authors=2)
    world.bases.look((), 0.0)
    assert world.take() == []
    world.add(BOB, 100)
    world.bases.look((), 1.0)
    made = world.bases.on_named(SUM)
    assert made == base_of(ALICE, {ALICE: 50, BOB: 150}, index=2, authors=1)


def test_authors_are_those_that_the_spec_expects_until_a_base_counts_them() -> None:
    world = World()
    assert (world.bases.index, world.bases.name, world.bases.authors) == (0, NO_BASE, 7)


def test_of_all_members_exactly_one_leads_a_term() -> None:
    leaders = []
    for me in PEERS[:5]:
        out: list[Effect] = []
        world = World()
        world.add(ALICE, 100)
        bases = Bases(me, CONFIG, world.logs, out, run=RUN, seal=SIGNERS[me])
        bases.look([p for p in PEERS[:5] if p != me], 0.0)
        leaders += [me] * (NameSum(()) in out)
    assert len(leaders) == 1


def test_a_base_has_what_the_worker_was_told_and_not_what_waits_for_it() -> None:
    world = World()
    world.add(ALICE, 100)
    world.add(BOB, 50, told=False)
    world.bases.look((), 0.0)
    world.logs.tell(9)
    assert world.bases.on_named(SUM) == base_of(ALICE, {ALICE: 100}, authors=1)


def test_of_two_bases_of_one_index_all_end_with_the_lower_name() -> None:
    one = base_of(BOB, {ALICE: 100}, authors=1)
    other = base_of(CAROL, {ALICE: 100}, authors=1)
    names = set()
    for first, second in ((one, other), (other, one)):
        world = World()
        world.add(ALICE, 100)
        for heard in (first, second):
            world.bases.on_base(BOB, heard)
            world.bases.check()
            world.bases.on_named(SUM)
        names.add(world.bases.name)
    assert names == {min(one.digest, other.digest)}


def test_a_worker_that_died_while_it_named_a_sum_is_asked_for_the_next_one() -> None:
    world = World()
    world.add(ALICE, 100)
    world.bases.look((), 0.0)
    world.bases.restart()
    world.take()
    assert world.bases.on_named(SUM) is None
    world.bases.on_timer(BaseIsDue(1, 1), (), 10.0, can_make=False)
    assert world.take() == [SetTimer(20.0, BaseIsDue(1, 2))]
    world.bases.on_timer(BaseIsDue(1, 2), (), 20.0, can_make=True)
    assert world.take() == [SetTimer(30.0, BaseIsDue(1, 3)), NameSum(())]


def test_a_base_is_not_made_while_the_worker_has_fewer_scalars_again() -> None:
    world = World()
    world.add(ALICE, 100)
    world.bases.look((), 0.0)
    world.logs.resume({log_id(RUN, ALICE, BOOT): 50}, forget=False)
    world.bases.restart()
    world.take()
    world.bases.on_timer(BaseIsDue(1, 1), (), 10.0, can_make=True)
    assert world.take() == [SetTimer(20.0, BaseIsDue(1, 2))]


def test_what_both_of_the_newest_two_have_is_dropped() -> None:
    world = World()
    for n in range(3):
        world.add(ALICE, 100)
        world.bases.look((), float(n))
        world.bases.on_named(SUM)
    kept = world.logs.answer({log_id(RUN, ALICE, BOOT): 200}).frames
    assert len(kept) == 2
    assert world.logs.answer({log_id(RUN, ALICE, BOOT): 150}).frames == ()
