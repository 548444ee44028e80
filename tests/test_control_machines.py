"""Every trainer obeys its creator between two rounds, whenever each peer hears of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import group_pump
import pytest
import spsa_pump
from group_pump import PEERS, SIGNERS

from protocol.algorithms import (
    DilocoConfig,
    GroupConfig,
    LocalConfig,
    NolocoConfig,
    SpsaConfig,
    StreamingConfig,
    SyncConfig,
)
from protocol.changes import Change, InForce
from protocol.ids import Digest, PeerId, Round, digest_of
from protocol.messages import Accept, Propose, Refuse
from trainers.effects import (
    Agreed,
    ApplyOuter,
    Blame,
    ChangeSettings,
    Closed,
    Effect,
    Fetch,
    Finished,
    Paused,
    RunInner,
    Sample,
    Send,
    Snapshot,
    Unpaused,
)
from trainers.events import (
    ControlChanged,
    Event,
    InnerDone,
    InnerFailed,
    MembersChanged,
    OuterDone,
    Received,
    Resumed,
    Sampled,
    SnapshotDone,
)
from trainers.local import Local
from trainers.noloco import Noloco
from trainers.streaming import Streaming

PAUSE, GO_ON, STOP = ControlChanged(is_paused=True), ControlChanged(), ControlChanged(False, True)
ALICE, BOB = PEERS[:2]
WEIGHTS = digest_of(b"weights")
A, B = digest_of(b"a"), digest_of(b"b")


def rounds(*numbers: int) -> list[Round]:
    return [Round(number) for number in numbers]


R0, R1, R2, R3, R4, R5, R6, R7 = rounds(*range(8))


def steps(value: int, round: int) -> Change:
    return Change(name="trainer.inner_steps", value=str(value), round=Round(round))


def codec(value: str, round: int) -> Change:
    return Change(name="trainer.codec", value=value, round=Round(round))


def told(*changes: Change) -> ControlChanged:
    return ControlChanged(changes=changes)


# --- local: the simplest machine shows when a word counts -----------------------------------


class Told:
    """A local machine that trains round 0."""

    def __init__(self) -> None:
        self.machine = Local(LocalConfig(inner_steps=5), rounds=9)
        assert self.tell(Resumed(R0, WEIGHTS)) == [RunInner(R0, 5)]

    def tell(self, *events: Event) -> list[Effect]:
        return [effect for event in events for effect in self.machine.handle(event, 0.0)]

    def end(self, round: int) -> list[Effect]:
        """The round is trained and its outer step taken; what is asked for then."""
        outer = self.tell(InnerDone(5, 50))
        assert outer == [ApplyOuter(Round(round + 1), 0, None, ())]
        closed, *rest = self.tell(OuterDone(Round(round + 1), WEIGHTS))
        assert isinstance(closed, Closed)
        return rest


def test_a_pause_lets_the_round_end_and_the_next_one_wait() -> None:
    local = Told()
    assert local.tell(PAUSE) == []
    assert local.end(0) == [Paused(R1)]
    assert local.tell(PAUSE) == []
    assert local.tell(GO_ON) == [Unpaused(R1), RunInner(R1, 5)]


def test_a_pause_that_is_over_before_the_round_was_never_there() -> None:
    local = Told()
    assert local.tell(PAUSE, GO_ON) == []
    assert local.end(0) == [RunInner(R1, 5)]


def test_a_stop_makes_the_round_under_way_the_last_one_for_good() -> None:
    local = Told()
    assert local.tell(STOP, GO_ON) == []
    assert local.end(0) == [Finished(R1)]
    assert local.tell(Resumed(R1, WEIGHTS)) == [Finished(R1)]


def test_a_stop_ends_a_pause() -> None:
    local = Told()
    local.tell(PAUSE)
    local.end(0)
    assert local.tell(ControlChanged(True, True)) == [Finished(R1)]


def test_who_hears_it_before_its_worker_is_there_obeys_at_once() -> None:
    for word, said in ((PAUSE, Paused(R3)), (STOP, Finished(R3))):
        machine = Local(LocalConfig(inner_steps=5), rounds=9)
        assert machine.handle(word, 0.0) == []
        assert machine.handle(Resumed(R3, WEIGHTS), 0.0) == [said]


def test_a_change_is_in_force_from_its_round_or_from_the_next_whichever_is_later() -> None:
    local = Told()
    later, sooner = steps(7, 2), Change(name="inner.lr", value="0.5", round=R0)
    assert local.tell(told(sooner, later)) == [
        ChangeSettings((InForce(sooner, R1), InForce(later, R2)))
    ]
    assert local.end(0) == [RunInner(R1, 5)]
    assert local.end(1) == [RunInner(R2, 7)]
    assert local.tell(told(sooner, later)) == []  # known
    newer = steps(3, 1)
    both = (InForce(sooner, R1), InForce(later, R2), InForce(newer, R3))
    assert local.tell(told(newer, sooner)) == [ChangeSettings(both)]
    assert local.end(2) == [RunInner(R3, 3)]


def test_a_change_that_is_taken_back_before_its_round_never_comes_into_force() -> None:
    local = Told()
    local.tell(told(steps(7, 2)))
    assert local.tell(told(steps(6, 3))) == [ChangeSettings((InForce(steps(6, 3), R3),))]
    assert local.end(0) == [RunInner(R1, 5)]
    assert local.end(1) == [RunInner(R2, 5)]
    assert local.end(2) == [RunInner(R3, 6)]


def test_a_new_worker_is_told_the_changes_before_it_trains() -> None:
    local = Told()
    local.tell(told(steps(7, 1)))
    local.end(0)
    changes = ChangeSettings((InForce(steps(7, 1), R1),))
    assert local.tell(InnerFailed("killed"), Resumed(R1, WEIGHTS)) == [changes, RunInner(R1, 7)]


# --- noloco ---------------------------------------------------------------------------------


def noloco(*members: PeerId, sizes: tuple[set[int], ...] = ()) -> Noloco:
    """Alice, at the step boundary at the end of round 0."""
    alice = Noloco(
        ALICE,
        NolocoConfig(inner_steps=8),
        run=group_pump.RUN,
        rounds=9,
        fragments=1,
        max_tokens=800,
        most_claimed=800,
        sizes=sizes,
    )
    alice.handle(MembersChanged(members), 0.0)
    assert alice.handle(Resumed(R0, WEIGHTS), 0.0) == [RunInner(R0, 8)]
    assert alice.handle(InnerDone(8, 400), 8.0) == [Snapshot(R0, 0)]
    return alice


def of(kinds: type[Effect] | tuple[type[Effect], ...], effects: list[Effect]) -> list[Effect]:
    return [effect for effect in effects if isinstance(effect, kinds)]


MADE = SnapshotDone(R0, 0, A, 100)
DOING = (RunInner, ApplyOuter, Paused, Unpaused, Finished, Closed)


def test_a_paused_pair_ends_its_exchange_before_it_waits() -> None:
    alice = noloco(BOB)
    assert alice.handle(PAUSE, 8.0) == []
    assert of(DOING, alice.handle(MADE, 9.0)) == []
    alice.handle(MembersChanged(()), 10.0)  # Bob has paused, too
    effects = alice.handle(Received(BOB, Refuse(A, "later", 0.0)), 10.0)
    assert of(DOING, effects) == [ApplyOuter(R1, 0, A, ())]
    effects = alice.handle(OuterDone(R1, WEIGHTS), 11.0)
    assert [type(effect) for effect in of(DOING, effects)] == [Closed, Paused]
    offer = Propose(R1, 0, B, 100, 400, 5.0)
    assert alice.handle(Received(BOB, offer), 12.0) == [Send(BOB, Refuse(B, "later", 0.0))]
    assert alice.handle(GO_ON, 13.0) == [Unpaused(R1), RunInner(R1, 8)]


def test_a_pair_that_is_resumed_in_the_middle_of_its_exchange_trains_on_meanwhile() -> None:
    alice = noloco(BOB)
    alice.handle(PAUSE, 8.0)
    alice.handle(MADE, 9.0)
    assert alice.handle(GO_ON, 10.0) == [RunInner(R1, 8)]


def test_a_stopped_pair_ends_its_exchange_before_it_has_finished() -> None:
    alice = noloco()
    assert alice.handle(STOP, 8.0) == []
    effects = alice.handle(MADE, 9.0)
    assert of(DOING, effects) == [ApplyOuter(R1, 0, A, ())]
    effects = alice.handle(OuterDone(R1, WEIGHTS), 10.0)
    assert [type(effect) for effect in of(DOING, effects)] == [Closed, Finished]
    offer = Propose(R5, 0, B, 100, 400, 5.0)
    assert alice.handle(Received(BOB, offer), 12.0) == [Send(BOB, Refuse(B, "finished", 0.0))]


def test_a_stop_while_the_run_is_paused_ends_it_with_or_without_an_open_exchange() -> None:
    for is_open in (True, False):
        alice = noloco(*([BOB] if is_open else []))
        alice.handle(PAUSE, 8.0)
        alice.handle(MADE, 9.0)
        if not is_open:
            alice.handle(OuterDone(R1, WEIGHTS), 10.0)
            assert of(DOING, alice.handle(STOP, 11.0)) == [Finished(R1)]
        else:
            assert of(DOING, alice.handle(STOP, 11.0)) == []
            assert of(DOING, alice.handle(GO_ON, 11.0)) == []
            effects = alice.handle(MembersChanged(()), 12.0)
            effects += alice.handle(Received(BOB, Refuse(A, "finished", 0.0)), 12.0)
            assert of(DOING, effects) == [ApplyOuter(R1, 0, A, ())]
            assert Finished(R1) in alice.handle(OuterDone(R1, WEIGHTS), 13.0)


def test_the_h_of_a_round_is_that_of_its_beginning() -> None:
    alice = noloco()
    alice.handle(told(steps(20, 0)), 8.0)
    assert of(RunInner, alice.handle(MADE, 9.0)) == [RunInner(R1, 20)]


@pytest.mark.parametrize(
    ("size", "sizes", "reason"),
    [
        (60, ({100, 60},), ""),
        (60, (), "a payload of 60 bytes, not 100"),
        (61, ({100, 60},), "a payload of 61 bytes, not 100"),
    ],
)
def test_a_payload_of_another_codec_is_fetched_in_its_own_size_if_the_run_may_change_it(
    size: int, sizes: tuple[set[int], ...], reason: str
) -> None:
    alice = noloco(BOB, sizes=sizes)
    alice.handle(MADE, 9.0)
    effects = alice.handle(Received(BOB, Accept(A, R0, B, size, 400)), 10.0)
    assert of(Fetch, effects) == ([] if reason else [Fetch(B, size, BOB)])
    assert of(Blame, effects) == ([Blame(BOB, reason)] if reason else [])


# --- groups ---------------------------------------------------------------------------------

GROUPS = [
    DilocoConfig(inner_steps=8),
    StreamingConfig(inner_steps=24),
    DilocoConfig(inner_steps=8, stale=True),
    SyncConfig(),
]
SMALL_BYTES = 60
SIZES = {group_pump.SIZE, SMALL_BYTES}


class GroupPump(group_pump.Pump):
    """With payloads of another size once the codec of a peer was changed."""

    def tell(self, id: PeerId, event: Event) -> None:
        """The machine of this peer hears the creator's word."""
        self._tell(id, event)

    def of(self, id: PeerId, *kinds: type[Effect]) -> list[Effect]:
        return [effect for effect in self.nodes[id].said if isinstance(effect, kinds)]

    def is_paused(self, id: PeerId) -> bool:
        held = self.of(id, Paused, Unpaused)
        return bool(held) and isinstance(held[-1], Paused)

    def _snapshot(
        self, node: group_pump.Node, round: Round, fragment: int, digest: Digest
    ) -> Event:
        made = super()._snapshot(node, round, fragment, digest)
        assert isinstance(made, SnapshotDone)
        told = [effect for effect in node.said if isinstance(effect, ChangeSettings)]
        changes = told[-1].changes if told else ()
        is_small = any(one.since <= round for one in changes if "codec" in one.change.name)
        return replace(made, size_bytes=SMALL_BYTES if is_small else made.size_bytes)


