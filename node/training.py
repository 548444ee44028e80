"""The training of one run on this node: worker, machine and driver, from start to last round.

    serving     no weights yet: what the run needs is being fetched
    starting    weights are here; waits for the members that the spec wants to begin with
    training    rounds
    finished    the last round is closed; serves others

A restarted node goes on from its own snapshot; a new one takes a member's slow weights and
outer momentum; the creator of a new run draws them from the run's seed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from node import worker_wire as wire
from node.arena import Arena, ArenaFull
from node.driver import Driver
from node.exchange import Exchange
from node.journal import Journal, Worker, resumed
from node.learner import Learner, StartRefused
from protocol.envelope import Signer
from protocol.errors import PeerError, PeerUnavailable, WorkerLost
from protocol.ids import PeerId, short
from protocol.messages import Checkpoint, Decision, Presence
from protocol.spec import RunSpec
from trainers.events import DecisionsSeen, MembersChanged, Received
from trainers.machines import machine_of

log = logging.getLogger(__name__)

HAS_WEIGHTS = ("starting", "training", "finished")
"""States of a member that others may start from."""
BEGUN = ("training", "finished")
AGAIN_S = 1.0
"""Until members are looked at again, when nobody had weights.  A presence is as old."""
ALONE_S = 10.0
"""The creator begins afresh if no member beyond round 0 shows up for so long: a presence lives
ten seconds."""
ORPHANED_S = 60.0
"""Everyone else does after this: the creator is gone before it gave its weights to anybody.
The seed gives all the same round 0, so who is too early did no harm.  A guess."""
EXPORTS_KEPT = 2
"""The newest, and the one before it, which slow joiners are still fetching."""
EXPORTS_SHARE = 4
"""The one before goes if both take more than a quarter of the arena, where payloads must fit."""


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
        exchange: Exchange,
        journal: Journal,
        live: Callable[[], Sequence[Presence]],
        fetch_checkpoint: Callable[[PeerId], Awaitable[Checkpoint]],
        clock: Callable[[], float],
    ) -> None:
        """
        Args:
            live: the members that are alive now.
            fetch_checkpoint: a member's checkpoint, held in the arena until it is released;
                raises `PeerError`.
        """
        self.spec = spec
        self.journal = journal
        self.exchange = exchange
        self.val_start: float | None = None
        self.val_end: float | None = None
        self._me = signer.peer
        self._arena = arena
        self._live = live
        self._fetch_checkpoint = fetch_checkpoint
        self._clock = clock
        self._news = asyncio.Event()
        self._candidates: tuple[PeerId, ...] = ()
        self._decisions: dict[PeerId, tuple[Decision, ...]] = {}
        self._exports: deque[Checkpoint] = deque()
        """In the arena, oldest first; at most `EXPORTS_KEPT`."""
        self._asked: asyncio.Future[Checkpoint | None] | None = None
        """The answer to all who ask now for a checkpoint that is still to be made."""
        self._is_asked = asyncio.Event()
        self._resumed: asyncio.Queue[wire.Ready] = asyncio.Queue(1)
        """Restarts of the worker; a newer one replaces an older that nobody took yet."""
        self.learner = Learner(
            setup,
            arena,
            socket_path=socket_path,
            on_resumed=self._on_resumed,
            on_save_failed=journal.save_failed,
            waits=journal.waits,
        )
        self._driver = Driver(
            machine_of(spec, signer, boot),
            learner=Worker(self.learner, journal, self._go_over_to),
            network=exchange,
            journal=journal,
            clock=clock,
        )

    async def run(self, *, is_new: bool) -> None:
        """Train to the last round, then serve until cancelled.

        Args:
            is_new: this node made the run just now, so nobody else can have weights.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.learner.run(), name="learner")
            tasks.create_task(self._driver.run(), name="driver")
            tasks.create_task(self._export_when_asked(), name="exports")
            await self._train(tasks, await self._weights(is_new))

    async def _train(self, tasks: asyncio.TaskGroup, ready: wire.Ready) -> None:
        round = self.journal.round = ready.round
        if round == 0 and self.spec.creator == self._me:
            self.val_start = await self._evaluate()
        self.journal.enter("starting")
        if round == 0:  # else the run has begun
            await self._members()
        self.journal.enter("training")
        tasks.create_task(self._tell_driver(), name="members")
        tasks.create_task(self._tell_resumed(), name="resumed")
        await self._driver.post(resumed(ready))
        await self.journal.ended.wait()
        self.val_end = await self._evaluate()

    async def received(self, event: Received) -> None:
        """A round message; waits while the trainer is behind."""
        await self._driver.post(event)

    def members_changed(self, candidates: tuple[PeerId, ...]) -> None:
        """Other peers can be exchanged with now, or decided something."""
        self._candidates = candidates
        self._news.set()

    async def checkpoint(self) -> Checkpoint | None:
        """What a joiner may start from, its blob in the arena; None: nothing at the moment.

        It is made anew only when a round was closed since, once for all who ask meanwhile, and
        goes on when the one who asked first has given up.
        """
        if self.journal.state not in HAS_WEIGHTS:
            return None
        if self._exports and self._exports[-1].round == self.journal.round:
            return self._exports[-1]
        if self._asked is None:
            self._asked = asyncio.get_running_loop().create_future()
            self._is_asked.set()
        return await asyncio.shield(self._asked)

    async def _export_when_asked(self) -> None:
        while True:
            await self._is_asked.wait()
            self._is_asked.clear()
            newest = await self._export()
            assert self._asked is not None
            self._asked.set_result(newest)
            self._asked = None

    async def _export(self) -> Checkpoint | None:
        """The newest checkpoint there is: a new one, if worker and memory allow."""
        try:
            newest = await self.learner.export()
        except WorkerLost as error:
            log.warning("no new checkpoint: reason=%s", error)
        except ArenaFull as error:
            log.warning("no new checkpoint: reason=%s", error)
            self._forget_export()  # so that there is room when we are asked again
        else:
            self._keep_export(newest)
        return self._exports[-1] if self._exports else None

    def _keep_export(self, newest: Checkpoint) -> None:
        if newest in self._exports:
            self._arena.release(newest.digest)  # held once is enough
            return
        self._exports.append(newest)
        held_bytes = newest.size_bytes * len(self._exports)
        if len(self._exports) > EXPORTS_KEPT or held_bytes > self._arena.max_bytes / EXPORTS_SHARE:
            self._forget_export(but=newest)

    def _forget_export(self, but: Checkpoint | None = None) -> None:
        """Give the oldest back, unless it is this one."""
        if self._exports and self._exports[0] != but:
            self._arena.release(self._exports.popleft().digest)

    # --- the way to the first round ---------------------------------------------------------

    async def _weights(self, is_new: bool) -> wire.Ready:
        """Something to start from: our snapshot, a member's weights, or the run's seed."""
        if is_new:
            return await self.learner.start(wire.StartFresh())
        if self.learner.has_snapshot:
            try:
                return await self.learner.start(wire.StartFromDisk())
            except StartRefused as error:
                log.warning("own snapshot not used: reason=%s", error)
        patience_s = ALONE_S if self.spec.creator == self._me else ORPHANED_S
        alone_since = self._clock()
        while True:
            donors = [p for p in self._live() if p.state in HAS_WEIGHTS]
            for donor in sorted(donors, key=lambda p: p.round, reverse=True):
                try:
                    return await self._weights_of(donor.peer, self.learner.start)
                except PeerError as error:
                    log.info("no weights from there: %s", error)
            if any(presence.round > 0 for presence in self._live()):
                alone_since = self._clock()
            elif self._clock() - alone_since > patience_s:
                log.info("begins afresh: nobody beyond round 0 for_s=%g", patience_s)
                return await self.learner.start(wire.StartFresh())
            with self.journal.waits.on("a member with weights", "any member", AGAIN_S):
                await asyncio.sleep(AGAIN_S)

    async def _weights_of(
        self, donor: PeerId, take: Callable[[wire.StartFromCheckpoint], Awaitable[wire.Ready]]
    ) -> wire.Ready:
        """Start from, or go over to, the donor's slow weights and momentum.

        Raises:
            PeerError: it has none, is gone, or what it gave cannot be used.
        """
        checkpoint = await self._fetch_checkpoint(donor)
        try:
            ready = await take(wire.StartFromCheckpoint(checkpoint))
        except StartRefused as error:
            log.warning("weights refused: donor=%s reason=%s", short(donor), error)
            raise PeerUnavailable(donor, str(error)) from error
        finally:
            self._arena.release(checkpoint.digest)
        log.info("weights taken: donor=%s round=%d", short(donor), ready.round)
        return ready

    async def _go_over_to(self, source: PeerId) -> wire.Ready:
        """For a trainer that has fallen behind."""
        return await self._weights_of(source, self.learner.take_over)

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
        return ready >= missing or any(presence.state in BEGUN for presence in live)

    # --- while it trains --------------------------------------------------------------------

    async def _tell_driver(self) -> None:
        """Candidates and decisions of others, whenever they change."""
        told: tuple[PeerId, ...] | None = None
        while True:
            if self._candidates != told:
                told = self._candidates
                await self._driver.post(MembersChanged(told))
            decisions = {presence.peer: presence.decisions for presence in self._live()}
            for peer, decided in decisions.items():
                if decided and decided != self._decisions.get(peer):
                    await self._driver.post(DecisionsSeen(peer, decided))
            self._decisions = decisions
            await self._news.wait()
            self._news.clear()

    def _on_resumed(self, ready: wire.Ready) -> None:
        if self._resumed.full():
            self._resumed.get_nowait()
        self._resumed.put_nowait(ready)

    async def _tell_resumed(self) -> None:
        while True:
            ready = await self._resumed.get()
            self.journal.resumed(ready.round)
            await self._driver.post(resumed(ready))

    async def _evaluate(self) -> float | None:
        try:
            loss = await self.learner.evaluate()
        except WorkerLost as error:
            log.warning("not evaluated: %s", error)
            return None
        log.info("validation: round=%d nats_per_byte=%.4f", self.journal.round, loss)
        return loss
