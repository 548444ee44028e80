"""The real shell: carries out one trainer's effects, with asyncio.

One task owns the trainer and takes one event at a time from one bounded inbox.  Carrying out
an effect never waits, so a slow peer, disk or GPU holds up nobody: what takes time becomes a
child task whose answer comes back as an event.  Effects of one list begin in their order, so
the worker gets its requests in that order; messages to one peer stay in order, too.

Whoever built the driver starts the trainer by posting `Resumed`, and posts it again each time
the worker is back.  From then on the trainer hears nothing of what it asked the former worker
for, and the new one is not asked for anything that was decided before.  A fetch that was
given up has no answer either, even if that lies in the inbox by then.

`run` ends only by cancellation or by a bug, and then every child is gone.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import assert_never

from node.shell_ports import Journal, Learner, Network
from protocol.errors import PayloadRefused, PeerError, WorkerLost
from protocol.ids import Digest, PeerId, Round, short
from protocol.messages import Message
from protocol.spsa import Frame
from trainers.effects import (
    AddScalars,
    ApplyOuter,
    Blame,
    CatchUp,
    ChangeSettings,
    Closed,
    CloseInner,
    Effect,
    Fetch,
    Finished,
    NameSum,
    Paused,
    Publish,
    Release,
    RunInner,
    Sample,
    Send,
    SetTimer,
    Snapshot,
    Unpaused,
    Wait,
)
from trainers.events import (
    Added,
    CatchUpFailed,
    Event,
    Fetched,
    FetchFailed,
    InnerDone,
    InnerFailed,
    OuterDone,
    OuterFailed,
    OuterRefused,
    Resumed,
    SendFailed,
    SnapshotDone,
    SnapshotFailed,
    SumNamed,
    TimerFired,
)
from trainers.machine import Trainer
from trainers.timers import Timer

log = logging.getLogger(__name__)

Work = RunInner | Snapshot | ApplyOuter | Sample | AddScalars | NameSum | CatchUp
"""What the worker is asked for."""
Asked = int | asyncio.Task[None] | None
"""What an event answers: the worker of that start, that fetch, or nothing."""

INBOX_EVENTS = 1024
"""Full means that the trainer is behind: whoever posts waits, so the network reads slower."""
OUTBOX_MESSAGES = 32
"""To one peer; when full the oldest is dropped (and told as `SendFailed`), for the newest
says best where an exchange stands.  An exchange has six messages."""
MAX_OUTBOXES = 256
"""Peers with messages on their way; one more is refused as `SendFailed`.  Four times the
presence view."""

STOPPED_S = 1.0
"""A timer that is later than this means that the whole process stood still (SIGSTOP, a closed
lid): what came meanwhile is read first.  Python's loop is late by milliseconds."""
CATCH_UP_S = 1.0
"""How much later the timers then are: enough to read some sockets."""