def group(config: GroupConfig, seed: int, *, rounds: int = 8, loss: float = 0.0) -> GroupPump:
    fragments = 3 if config.KIND == "streaming" else 1
    machines = [
        Streaming(
            peer,
            config,
            run=group_pump.RUN,
            signer=SIGNERS[peer],
            rounds=rounds,
            fragments=fragments,
            max_tokens=800,
            most_claimed=800,
            sizes=[SIZES] * fragments,
        )
        for peer in PEERS[:4]
    ]
    return GroupPump(machines, seed=seed, loss=loss)


def hear(pump: GroupPump, word: ControlChanged, most: int = 40) -> None:
    """All hear it, one after the other, while the others go on."""
    for id in pump.rng.sample(sorted(pump.nodes), len(pump.nodes)):
        pump.tell(id, word)
        for _ in range(pump.rng.randrange(most)):
            pump.step()


def run_until(pump: GroupPump, is_so: Callable[[], bool]) -> None:
    for _ in range(20_000):
        if is_so():
            return
        pump.step()
    raise AssertionError({id[-4:]: node.said[-3:] for id, node in pump.nodes.items()})


def check_equal(pump: GroupPump) -> None:
    assert len({node.weights for node in pump.nodes.values()}) == 1
    assert [blame for id in pump.nodes for blame in pump.of(id, Blame)] == []


