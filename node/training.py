"""The training of one run on this node: worker, machine and driver, from start to last round.

    serving     no weights yet: what the run needs is being fetched
    starting    weights are here; waits for the members that the spec wants to begin with, and
                until it is known what our own record says
    training    rounds
    paused      the creator has paused the run; serves others
    finished    the last round is closed and on disk; serves others

Where the first weights come from: `node.beginning`; what others start from: `node.offers`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from node.arena import Arena
from node.beginning import Beginning, Recover
from node.blobs.store import BlobStore
from node.donors import Members
from node.driver import Driver
from node.exchange import Exchange
from node.journal import Journal
from node.learner import Learner
from node.noted_learner import NotedLearner, resumed
from node.offers import Offers
from node.pausing import pause
from node.worker import wire
from node.worker.wire_save import Saved
from protocol.envelope import Signer
from protocol.errors import WorkerLost
from protocol.ids import PeerId, Round, short
from protocol.messages import BEGUN, HAS_WEIGHTS, Decision, Presence
from protocol.spec import RunSpec
from trainers import reanchor
from trainers.events import ControlChanged, DecisionsSeen, LeftBehind, MembersChanged, Received
from trainers.machines import machine_of

log = logging.getLogger(__name__)

AGAIN_S = 1.0
"""The longest time without a look at the members."""
QUIET_S = 12.0
"""Without another snapshot for so long the weights stay as they are, though others' scalars came
after our last round (spsa): twice what a worker waits with the next one, and some."""
RETRY_S = 5.0
"""Until a disk that refused the last round is tried again: somebody may make room.  A guess."""
STOOD_S = 5.0
"""Without a look for so long this process stood still: a closed lid, SIGSTOP."""

UntilKnown = Callable[[], Awaitable[None]]


class Training:
    """One per node and run.  Everything happens in the one event loop."""

    def __init__(
        self,
        *,
        spec: RunSpec,
        signer: Signer,
        boot: bytes,
        setup: wire.Setup,
        socket_path: Path,
        arena: Arena,
        store: BlobStore,
        members: Members,
        exchange: Exchange,
        journal: Journal,
        live: Callable[[], Sequence[Presence]],
        recover: Recover,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        """
        Args:
            live: the members that are alive now.
            recover: see `node.beginning.Beginning`.
        """
        self.spec = journal.spec = spec
        self.journal = journal
        self.exchange = exchange
        self.val_start: float | None = None
        self.val_end: float | None = None
        self._me = signer.peer
        self._live = live
        self._clock = clock
        self._control = ControlChanged()
        self._news = asyncio.Event()
        self._candidates: tuple[PeerId, ...] = ()
        self._decisions: dict[PeerId, tuple[Decision, ...]] = {}
        self._watch = reanchor.Watch(spec.trainer)
        self._snapshot_saved = asyncio.Event()
        self._resumed: asyncio.Queue[wire.Ready] = asyncio.Queue(1)
        """Restarts of the worker; a newer one replaces an older that nobody took yet."""
        self.learner = Learner(
            setup,
            arena,
            store=store,
            socket_path=socket_path,
            on_resumed=self._on_resumed,
            on_save_failed=journal.save_failed,
            on_saved=self._on_saved,
            waits=journal.waits,
        )
        self.offers = Offers(self.learner, store, journal, fragments=spec.num_fragments)
        self._beginning = Beginning(
            spec,
            signer.peer,
            learner=self.learner,
            journal=journal,
            members=members,
            live=live,
            recover=recover,
            clock=clock,
            rng=rng,
        )
        self._driver = Driver(
            machine_of(spec, signer, boot),
            learner=NotedLearner(self.learner, journal, self._beginning.go_over_to),
            network=exchange,
            journal=journal,
            clock=clock,
        )

    async def run(self, *, is_new: bool, until_known: UntilKnown) -> None:
        """Train to the last round, then serve until cancelled.

        Args:
            is_new: this node made the run just now, so nobody else can have weights.
            until_known: waits until we know what our own record says.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.learner.run(), name="learner")
            tasks.create_task(self._driver.run(), name="driver")
            tasks.create_task(self.offers.run(), name="offers")
            await self._train(tasks, await self._beginning.weights(is_new=is_new), until_known)

    async def _train(
        self, tasks: asyncio.TaskGroup, ready: wire.Ready, until_known: UntilKnown
    ) -> None:
        round = self.journal.round = ready.round
        log.info("3 of 4, weights: round=%d weights=%s", round, short(ready.weights))
        if round == 0 and self.spec.creator == self._me:
            self.val_start = await self._evaluate()
        self.journal.enter("starting")
        if round == 0:  # else the run has begun
            await self._members()
        await until_known()  # rounds may be fast, and each of them is a change of it
        log.info("4 of 4, training: round=%d of %d", round, self.spec.rounds)
        self.journal.enter("training")
        tasks.create_task(self._tell_driver(), name="members")
        tasks.create_task(self._tell_resumed(), name="resumed")
        await self._driver.post(self._control)  # before the first round
        await self._driver.post(resumed(ready))
        await self.journal.ended.wait()
        await self._finish()

    async def _finish(self) -> None:
        """Save, tell, and measure; again when the scalars of others have changed the weights.

        A last round that cannot be saved (a full disk, a worker that died; spsa: our last scalars
        are still to be added) is tried again until it is: who is finished may be switched off.
        """
        last = self.journal.round
        while not await self._is_saved(last):
            pause_s = RETRY_S if self.journal.trouble else AGAIN_S
            with self.journal.waits.on("another try to save the last round", "this node", pause_s):
                await asyncio.sleep(pause_s)
        self.journal.enter("finished")
        log.info("run finished: round=%d", self.journal.round)
        while True:
            self._snapshot_saved.clear()
            self.val_end = await self._evaluate()
            await self._snapshot_saved.wait()
            await self._no_more_saved()

    async def _is_saved(self, last: Round) -> bool:
        """Whether what the worker has now is on disk, with this round in it."""
        self.journal.saved_to = None  # what is told from now on counts
        try:
            await self.learner.save()
        except WorkerLost as error:
            log.warning("not saved at the end: %s", error)
        return self.journal.saved_to is not None and self.journal.saved_to >= last

    async def _no_more_saved(self) -> None:
        with contextlib.suppress(TimeoutError):
            while True:
                self._snapshot_saved.clear()
                async with asyncio.timeout(QUIET_S):
                    await self._snapshot_saved.wait()

    async def received(self, event: Received) -> None:
        """A round message; waits while the trainer is behind."""
        await self._driver.post(event)

    def members_changed(self, candidates: tuple[PeerId, ...]) -> None:
        """Other peers can be exchanged with now, or decided something."""
        self._candidates = candidates
        self._news.set()

    def control_changed(self, control: ControlChanged) -> None:
        """The creator wants this of the run."""
        self._control = control
        self._news.set()

    # --- the way to the first round ---------------------------------------------------------

    async def _members(self) -> None:
        """Wait until enough members have weights, the run has begun, or the deadline."""
        missing = self.spec.min_members - 1
        deadline_s = self.spec.start_deadline_s
        if missing < 1 or deadline_s <= 0:
            return
        what = f"{self.spec.min_members} members to begin with"
        try:
            with self.journal.waits.on(what, "any member", deadline_s):
                async with asyncio.timeout(deadline_s):
                    while not self._may_begin(missing):
                        await self._news.wait()
                        self._news.clear()
        except TimeoutError:
            log.warning("begins with fewer members: expected=%d", self.spec.min_members)

    def _may_begin(self, missing: int) -> bool:
        live = self._live()
        ready = sum(presence.state in HAS_WEIGHTS for presence in live)
        has_begun = any(presence.state in BEGUN for presence in live)
        return ready >= missing or has_begun or self._control.is_stopped

    # --- while it trains --------------------------------------------------------------------

    async def _tell_driver(self) -> None:
        """Candidates and decisions of others, whenever they change."""
        told: tuple[PeerId, ...] | None = None
        control = self._control
        while True:
            if self._control != control:
                control = self._control
                await self._driver.post(control)
            if self._candidates != told:
                told = self._candidates
                await self._driver.post(MembersChanged(told))
            decisions = {presence.peer: presence.decisions for presence in self._live()}
            for peer, decided in decisions.items():
                if decided and decided != self._decisions.get(peer):
                    await self._driver.post(DecisionsSeen(peer, decided))
            self._decisions = decisions
            if source := self._left_behind_by():
                await self._driver.post(LeftBehind(source))
            await self._look_again()

    async def _look_again(self) -> None:
        """Wait for news of the members, but not long; notes when nobody or we were not there."""
        before = self._clock()
        await pause(AGAIN_S, self._news)
        self._news.clear()
        now = self._clock()
        if not self._live() or now - before > STOOD_S:
            self._watch.was_away(now)

    def _left_behind_by(self) -> PeerId | None:
        """A member to take weights of, if we were away too long; said again after a while."""
        rounds = {p.peer: p.round for p in self._live() if p.state in BEGUN}
        source = self._watch.source(self.journal.round, rounds, self._clock())
        if source:
            log.info("left behind: round=%d member=%s", self.journal.round, short(source))
        return source

    def _on_saved(self, saved: Saved) -> None:
        self.journal.saved(saved)
        self._snapshot_saved.set()

    def _on_resumed(self, ready: wire.Ready) -> None:
        if self._resumed.full():
            self._resumed.get_nowait()
        self._resumed.put_nowait(ready)

    async def _tell_resumed(self) -> None:
        while True:
            ready = await self._resumed.get()
            self.journal.resumed(ready.round)
            self.journal.goes_on(ready.round, ready.weights)
            await self._driver.post(resumed(ready))

    async def _evaluate(self) -> float | None:
        try:
            loss = await self.learner.evaluate()
        except WorkerLost as error:
            log.warning("not evaluated: %s", error)
            return None
        log.info("validation: round=%d nats_per_byte=%.4f", self.journal.round, loss)
        return loss
