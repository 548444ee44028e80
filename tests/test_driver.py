"""The real shell, on a network of dictionaries and under virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import numpy as np
from memory_network import (
    LATENCY_S,
    Made,
    MemoryLearner,
    MemoryNetwork,
    Notes,
    Port,
)
from virtual_time import in_virtual_time

from node.driver import MAX_OUTBOXES, OUTBOX_MESSAGES, Driver
from node.sim.toy import ToyLearner
from protocol.algorithms import NolocoConfig
from protocol.changes import InForce
from protocol.errors import PayloadRefused, PeerUnavailable, WorkerLost
from protocol.ids import Digest, PeerId, Round, RunId, digest_of, peer_id
from protocol.messages import Abort, Decision, Message
from protocol.spsa import Frame
from trainers.effects import (
    ApplyOuter,
    Blame,
    CatchUp,
    Closed,
    CloseInner,
    Effect,
    Fetch,
    Finished,
    Publish,
    Release,
    RunInner,
    Send,
    SetTimer,
    Share,
    Snapshot,
    Wait,
)
from trainers.events import (
    CatchUpFailed,
    Event,
    Fetched,
    FetchFailed,
    InnerDone,
    InnerFailed,
    MembersChanged,
    OuterDone,
    OuterFailed,
    OuterRefused,
    Received,
    Resumed,
    Sampled,
    SendFailed,
    SnapshotDone,
    SnapshotFailed,
    TimerFired,
)
from trainers.noloco import Noloco
from trainers.timers import DoubtDeadline, ExchangeDeadline

ME, BOB, *_ = PEERS = sorted(peer_id(bytes([n]) * 32) for n in range(4))
X, Y, WEIGHTS = digest_of(b"x"), digest_of(b"y"), digest_of(b"weights")
RUN = RunId(digest_of(b"run"))
ONCE, NEXT = Resumed(Round(0), WEIGHTS), MembersChanged(())
AGAIN = Resumed(Round(1), WEIGHTS)
CONFIG = NolocoConfig(inner_steps=20, proposal_deadline_s=5.0, exchange_deadline_s=20.0)


class Script:
    """A trainer that answers `ONCE` and `NEXT` with some effects, and notes all else it hears."""

    def __init__(self, *effects: Effect, then: list[Effect] | None = None) -> None:
        self.effects = list(effects)
        self.then = then or []
        self.heard: list[tuple[float, Event]] = []

    def handle(self, event: Event, now: float) -> list[Effect]:
        if event == ONCE:
            return self.effects
        if event == NEXT:
            return self.then
        self.heard.append((round(now, 3), event))
        return []


class Worker:
    """A learner whose every answer is the same."""

    def __init__(self, error: Exception | None = None, *, takes_s: float = 0.0) -> None:
        self.error = error
        self.takes_s = takes_s
        self.asked: list[object] = []

    async def _answer(self, *asked: object) -> None:
        self.asked.append(asked)
        await asyncio.sleep(self.takes_s)
        if self.error:
            raise self.error

    async def inner(self, round: Round, steps: int) -> Made:
        await self._answer("inner", round, steps)
        return Made(steps, 7)

    def close_inner(self) -> None:
        self.asked.append(("close",))

    def change(self, changes: tuple[InForce, ...]) -> None:
        self.asked.append(("change", changes))

    async def snapshot(self, round: Round, fragment: int) -> tuple[Digest, int]:
        await self._answer("snapshot", round, fragment)
        return X, 99

    async def outer(self, effect: ApplyOuter) -> Digest:
        await self._answer("outer", effect)
        return WEIGHTS

    async def sample(self, boot: bytes, step: int, steps: int) -> Sampled:
        await self._answer("sample", boot, step, steps)
        return Sampled(step, bytes(steps), 7)

    async def add_scalars(self, frames: tuple[Frame, ...]) -> None:
        await self._answer("add", frames)

    async def name_sum(self, less: tuple[Frame, ...]) -> Digest:
        await self._answer("name", less)
        return WEIGHTS

    async def catch_up(self, source: PeerId) -> Resumed:
        await self._answer("catch up", source)
        return Resumed(Round(9), WEIGHTS)


class Wire:
    """A network that notes what it is asked for; sending to and fetching from `stuck` hangs."""

    def __init__(self, *, stuck: PeerId | None = None, error: Exception | None = None) -> None:
        self.stuck = stuck
        self.error = error
        self.done: list[object] = []
        self.hung_up_at: list[float] = []

    async def send(self, to: PeerId, message: Message) -> None:
        await self._do(to, ("send", to, message))

    async def fetch(self, digest: Digest, size_bytes: int, source: PeerId) -> None:
        await self._do(source, ("fetch", digest, size_bytes))

    async def _do(self, peer: PeerId, what: object) -> None:
        if peer == self.stuck:
            try:
                await asyncio.Event().wait()
            finally:
                self.hung_up_at.append(asyncio.get_running_loop().time())
        if self.error:
            raise self.error
        await asyncio.sleep(LATENCY_S)
        self.done.append(what)

    def release(self, digest: Digest) -> None:
        self.done.append(("release", digest))

    def blame(self, peer: PeerId, reason: str) -> None:
        self.done.append(("blame", peer, reason))


def quiet(trainer: Script, wire: Wire) -> Driver:
    """A driver whose worker and journal do not matter."""
    return Driver(
        trainer,
        learner=Worker(),
        network=wire,
        journal=Notes(),
        clock=lambda: asyncio.get_running_loop().time(),
    )


def play(
    *effects: Effect,
    worker: Worker | None = None,
    wire: Wire | None = None,
    notes: Notes | None = None,
    resumed_at: float | None = None,
    then: list[Effect] | None = None,
) -> list[tuple[float, Event]]:
    """What the trainer hears within a while after it asked for these effects."""
    script = Script(*effects, then=then)

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        driver = Driver(
            script,
            learner=worker or Worker(),
            network=wire or Wire(),
            journal=notes or Notes(),
            clock=clock,
        )
        await driver.post(ONCE)
        await driver.post(NEXT)
        if resumed_at == 0:
            await driver.post(AGAIN)
        running = asyncio.create_task(driver.run())
        if resumed_at:
            await asyncio.sleep(resumed_at)
            await driver.post(AGAIN)
        await asyncio.sleep(100.0)
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    in_virtual_time(main())
    return script.heard


def events(heard: list[tuple[float, Event]]) -> list[Event]:
    return [event for _, event in heard]


def abort(n: int) -> Abort:
    return Abort(digest_of(bytes([n])))


APPLY = ApplyOuter(Round(3), 2, X, (Share(X, Round(2), 0.25), Share(Y, Round(1), 0.75)))
SNAPSHOT = Snapshot(Round(3), 2)


def test_the_worker_is_asked_in_order_and_its_answers_are_told() -> None:
    worker = Worker()
    heard = play(APPLY, SNAPSHOT, RunInner(Round(4), 8), CloseInner(), worker=worker)
    assert events(heard) == [
        OuterDone(Round(3), WEIGHTS),
        SnapshotDone(Round(3), 2, X, 99),
        InnerDone(8, 7),
    ]
    assert [asked for asked in worker.asked if asked != ("close",)] == [
        ("outer", APPLY),
        ("snapshot", 3, 2),
        ("inner", 4, 8),
    ]


def test_what_is_asked_for_has_begun_before_the_next_event_is_looked_at() -> None:
    worker = Worker()
    play(RunInner(Round(4), 8), worker=worker, then=[CloseInner()])
    assert worker.asked == [("inner", 4, 8), ("close",)]


def test_a_lost_worker_fails_whatever_it_was_asked_for() -> None:
    worker = Worker(WorkerLost("killed"))
    heard = play(APPLY, SNAPSHOT, RunInner(Round(4), 8), worker=worker)
    assert events(heard) == [OuterFailed("killed"), SnapshotFailed("killed"), InnerFailed("killed")]


def test_a_payload_that_the_worker_refuses_is_told_as_refused() -> None:
    heard = play(APPLY, worker=Worker(PayloadRefused(Y, "3 bytes, expected 7")))
    assert events(heard) == [OuterRefused(Y, "3 bytes, expected 7")]


def test_what_a_former_worker_answers_is_not_told() -> None:
    worker, wire = Worker(takes_s=2.0), Wire()
    asked = APPLY, SNAPSHOT, RunInner(Round(4), 8)
    assert play(*asked, worker=worker, wire=wire, resumed_at=1.0) == [(1.0, AGAIN)]
    assert wire.done == [("release", X)]  # the payload that nobody was told of


def test_a_new_worker_is_not_asked_for_what_was_decided_before() -> None:
    worker = Worker()
    assert play(APPLY, RunInner(Round(4), 8), worker=worker, resumed_at=0.0) == [(0.0, AGAIN)]
    assert worker.asked == []


def test_who_catches_up_hears_where_it_stands_and_nothing_of_before() -> None:
    worker = Worker(takes_s=2.0)
    heard = play(RunInner(Round(4), 8), CatchUp(BOB), worker=worker)
    assert heard == [(2.0, InnerDone(8, 7)), (2.0, Resumed(Round(9), WEIGHTS))]
    assert worker.asked == [("inner", 4, 8), ("catch up", BOB)]


def test_a_member_that_gives_no_weights_is_told() -> None:
    gone = Worker(PeerUnavailable(BOB, "gone"))
    expected = [CatchUpFailed(str(PeerUnavailable(BOB, "gone")))]
    assert events(play(CatchUp(BOB), worker=gone)) == expected


def test_a_payload_is_fetched_or_the_failure_is_told() -> None:
    fetch = Fetch(X, 99, BOB)
    assert events(play(fetch)) == [Fetched(X)]
    gone = Wire(error=PeerUnavailable(BOB, "gone"))
    assert events(play(fetch, wire=gone)) == [FetchFailed(X, "gone")]


def test_a_released_payload_is_not_fetched_any_further() -> None:
    wire = Wire(stuck=BOB)
    assert play(Fetch(X, 99, BOB), wire=wire, then=[Release(X), Release(Y)]) == []
    assert (wire.hung_up_at, wire.done) == ([0.0], [])  # what is not held may be another's


def test_its_own_and_fetched_payloads_are_released_once() -> None:
    wire = Wire()
    script = Script(SNAPSHOT, Fetch(Y, 99, BOB), then=[Release(X), Release(Y)] * 2)
    driver = quiet(script, wire)

    async def main() -> None:
        running = asyncio.create_task(driver.run())
        await driver.post(ONCE)
        await asyncio.sleep(1.0)
        await driver.post(NEXT)
        await asyncio.sleep(1.0)
        running.cancel()

    in_virtual_time(main())
    assert wire.done == [("fetch", Y, 99), ("release", X), ("release", Y)]


def test_the_answer_to_a_fetch_that_was_given_up_is_not_told_for_the_next_one() -> None:
    """A payload arrives while its owner's withdrawal and new offer lie in the inbox."""

    class Late(Wire):
        async def fetch(self, digest: Digest, size_bytes: int, source: PeerId) -> None:
            if source == BOB:
                await driver.post(NEXT)
            else:
                await asyncio.sleep(5.0)
            self.done.append(("fetch", source))

    wire = Late()
    script = Script(Fetch(X, 99, BOB), then=[Release(X), Fetch(X, 99, ME)])
    driver = quiet(script, wire)

    async def main() -> None:
        running = asyncio.create_task(driver.run())
        await driver.post(ONCE)
        await asyncio.sleep(10.0)
        running.cancel()

    in_virtual_time(main())
    assert script.heard == [(5.0, Fetched(X))]
    assert wire.done == [("fetch", BOB), ("release", X), ("fetch", ME)]