@pytest.mark.parametrize("config", GROUPS, ids=lambda config: config.KIND)
@pytest.mark.parametrize("seed", range(4))
def test_a_group_that_is_paused_trains_nothing_and_ends_equal_when_it_goes_on(
    config: GroupConfig, seed: int
) -> None:
    pump = group(config, seed)
    for _ in range(pump.rng.randrange(150)):
        pump.step()
    hear(pump, PAUSE)
    run_until(pump, lambda: all(pump.is_paused(id) for id in pump.nodes))
    trained = {id: pump.of(id, RunInner) for id in pump.nodes}
    for _ in range(500):  # statements are repeated, and whoever is behind is led on
        pump.step()
    assert {id: pump.of(id, RunInner) for id in pump.nodes} == trained
    assert max(node.round for node in pump.nodes.values()) < 8, "the run was over before"
    hear(pump, GO_ON)
    pump.run()
    check_equal(pump)
    assert {node.round for node in pump.nodes.values()} == {8}


@pytest.mark.parametrize("config", GROUPS, ids=lambda config: config.KIND)
@pytest.mark.parametrize("seed", range(4))
def test_a_group_that_is_stopped_ends_equal_soon(config: GroupConfig, seed: int) -> None:
    pump = group(config, seed, rounds=1000)
    for _ in range(pump.rng.randrange(150)):
        pump.step()
    hear(pump, STOP)
    pump.run()
    check_equal(pump)
    assert max(node.round for node in pump.nodes.values()) < 40
    assert all(pump.of(id, Finished) for id in pump.nodes)