class Driver:
    """One trainer at work."""

    def __init__(
        self,
        trainer: Trainer,
        *,
        learner: Learner,
        network: Network,
        journal: Journal,
        clock: Callable[[], float],
    ) -> None:
        """Args: clock: seconds, monotonic; the event loop's `time` in a node."""
        self._trainer = trainer
        self._learner = learner
        self._network = network
        self._journal = journal
        self._clock = clock
        self._inbox: asyncio.Queue[tuple[Event, Asked]] = asyncio.Queue(INBOX_EVENTS)
        self._starts = 0
        """`Resumed` that were posted."""
        self._start = 0
        """`Resumed` that the trainer was told."""
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._fetches: dict[Digest, asyncio.Task[None]] = {}
        """Those whose answer the trainer was not told yet."""
        self._held: set[Digest] = set()
        """Payloads that are the trainer's to release: its own and fetched ones."""
        self._outboxes: dict[PeerId, deque[Message]] = {}
        self._children = asyncio.TaskGroup()

    async def post(self, event: Event) -> None:
        """Tell the trainer; waits while the inbox is full."""
        if isinstance(event, Resumed):
            self._starts += 1
        await self._inbox.put((event, None))

    async def run(self) -> None:
        """Take events until cancelled."""
        async with self._children:
            while True:
                event, asked = await self._next()
                if isinstance(event, Resumed):
                    self._start += 1
                if self._is_awaited(event, asked):
                    self._handle(event)
                elif isinstance(event, SnapshotDone):  # of a former worker
                    self._network.release(event.digest)
                await asyncio.sleep(0)  # children begin before the next event is looked at

    def _is_awaited(self, event: Event, asked: Asked) -> bool:
        """Whether the trainer still wants to hear this."""
        match event:
            case Fetched(digest) | FetchFailed(digest):
                if self._fetches.get(digest) is not asked:
                    return False
                del self._fetches[digest]
            case SnapshotDone(digest=digest) if asked == self._start:
                self._held.add(digest)
        return not isinstance(asked, int) or asked == self._start

    async def _next(self) -> tuple[Event, Asked]:
        """The earliest timer that is due, else what was posted first."""
        while True:
            left_s = self._timers[0][0] - self._clock() if self._timers else None
            if left_s is not None and left_s < -STOPPED_S:
                left_s = self._put_off_timers()
            try:
                if left_s is None or left_s > 0:
                    async with asyncio.timeout(left_s):
                        return await self._inbox.get()
            except TimeoutError:
                if self._timers[0][0] - self._clock() < -STOPPED_S:
                    continue
            return TimerFired(heapq.heappop(self._timers)[2]), None

    def _put_off_timers(self) -> float:
        """Put off what fell due while the process stood still; seconds until the next timer."""
        soon = self._clock() + CATCH_UP_S
        self._timers = [(max(at, soon), order, timer) for at, order, timer in self._timers]
        heapq.heapify(self._timers)
        return CATCH_UP_S

    def _handle(self, event: Event) -> None:
        log.debug("event: %r", event)
        for effect in self._trainer.handle(event, self._clock()):
            log.debug("effect: %r", effect)
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Send(to, message):
                self._send(to, message)
            case SetTimer(at, timer):
                heapq.heappush(self._timers, (at, next(self._order), timer))
            case (
                RunInner()
                | Snapshot()
                | ApplyOuter()
                | Sample()
                | AddScalars()
                | NameSum()
                | CatchUp()
            ):
                if self._start == self._starts:  # else `Resumed` is on its way
                    self._begin(self._work(effect, self._start))
            case CloseInner():
                self._learner.close_inner()
            case Fetch():
                self._let_go(effect.digest)
                self._fetches[effect.digest] = self._begin(self._fetch(effect))
            case Release(digest):
                self._let_go(digest)
            case Publish(decisions):
                self._journal.publish(decisions)
            case Wait():
                self._journal.waiting(effect, effect.until - self._clock())
            case Closed():
                self._journal.closed(effect)
            case Paused() | Unpaused():
                self._journal.held(effect)
            case ChangeSettings(changes):
                self._learner.change(changes)
            case Finished():
                self._journal.finished(effect)
            case Blame(peer, reason):
                self._network.blame(peer, reason)
            case _:
                assert_never(effect)

    def _begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        return self._children.create_task(work)

    # --- the worker -------------------------------------------------------------------------

    async def _work(self, effect: Work, start: int) -> None:
        match effect:
            case RunInner(round, steps):
                answer = await self._inner(round, steps)
            case Snapshot(round, fragment):
                answer = await self._snapshot(round, fragment)
            case ApplyOuter():
                answer = await self._outer(effect)
            case Sample(boot, step, steps):
                answer = await self._sample(boot, step, steps)
            case AddScalars(frames):
                answer = await self._add_scalars(frames)
            case NameSum(less):
                answer = await self._name_sum(less)
            case CatchUp(source):
                answer = await self._catch_up(source)
        if isinstance(answer, Resumed):
            await self.post(answer)
        else:
            await self._inbox.put((answer, start))

    async def _inner(self, round: Round, steps: int) -> Event:
        try:
            result = await self._learner.inner(round, steps)
        except WorkerLost as error:
            return InnerFailed(str(error))
        return InnerDone(result.steps, result.tokens)

    async def _snapshot(self, round: Round, fragment: int) -> Event:
        try:
            digest, size_bytes = await self._learner.snapshot(round, fragment)
        except WorkerLost as error:
            return SnapshotFailed(str(error))
        return SnapshotDone(round, fragment, digest, size_bytes)

    async def _outer(self, effect: ApplyOuter) -> Event:
        try:
            weights = await self._learner.outer(effect)
        except WorkerLost as error:
            return OuterFailed(str(error))
        except PayloadRefused as error:
            return OuterRefused(error.culprit, str(error))
        return OuterDone(effect.round, weights)

    async def _sample(self, boot: bytes, step: int, steps: int) -> Event:
        try:
            return await self._learner.sample(boot, step, steps)
        except WorkerLost as error:
            return InnerFailed(str(error))

    async def _add_scalars(self, frames: tuple[Frame, ...]) -> Event:
        try:
            await self._learner.add_scalars(frames)
        except WorkerLost as error:
            return OuterFailed(str(error))
        return Added()

    async def _name_sum(self, less: tuple[Frame, ...]) -> Event:
        try:
            return SumNamed(await self._learner.name_sum(less))
        except WorkerLost as error:
            return OuterFailed(str(error))

    async def _catch_up(self, source: PeerId) -> Event:
        try:
            return await self._learner.catch_up(source)
        except (WorkerLost, PeerError) as error:
            log.info("not caught up: source=%s reason=%s", short(source), error)
            return CatchUpFailed(str(error))

    # --- the network ------------------------------------------------------------------------

    async def _fetch(self, effect: Fetch) -> None:
        event: Event = Fetched(effect.digest)
        try:
            await self._network.fetch(effect.digest, effect.size_bytes, effect.source)
        except PeerError as error:
            log.info("fetch failed: digest=%s %s", short(effect.digest), error)
            event = FetchFailed(effect.digest, error.reason)
        else:
            self._held.add(effect.digest)
        await self._inbox.put((event, asyncio.current_task()))

    def _let_go(self, digest: Digest) -> None:
        """Give up the fetch, if it is one, and drop what is held by it or of our own.

        Nothing else goes: others hold payloads in the same arena, perhaps under this name.
        """
        if fetch := self._fetches.pop(digest, None):
            fetch.cancel()
        if digest in self._held:
            self._held.remove(digest)
            self._network.release(digest)

    def _send(self, to: PeerId, message: Message) -> None:
        outbox = self._outboxes.get(to)
        if outbox is None:
            if len(self._outboxes) >= MAX_OUTBOXES:
                self._begin(self.post(SendFailed(to, message)))
                return
            outbox = self._outboxes[to] = deque()
            self._begin(self._deliver(to, outbox))
        if len(outbox) >= OUTBOX_MESSAGES:
            self._begin(self.post(SendFailed(to, outbox.popleft())))
        outbox.append(message)

    async def _deliver(self, to: PeerId, outbox: deque[Message]) -> None:
        """Send one message after the other until there are none."""
        while outbox:
            message = outbox.popleft()
            try:
                await self._network.send(to, message)
            except PeerError as error:
                log.debug("not sent: to=%s %s", short(to), error)
                await self.post(SendFailed(to, message))
        del self._outboxes[to]