def test_a_message_that_cannot_be_sent_is_told() -> None:
    wire = Wire(error=PeerUnavailable(BOB, "gone"))
    assert events(play(Send(BOB, abort(1)), wire=wire)) == [SendFailed(BOB, abort(1))]


def test_messages_to_one_peer_stay_in_order_and_do_not_wait_for_another() -> None:
    wire = Wire(stuck=ME)
    play(Send(ME, abort(0)), *(Send(BOB, abort(n)) for n in range(9)), wire=wire)
    assert wire.done == [("send", BOB, abort(n)) for n in range(9)]


def test_a_full_queue_drops_the_oldest_message_and_tells() -> None:
    wire, most = Wire(), OUTBOX_MESSAGES
    heard = play(*(Send(BOB, abort(n)) for n in range(most + 2)), wire=wire)
    assert events(heard) == [SendFailed(BOB, abort(0)), SendFailed(BOB, abort(1))]
    assert wire.done == [("send", BOB, abort(n)) for n in range(2, most + 2)]


def test_messages_to_too_many_peers_at_once_are_refused() -> None:
    peers = [peer_id(n.to_bytes(32, "big")) for n in range(MAX_OUTBOXES + 1)]
    heard = play(*(Send(peer, abort(0)) for peer in peers))
    assert events(heard) == [SendFailed(peers[-1], abort(0))]