@pytest.mark.parametrize("config", GROUPS, ids=lambda config: config.KIND)
@pytest.mark.parametrize("seed", range(4))
def test_a_member_that_starts_again_in_a_paused_group_waits_too(
    config: GroupConfig, seed: int
) -> None:
    pump = group(config, seed)
    hear(pump, PAUSE)
    run_until(pump, lambda: all(pump.is_paused(id) for id in pump.nodes))
    trained = pump.of(ALICE, RunInner)
    pump.crash(ALICE)
    for _ in range(200):
        pump.step()
    assert pump.of(ALICE, RunInner) == trained
    hear(pump, GO_ON)
    pump.run()
    check_equal(pump)


@pytest.mark.parametrize("config", GROUPS[:3], ids=lambda config: config.KIND)
@pytest.mark.parametrize("seed", range(4))
def test_a_group_in_which_h_and_codec_change_stays_equal_whoever_hears_of_it_when(
    config: GroupConfig, seed: int
) -> None:
    pump = group(config, seed, rounds=12)
    for _ in range(pump.rng.randrange(100)):
        pump.step()
    before = max(node.round for node in pump.nodes.values())
    hear(pump, told(codec("int8", 0), steps(48, before + 4)))
    pump.run()
    check_equal(pump)
    for id in pump.nodes:
        [change] = set(pump.of(id, ChangeSettings))
        assert isinstance(change, ChangeSettings)
        since = {one.change.name: one.since for one in change.changes}
        assert since["trainer.inner_steps"] >= before + 4
        whole = 16 if config.KIND == "streaming" else 48
        trained = [run for run in pump.of(id, RunInner) if isinstance(run, RunInner)]
        assert {run.steps for run in trained if run.round > since["trainer.inner_steps"]} >= {whole}


