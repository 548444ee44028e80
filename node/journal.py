"""What training tells the rest of the node: status, presence, records, log.

`Journal` is what the driver writes into; `Worker` is the learner as the driver sees it, with an
eye on what it answers.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import assert_never

from crdt.schema import MAX_LOSS, ClosedRound, Content, Progress
from node import worker_wire as wire
from node.arena import ArenaFull
from node.learner import InnerResult, Learner
from node.telemetry import Rounds, Waits
from protocol.errors import ConfigError
from protocol.ids import Digest, PeerId, Round, short
from protocol.messages import Decision, Exchange
from protocol.spsa import Frame
from trainers.effects import Agreed, ApplyOuter, Closed, Finished, Gathered, Wait
from trainers.events import Resumed, Sampled

log = logging.getLogger(__name__)

FIRST_ROUND = Round(0)
PAIR = 2
SPREADS = 8
"""Exchanges whose spread is averaged for the live consensus figure.  A guess."""


@dataclass(slots=True)
class Journal:
    """What training tells presence, records, status and the log; see `node.driver.Journal`."""

    me: PeerId
    waits: Waits
    write: Callable[[Callable[[Content], Content]], None]
    """Changes our own record."""
    speak: Callable[[], None]
    """Lets the others hear of a new state now, not with the next presence."""
    state: str = "serving"
    round: Round = FIRST_ROUND
    rounds: Rounds = field(default_factory=Rounds)
    decisions: tuple[Decision, ...] = ()
    partner: PeerId | None = None
    weights: Digest | None = None
    loss: float = 0.0
    """Of the last inner steps; not finite once the training has diverged."""
    trouble: str | None = None
    """What the operator should see to, until it is over."""
    saves_failed: int = 0
    spreads: list[float] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def enter(self, state: str) -> None:
        """A new state of the training; see `node.training`."""
        self.state = state
        self.speak()

    def publish(self, decisions: tuple[Decision, ...]) -> None:
        """They go out with the next presence, within a second."""
        self.decisions = decisions

    def waiting(self, wait: Wait, for_s: float) -> None:
        self.waits.begin("round", wait.what, wait.peer or "any member", for_s)
        if wait.peer:
            self.partner = wait.peer

    def closed(self, closed: Closed) -> None:
        self.rounds.count(closed)
        self.waits.end("round")
        facts = self._facts(closed)
        self.round = Round((closed.receipt.round if closed.receipt else closed.round) + 1)
        self.partner = facts.partner
        log.info(
            "round closed: round=%d partner=%s tokens=%d half=%s reason=%s",
            closed.round, short(facts.partner) if facts.partner else "none", closed.tokens,
            closed.half, closed.reason or "exchanged",
        )  # fmt: skip
        self._record(closed, facts)

    def _facts(self, closed: Closed) -> ClosedRound:
        """With whom and with what the round was closed, as our record says it."""
        mine = theirs = partner = None
        match closed.receipt:
            case Exchange(proposer=proposer) as exchange:
                mine, theirs = exchange.proposer_digest, exchange.partner_digest
                partner = exchange.partner
                if exchange.partner == self.me:
                    mine, theirs, partner = theirs, mine, proposer
            case Agreed(roster, digest):
                partner, theirs = roster.leader, digest
                mine = next((e.digest for e in roster.entries if e.peer == self.me), None)
            case Gathered(horizon=horizon):
                theirs = horizon
            case None:
                pass
            case _:
                assert_never(closed.receipt)
        return ClosedRound(
            round=closed.round, tokens=closed.tokens, partner=partner, mine=mine, theirs=theirs
        )

    def resumed(self, round: Round) -> None:
        """The worker stands at this round again; what its forerunner waited for is over."""
        self.round = round
        self.waits.end("round")

    def save_failed(self, reason: str) -> None:
        """Said by the worker before it says that the round is closed."""
        self.saves_failed += 1
        self.trouble = reason

    def finished(self, finished: Finished) -> None:
        self.round = finished.round
        self.enter("finished")
        self.waits.end("round")
        self.ended.set()
        log.info("run finished: round=%d", finished.round)

    def _record(self, closed: Closed, facts: ClosedRound) -> None:
        if self.weights is None:
            return
        loss = self.loss if math.isfinite(self.loss) and 0.0 <= self.loss <= MAX_LOSS else None
        progress = Progress(
            round=closed.round, tokens=closed.tokens, loss=loss, weights=self.weights
        )
        self.write(lambda content: content.with_round(facts, progress, half=closed.half))


def resumed(ready: wire.Ready) -> Resumed:
    """What a worker that stands somewhere means to the trainer."""
    return Resumed(ready.round, ready.weights, ready.horizon)


class Worker:
    """`node.driver.Learner` over the worker process; notes what it says for the journal."""

    def __init__(
        self,
        learner: Learner,
        journal: Journal,
        go_over_to: Callable[[PeerId], Awaitable[wire.Ready]],
    ) -> None:
        """Args: go_over_to: takes a member's weights; raises `PeerError`, `WorkerLost`."""
        self._learner = learner
        self._journal = journal
        self._go_over_to = go_over_to

    async def inner(self, round: Round, steps: int) -> InnerResult:
        result = await self._learner.inner(round, steps)
        if self._learner.progress:
            self._journal.loss = self._learner.progress.loss
        return result

    def close_inner(self) -> None:
        self._learner.close_inner()

    async def snapshot(self, round: Round, fragment: int) -> tuple[Digest, int]:
        try:
            return await self._learner.snapshot(round, fragment)
        except ArenaFull as error:
            raise ConfigError(
                f"{error}; raise memory_mib in node.toml, or what the system grants (ulimit -n)"
            ) from error

    async def outer(self, effect: ApplyOuter) -> Digest:
        failed_before = self._journal.saves_failed
        done = await self._learner.outer(effect)
        if self._journal.saves_failed == failed_before:
            self._journal.trouble = None
        self._journal.weights = done.weights
        if len(effect.shares) == PAIR:
            self._journal.spreads = [*self._journal.spreads, done.spread][-SPREADS:]
        return done.weights

    async def sample(self, boot: bytes, step: int, steps: int) -> Sampled:
        sampled = await self._learner.sample(boot, step, steps)
        if self._journal.weights is None:  # a record names a sum before the first base does
            self._journal.weights = self._learner.began_at
        if self._learner.progress:
            self._journal.loss = self._learner.progress.loss
        return sampled

    async def add_scalars(self, frames: tuple[Frame, ...]) -> None:
        await self._learner.add_scalars(frames)

    async def name_sum(self, less: tuple[Frame, ...]) -> Digest:
        sum = self._journal.weights = await self._learner.name_sum(less)
        return sum

    async def catch_up(self, source: PeerId) -> Resumed:
        ready = await self._go_over_to(source)
        self._journal.resumed(ready.round)
        return resumed(ready)