def test_timers_fire_at_their_time_and_past_ones_at_once() -> None:
    early, late, past = ExchangeDeadline(X), DoubtDeadline(X), ExchangeDeadline(Y)
    timers = SetTimer(9.0, late), SetTimer(4.0, early), SetTimer(-1.0, past)
    assert play(*timers) == [
        (0.0, TimerFired(past)),
        (4.0, TimerFired(early)),
        (9.0, TimerFired(late)),
    ]


def test_a_process_that_stood_still_reads_its_messages_before_its_timers_fire() -> None:
    script = Script(SetTimer(10.0, DoubtDeadline(X)))
    stopped_s = 0.0

    async def main() -> None:
        loop = asyncio.get_running_loop()
        driver = Driver(
            script,
            learner=Worker(),
            network=Wire(),
            journal=Notes(),
            clock=lambda: loop.time() + stopped_s,
        )
        await driver.post(ONCE)
        running = asyncio.create_task(driver.run())
        await asyncio.sleep(5.0)
        nonlocal stopped_s
        stopped_s = 100.0
        await asyncio.sleep(5.5)  # the loop wakes for the timer, then the sockets are read
        await driver.post(Received(BOB, abort(1)))
        await asyncio.sleep(5.0)
        running.cancel()

    in_virtual_time(main())
    assert script.heard == [
        (110.5, Received(BOB, abort(1))),
        (111.0, TimerFired(DoubtDeadline(X))),
    ]


