"""What training tells the rest of the node: status, presence, records, log."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from crdt.schema import MAX_LOSS, ClosedRound, Content, Progress
from node.records.tally import Due, Tally, counted
from node.telemetry import Rounds, Waits
from node.worker.wire_save import Saved
from protocol.changes import InForce, spec_in, value_of
from protocol.ids import Digest, PeerId, Round, short
from protocol.messages import Decision, Exchange
from protocol.spec import RunSpec
from trainers.effects import (
    Agreed,
    Closed,
    Finished,
    Gathered,
    Paused,
    Unpaused,
    Wait,
)

log = logging.getLogger(__name__)

FIRST_ROUND = Round(0)
PAUSE_S = 86400.0
"""A pause ends by itself after a day: the creator may be gone, and nothing waits for ever."""
MAX_PAST = 64
"""Rounds whose weights are known by name: a checkpoint is offered within seconds."""


@dataclass(slots=True)
class Journal:
    """What training tells presence, records, status and the log; see `node.shell_ports.Journal`."""

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
    saved_to: Round | None = None
    """Of the snapshot that was written last; None: it failed, or none has been."""
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

    def goes_on(self, round: Round, weights: Digest) -> None:
        """A worker stands at a snapshot; what that holds and our record lacks is counted.

        It may hold weights of a member, if we, or the worker before, died as it had taken them.
        """
        if self.tally.has_begun(round, weights):
            self.begins(round, weights)
            return
        dues = self.tally.settle(round)
        self.write(lambda content: counted(self.tally.begun(content), dues))
        self.stands_at(round, weights)

    async def may_begin(self, round: Round, weights: Digest) -> None:
        """A worker is about to get weights that are not our own; on disk before it has them."""
        self.tally.expect(round, weights)
        await self.tally.flush()

    def begins(self, round: Round, weights: Digest) -> None:
        """A worker stands at weights that are not our own: rounds from there on are new.

        What we had before is given up: we vouch for none of it, whatever its round.
        """
        self.tally.begin(round, weights)
        self.write(self.tally.begun)
        self.past.clear()
        self.stands_at(round, weights)

    def save_failed(self, reason: str) -> None:
        """The worker could not write a snapshot; the next one may."""
        self.trouble, self.saved_to = reason, None

    def saved(self, saved: Saved) -> None:
        """A snapshot is on disk: there is room again."""
        self.trouble, self.saved_to = None, saved.round

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
        """The last round is closed; the state follows once that is on disk."""
        self.round = finished.round
        self.waits.end("round")
        self.write(Content.finished)
        self.ended.set()

    def _record(self, closed: Closed, facts: ClosedRound) -> None:
        if self.weights is None:
            return
        loss = self.loss if math.isfinite(self.loss) and 0.0 <= self.loss <= MAX_LOSS else None
        progress = Progress(
            round=closed.round, tokens=closed.tokens, loss=loss, weights=self.weights
        )
        self.write(lambda content: content.with_round(facts, progress, half=closed.half))