def test_a_member_that_alone_has_heard_of_another_codec_is_averaged_like_the_others() -> None:
    pump = group(DilocoConfig(inner_steps=8), 0)
    pump.tell(ALICE, told(codec("int8", 0)))
    pump.run()
    check_equal(pump)
    for closed in pump.of(ALICE, Closed)[2:]:
        assert isinstance(closed, Closed)
        assert isinstance(closed.receipt, Agreed)
        sizes = {entry.peer: entry.size_bytes for entry in closed.receipt.roster.entries}
        assert sizes == {id: SMALL_BYTES if id == ALICE else group_pump.SIZE for id in sizes}


def test_a_new_worker_of_a_pair_and_of_a_group_is_told_the_changes_before_it_trains() -> None:
    alice = noloco()
    member = group(DilocoConfig(inner_steps=8), 0).nodes[ALICE].machine
    member.handle(Resumed(R0, group_pump.START), 0.0)
    for machine in (alice, member):
        machine.handle(told(codec("int8", 3)), 8.0)
        effects = machine.handle(Resumed(R0, group_pump.START), 9.0)
        assert of((ChangeSettings, RunInner), effects) == [
            ChangeSettings((InForce(codec("int8", 3), R3),)),
            RunInner(R0, 8),
        ]


# --- spsa -----------------------------------------------------------------------------------

SPSA = SpsaConfig(inner_steps=64, base_scalars=100, expected_peers=4)


def scalars(seed: int, *, rounds: int = 3) -> spsa_pump.Pump:
    machines = [spsa_pump.machine(n, SPSA, rounds=rounds) for n in range(4)]
    return spsa_pump.Pump(machines, seed=seed, loss=0.2)


def all_hear(pump: spsa_pump.Pump, word: ControlChanged) -> None:
    for id in pump.rng.sample(sorted(pump.nodes), len(pump.nodes)):
        pump.nodes[id].inbox.append((word, None))
        for _ in range(pump.rng.randrange(60)):
            pump.step()


def spsa_is_paused(node: spsa_pump.Node) -> bool:
    held = [effect for effect in node.said if isinstance(effect, Paused | Unpaused)]
    return bool(held) and isinstance(held[-1], Paused)


@pytest.mark.parametrize("seed", range(3))
def test_spsa_peers_end_their_rounds_pause_and_go_on_to_the_same_sum(seed: int) -> None:
    pump = scalars(seed)
    nodes = list(pump.nodes.values())
    all_hear(pump, PAUSE)
    pump.run(lambda: all(map(spsa_is_paused, nodes)))
    measured = [len(node.of(Sample)) for node in nodes]
    for _ in range(1500):
        pump.step()
    assert [len(node.of(Sample)) for node in nodes] == measured
    assert {node.machine.round for node in nodes} <= {1, 2}
    assert len({node.sum.name(()) for node in nodes}) == 1, "who waits still adds what others sent"
    all_hear(pump, GO_ON)
    pump.settle()
    assert len({node.sum.name(()) for node in nodes}) == 1
    assert {node.machine.round for node in nodes} == {3}


@pytest.mark.parametrize("seed", range(3))
def test_spsa_peers_that_are_stopped_end_their_rounds_with_the_same_sum(seed: int) -> None:
    pump = scalars(seed, rounds=1000)
    nodes = list(pump.nodes.values())
    for _ in range(pump.rng.randrange(300)):
        pump.step()
    all_hear(pump, STOP)
    pump.settle()
    assert len({node.sum.name(()) for node in nodes}) == 1
    assert max(node.machine.round for node in nodes) < 20
    assert [len(node.of(Finished)) for node in nodes] == [1] * 4


def test_an_spsa_peer_that_waits_at_the_start_of_a_round_ends_there_when_it_is_stopped() -> None:
    alice = spsa_pump.machine(0, SpsaConfig(inner_steps=2), rounds=9)
    alice.handle(PAUSE, 0.0)
    assert of(DOING, alice.handle(Resumed(R0, WEIGHTS), 0.0)) == [Paused(R0)]
    assert of(DOING, alice.handle(GO_ON, 0.0)) == [Unpaused(R0)]
    alice.handle(PAUSE, 0.0)
    effects = alice.handle(Sampled(0, bytes(2), 20), 1.0)
    assert [type(effect) for effect in of(DOING, effects)] == [Closed, Paused]
    assert of(DOING, alice.handle(STOP, 2.0)) == [Finished(R1)]