def test_what_concerns_the_operator_goes_to_the_journal() -> None:
    notes, wire = Notes(), Wire()
    decisions = (Decision(X, Y), Decision(Y, None))
    closed = Closed(Round(3), 40, None, False, "nobody")
    wait = Wait("a partner", None, 30.0)
    play(
        Publish(decisions),
        closed,
        wait,
        Finished(Round(4)),
        Blame(BOB, "lied"),
        notes=notes,
        wire=wire,
    )
    assert (notes.decisions, notes.rounds, notes.waits) == (decisions, [closed], [(wait, 30.0)])
    assert notes.done.is_set()
    assert wire.done == [("blame", BOB, "lied")]


def test_cancelling_leaves_no_task_behind() -> None:
    wire = Wire(stuck=BOB)
    play(Send(BOB, abort(0)), Fetch(X, 99, BOB), SetTimer(1e9, DoubtDeadline(X)), wire=wire)
    assert wire.hung_up_at == [100.0, 100.0]


class Swarm:
    """Four noloco peers behind four drivers."""

    def __init__(self, rounds: int) -> None:
        self.network = MemoryNetwork()
        self.learners: dict[PeerId, MemoryLearner] = {}
        self.notes = {id: Notes() for id in PEERS}
        self.ports = {id: Port(self.network, id) for id in PEERS}
        for n, id in enumerate(PEERS):
            arena = self.network.arenas.setdefault(id, {})
            toy = ToyLearner(id, np.full(3, float(n)), CONFIG)
            self.learners[id] = MemoryLearner(toy, arena)
            self.network.drivers[id] = Driver(
                Noloco(
                    id, CONFIG, run=RUN, rounds=rounds, fragments=1, max_tokens=20, most_claimed=20
                ),
                learner=self.learners[id],
                network=self.ports[id],
                journal=self.notes[id],
                clock=lambda: asyncio.get_running_loop().time(),
            )

    def train(self, *troubles: Coroutine[None, None, None], ends: list[PeerId]) -> None:
        """Run until these have finished."""
        in_virtual_time(self._train(troubles, ends))

    async def _train(
        self, troubles: tuple[Coroutine[None, None, None], ...], ends: list[PeerId]
    ) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(driver.run()) for driver in self.network.drivers.values()]
            tasks += [group.create_task(trouble) for trouble in troubles]
            for id, driver in self.network.drivers.items():
                await driver.post(MembersChanged(tuple(other for other in PEERS if other != id)))
                await driver.post(ONCE)
            async with asyncio.timeout(1000):
                for id in ends:
                    await self.notes[id].done.wait()
            await asyncio.sleep(60)  # virtual: what is under way ends
            for task in tasks:
                task.cancel()

    def made(self, id: PeerId) -> int:
        return sum(closed.receipt is not None for closed in self.notes[id].rounds)


def test_four_peers_train_to_the_last_round_and_agree() -> None:
    swarm = Swarm(rounds=30)
    swarm.train(ends=PEERS)
    phis = np.stack([learner.toy.phi_P for learner in swarm.learners.values()])
    assert np.abs(phis.mean(0) - 1.5).max() < 0.05
    assert phis.std(0).max() < 0.5  # the targets' is 1.12
    assert min(swarm.made(id) for id in PEERS) >= 20
    assert [port.blamed for port in swarm.ports.values()] == [[]] * 4
    assert list(swarm.network.arenas.values()) == [{}] * 4
    assert not any(closed.half for notes in swarm.notes.values() for closed in notes.rounds)


def test_the_others_go_on_without_a_peer_that_is_gone() -> None:
    swarm = Swarm(rounds=20)

    async def trouble() -> None:
        await asyncio.sleep(13.0)
        swarm.network.down.add(BOB)

    rest = [id for id in PEERS if id != BOB]
    swarm.train(trouble(), ends=rest)
    assert min(swarm.made(id) for id in rest) >= 8


def test_a_peer_whose_worker_dies_goes_on_from_its_last_round() -> None:
    swarm = Swarm(rounds=20)

    async def trouble() -> None:
        for _ in range(5):
            await asyncio.sleep(4.3)
            swarm.learners[BOB].kill()
            await asyncio.sleep(1.0)
            await swarm.network.drivers[BOB].post(swarm.learners[BOB].restart())

    swarm.train(trouble(), ends=PEERS)
    assert swarm.notes[BOB].done.is_set()
    assert not any(closed.half for notes in swarm.notes.values() for closed in notes.rounds)
