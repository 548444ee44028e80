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
from node.tally import Due, Tally, counted
from node.telemetry import Rounds, Waits
from node.worker_wire_control import ChangeSettings
from node.worker_wire_save import Saved
from protocol.changes import InForce, spec_in, value_of
from protocol.errors import ConfigError, PayloadRefused
from protocol.ids import Digest, PeerId, Round, short
from protocol.messages import Decision, Exchange
from protocol.spec import RunSpec
from protocol.spsa import Frame
from trainers.effects import (
    Agreed,
    ApplyOuter,
    Closed,
    Finished,
    Gathered,
    Paused,
    Unpaused,
    Wait,
)
from trainers.events import Resumed, Sampled

log = logging.getLogger(__name__)

FIRST_ROUND = Round(0)
PAIR = 2
PAUSE_S = 86400.0
"""A pause ends by itself after a day: the creator may be gone, and nothing waits for ever."""
MAX_PAST = 64
"""Rounds whose weights are known by name: a checkpoint is offered within seconds."""
MAX_PAYLOADS = 4
"""Payloads of ours whose tokens are remembered: one is open, and one ahead."""
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
    tally: Tally
    state: str = "serving"
    round: Round = FIRST_ROUND
    rounds: Rounds = field(default_factory=Rounds)
    decisions: tuple[Decision, ...] = ()
    partner: PeerId | None = None
    weights: Digest | None = None
    past: dict[Round, Digest] = field(default_factory=dict)
    """Our slow weights after the last rounds: a joiner asks whether we had what it was offered."""
    loss: float = 0.0
    """Of the last inner steps; not finite once the training has diverged."""
    trouble: str | None = None
    """What the operator should see to, until it is over."""
    spreads: list[float] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    spec: RunSpec | None = None
    """Of the run, as it was founded; None: not known yet."""
    changes: tuple[InForce, ...] = ()
    """Settings that the creator has changed."""

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
        ends_in = Round((closed.receipt.round if closed.receipt else closed.round) + 1)
        self.tally.add(Due(closed.round, ends_in, closed.tokens, closed.receipt is None))
        self.waits.end("round")
        facts = self._facts(closed)
        self.round = ends_in
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
        their_tokens = 0
        match closed.receipt:
            case Exchange(proposer=proposer) as exchange:
                mine, theirs = exchange.proposer_digest, exchange.partner_digest
                partner, their_tokens = exchange.partner, exchange.partner_tokens
                if exchange.partner == self.me:
                    mine, theirs, partner = theirs, mine, proposer
                    their_tokens = exchange.proposer_tokens
            case Agreed(roster, digest):
                partner, theirs, their_tokens = roster.leader, digest, roster.tokens
                mine = next((e.digest for e in roster.entries if e.peer == self.me), None)
            case Gathered(horizon=horizon):
                theirs = horizon
            case None:
                pass
            case _:
                assert_never(closed.receipt)
        return ClosedRound(
            round=closed.round,
            tokens=closed.tokens,
            partner=partner,
            mine=mine,
            theirs=theirs,
            their_tokens=their_tokens,
        )

    def resumed(self, round: Round) -> None:
        """The worker stands at this round again; what its forerunner waited for is over."""
        self.round = round
        self.waits.end("round")

    def stands_at(self, round: Round, weights: Digest) -> None:
        """These are our slow weights after that round."""
        self.weights = weights
        self.past[round] = weights
        if len(self.past) > MAX_PAST:
            del self.past[next(iter(self.past))]

    def goes_on(self, round: Round) -> None:
        """A worker stands at our own snapshot; what that holds and our record lacks is counted."""
        dues = self.tally.settle(round)
        self.write(lambda content: counted(content, dues))

    def begins(self, round: Round) -> None:
        """A worker stands at weights that are not our own: rounds from there on are new."""
        self.tally.forget()
        self.write(lambda content: content.with_start(round))

    def save_failed(self, reason: str) -> None:
        """The worker could not write a snapshot; the next one may."""
        self.trouble = reason

    def saved(self, _saved: Saved) -> None:
        """A snapshot is on disk: there is room again."""
        self.trouble = None

    def held(self, held: Paused | Unpaused) -> None:
        """The creator has paused the run, or resumed it."""
        if isinstance(held, Paused):
            self.enter("paused")
            self.waits.begin("round", "the creator to resume the run", "the creator", PAUSE_S)
        else:
            self.waits.end("round")
            self.enter("training")
        log.info("%s: round=%d", self.state, held.round)

    def changed(self, changes: tuple[InForce, ...]) -> None:
        """Settings that the creator has changed: one line for each that is news."""
        assert self.spec is not None
        for one in changes:
            if one not in self.changes:
                change = one.change
                before = spec_in(self.spec, self.changes, one.since)
                log.info(
                    "setting %s %s -> %s from round %d, in force since round %d",
                    *(change.name, value_of(before, change.name), change.value),
                    *(change.round, one.since),
                )
        self.changes = changes

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
        self._tokens = 0
        """Of the inner steps since the last snapshot."""
        self._payloads: dict[Digest, tuple[Round, int]] = {}
        """Rounds and tokens of our newest ones."""

    async def inner(self, round: Round, steps: int) -> InnerResult:
        result = await self._learner.inner(round, steps)
        self._tokens = result.tokens
        if self._learner.progress:
            self._journal.loss = self._learner.progress.loss
        return result

    def close_inner(self) -> None:
        self._learner.close_inner()

    def change(self, changes: tuple[InForce, ...]) -> None:
        self._journal.changed(changes)
        self._learner.change(ChangeSettings(changes))

    async def snapshot(self, round: Round, fragment: int) -> tuple[Digest, int]:
        try:
            digest, size_bytes = await self._learner.snapshot(round, fragment)
        except ArenaFull as error:
            raise ConfigError(
                f"{error}; raise memory_mib in node.toml, or what the system grants (ulimit -n)"
            ) from error
        self._payloads[digest] = (round, self._tokens)
        self._payloads = dict(list(self._payloads.items())[-MAX_PAYLOADS:])
        self._tokens = 0
        return digest, size_bytes

    async def outer(self, effect: ApplyOuter) -> Digest:
        due = self._due(effect)
        self._journal.tally.add(due)
        await self._journal.tally.flush()  # before the worker can save what it counts
        try:
            done = await self._learner.outer(effect)
        except PayloadRefused:
            self._journal.tally.drop(due.closes)
            raise
        self._journal.stands_at(effect.round, done.weights)
        if len(effect.shares) == PAIR:
            self._journal.spreads = [*self._journal.spreads, done.spread][-SPREADS:]
        return done.weights

    def _due(self, effect: ApplyOuter) -> Due:
        """What the round will count; a payload that no roster names counts in a later one."""
        round, tokens = Round(effect.round - 1), 0
        if effect.mine is None:
            tokens = 0 if effect.shares else self._tokens  # local makes no payload
        elif effect.mine in self._payloads:
            round, tokens = self._payloads[effect.mine]
            if effect.shares and effect.mine not in {share.digest for share in effect.shares}:
                tokens = 0
        return Due(round, effect.round, tokens, len(effect.shares) < PAIR)

    async def sample(self, boot: bytes, step: int, steps: int) -> Sampled:
        sampled = await self._learner.sample(boot, step, steps)
        if self._journal.weights is None:  # a record names a sum before the first base does
            self._journal.weights = self._learner.began_at
        if self._learner.progress:
            self._journal.loss = self._learner.progress.loss
        return sampled

    async def add_scalars(self, frames: tuple[Frame, ...]) -> None:
        await self._journal.tally.flush()  # before the worker can save scalars of a closed round
        await self._learner.add_scalars(frames)

    async def name_sum(self, less: tuple[Frame, ...]) -> Digest:
        sum = self._journal.weights = await self._learner.name_sum(less)
        return sum

    async def catch_up(self, source: PeerId) -> Resumed:
        ready = await self._go_over_to(source)
        self._journal.resumed(ready.round)
        if not ready.horizon:  # spsa has taken over a sum, and goes on with its own steps
            self._journal.begins(ready.round)
        return resumed(ready)
