"""NoLoCo: train H inner steps alone, then average with one other peer.

After `inner_steps` a peer takes a snapshot and looks for a partner *while it goes on
training* (overlap): when the pair closes, what the slow weights moved is added to the fast
ones.  Not closed by the next snapshot: that round was alone, and so is a round in which
nobody answers.  A round is a Lamport clock: an exchange between rounds a and b takes both
to max(a, b) + 1, so fast and slow peers meet.

    round r:   RunInner -> InnerDone -> Snapshot -> SnapshotDone -> (pairing) -> ApplyOuter
    meanwhile:                                      RunInner of round r + 1 ...

Sources: NoLoCo, https://arxiv.org/abs/2506.10911, equations 1 to 3 (with the sign of the
reference code); overlap, pairing and partial failure: docs/decisions.md.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import Enum, auto
from typing import assert_never

from protocol.algorithms import NolocoConfig
from protocol.fragments import round_steps
from protocol.ids import PeerId, Round, RunId
from protocol.messages import Message, Propose, Refuse
from trainers.control import Control
from trainers.effects import (
    Blame,
    CatchUp,
    Closed,
    CloseInner,
    Effect,
    Finished,
    Release,
    RunInner,
    Send,
    Snapshot,
)
from trainers.events import (
    Added,
    CatchUpFailed,
    ControlChanged,
    DecisionsSeen,
    Event,
    Fetched,
    FetchFailed,
    InnerDone,
    InnerFailed,
    LeftBehind,
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
    SumNamed,
    TimerFired,
)
from trainers.pairing import Pairing
from trainers.pairs import Alone, Payload, fragment_in_turn, outer_step
from trainers.reanchor import is_far

LEAST_SHARE = 8
"""A peer asked by one that is ahead closes its inner phase early if it made 1/8 of it."""


class Inner(Enum):
    """What the worker's training thread does."""

    OFF = auto()
    """No worker yet, or the last round's inner steps are made."""
    RUNNING = auto()
    DONE = auto()
    """At the step boundary: the snapshot waits for the round before to close."""
    SNAPSHOT = auto()
    HELD = auto()
    """At the start of a round that does not begin before the creator says so."""


class Noloco:
    """One peer's side of the algorithm; see `trainers.machine.Trainer`.

    Handlers record what they are told; `_advance` alone decides what the worker does next,
    by looking at nothing but what is recorded.

    Args:
        fragments: P; in so many rounds every fragment has its turn.
        max_tokens: most tokens of one round of one peer that weigh in a mean.
        most_claimed: most that it may claim.
        sizes: for each fragment those that its payloads may have; empty: as our own.
    """

    def __init__(
        self,
        me: PeerId,
        config: NolocoConfig,
        *,
        run: RunId,
        rounds: int,
        fragments: int,
        max_tokens: int,
        most_claimed: int,
        sizes: Sequence[Collection[int]] = (),
    ) -> None:
        self.me = me
        self._run = run
        self._fragments = fragments
        self.config = config
        self.rounds = rounds
        self.round = Round(0)
        self.finished = False
        self._max_tokens, self._most_claimed = max_tokens, most_claimed
        self._inner = Inner.OFF
        self._inner_since = 0.0
        self._step_s: float | None = None
        self._tokens = 0
        self._closing = False
        self._applying = False
        self._source: PeerId | None = None
        """Whose weights to take over as soon as nothing is under way with a partner."""
        self._catching_up = False
        self._out: list[Effect] = []
        self._sizes = sizes
        self._pairing = Pairing(
            me, run, config, self._out, rounds=rounds, most_claimed=most_claimed
        )
        self._control = Control(self._out, inner_steps=config.inner_steps, rounds=rounds)

    def handle(self, event: Event, now: float) -> list[Effect]:
        self._record(event, now)
        self._advance(now)
        effects = list(self._out)
        self._out.clear()
        return effects

    def _record(self, event: Event, now: float) -> None:
        pairing = self._pairing
        match event:
            case MembersChanged(members):
                pairing.candidates.members = members
                pairing.advance(now)
            case Received(sender, message):
                self._on_message(sender, message, now)
            case SendFailed(to, message):
                pairing.on_send_failed(to, message, now)
            case DecisionsSeen(proposer, decisions):
                for decision in decisions:
                    pairing.on_decision(proposer, decision.proposed, decision.accepted, now)
            case InnerDone(steps, tokens):
                self._on_inner_done(steps, tokens, now)
            case SnapshotDone():
                self._on_snapshot(self._payload(event), now)
            case Fetched(digest):
                pairing.on_fetched(digest, True, now)
            case FetchFailed(digest):
                pairing.on_fetched(digest, False, now)
            case OuterDone(round=round):
                self._on_outer_done(round)
            case OuterRefused(reason=reason):
                self._applying = False
                pairing.refused(reason)
            case LeftBehind(source):
                if self._inner is not Inner.OFF and not self._catching_up:
                    self._source = source
            case CatchUpFailed():
                self._catching_up = False
            case ControlChanged():
                self._on_control(event, now)
            case Sampled() | Added() | SumNamed():
                pass  # of spsa
            case InnerFailed() | SnapshotFailed() | OuterFailed():
                pairing.drop()
                self._source = None
                self._inner, self._applying = Inner.OFF, False
            case Resumed(round=round):
                self._on_resumed(round, now)
            case TimerFired(timer):
                pairing.on_timer(timer, now)
            case _:
                assert_never(event)

    def _advance(self, now: float) -> None:
        """Close the round if it is decided or must be; take the next snapshot when due."""
        pairing = self._pairing
        if self._source and pairing.mine:
            pairing.shut("left behind by the others")
        if self._inner is Inner.DONE and pairing.mine:
            pairing.shut("not closed by the next snapshot")
        is_idle = self._inner in (Inner.OFF, Inner.HELD)
        if is_idle and pairing.mine and pairing.is_forlorn():
            pairing.shut("nobody else trains")  # no inner steps hide the wait: it is the last round
        if pairing.mine and pairing.result and not self._applying:
            self._applying = True
            self._out.append(outer_step(pairing.mine, pairing.result, self._max_tokens))
        if self._source and not pairing.mine and self._inner is not Inner.SNAPSHOT:
            self._out.append(CatchUp(self._source))
            self._source, self._catching_up = None, True
        if self._inner is Inner.DONE and not pairing.mine and not self._catching_up:
            self._inner = Inner.SNAPSHOT
            self._out.append(Snapshot(self.round, self._turn()))
        if self._inner is Inner.HELD and not pairing.mine:
            self._control.hold(self.round)

    def _turn(self) -> int:
        """The fragment to exchange: that of whoever waits for us, else the next in order."""
        wanted = self._pairing.candidates.wanted(self.round)
        if wanted is not None:
            return wanted
        return fragment_in_turn(self._run, self.round, self._fragments)

    # --- the worker's answers -------------------------------------------------------------

    def _on_resumed(self, round: Round, now: float) -> None:
        self._pairing.drop()  # the worker may have died while it had nothing to fail
        self._applying = self._catching_up = False
        self._source = None
        self.round = round
        self.finished = False  # the snapshot on disk may be of an earlier round
        self._step_s = None
        self._control.tell_again()
        if round >= self._control.ends:
            self._finish()
        else:
            self._begin(round, now)

    def _begin(self, round: Round, now: float) -> None:
        """Train for this round, as soon as the creator lets us."""
        if self._control.is_paused:
            self._inner = Inner.HELD
        else:
            self._control.go_on(round)
            self._inner, self._inner_since, self._closing = Inner.RUNNING, now, False
            self._out.append(RunInner(round, self._steps(round)))

    def _on_control(self, event: ControlChanged, now: float) -> None:
        mine = self._pairing.mine
        at = Round(mine.round + 1) if mine else self.round
        has_begun = self._inner in (Inner.RUNNING, Inner.DONE, Inner.SNAPSHOT)
        self._control.take(event, Round(at + 1) if has_begun else at)
        if self._inner is not Inner.HELD or self._catching_up:
            return
        if at < self._control.ends:
            self._begin(at, now)
        elif mine:
            self._inner = Inner.OFF
        else:
            self._finish()

    def _steps(self, round: Round) -> int:
        return round_steps(self._control.inner_steps(round), self._fragments, round)

    def _on_inner_done(self, steps: int, tokens: int, now: float) -> None:
        if self._inner is not Inner.RUNNING or self.finished:
            return
        self._inner = Inner.DONE
        self._step_s = (now - self._inner_since) / max(steps, 1)
        self._tokens = min(tokens, self._most_claimed)

    def _payload(self, made: SnapshotDone) -> Payload:
        sizes = self._sizes[made.fragment] if self._sizes else ()
        return Payload(made.round, made.fragment, made.digest, made.size_bytes, self._tokens, sizes)

    def _on_snapshot(self, payload: Payload, now: float) -> None:
        if self._inner is not Inner.SNAPSHOT:  # asked for before the worker was lost
            self._out.append(Release(payload.digest))
            return
        if payload.round + 1 < self._control.ends:
            self._begin(Round(payload.round + 1), now)
        else:
            self._inner = Inner.OFF
        self._pairing.open(payload, now)

    def _on_outer_done(self, round: Round) -> None:
        mine, result = self._pairing.mine, self._pairing.result
        if not self._applying or mine is None or result is None:
            return
        self._applying = False
        self._pairing.applied()
        exchange = None if isinstance(result, Alone) else result.exchange
        reason, half = (result.reason, result.half) if isinstance(result, Alone) else ("", False)
        self._out.append(Closed(mine.round, mine.tokens, exchange, half, reason))
        self.round = round
        if round >= self._control.ends:
            self._finish()

    def _finish(self) -> None:
        if self._inner is Inner.RUNNING:
            self._out.append(CloseInner())
        self._inner, self.finished, self._source = Inner.OFF, True, None
        self._pairing.refuse_held("finished", lambda propose: True)
        self._out.append(Finished(self.round))

    # --- the others -----------------------------------------------------------------------

    def _on_message(self, sender: PeerId, message: Message, now: float) -> None:
        if isinstance(message, Propose):
            if self.finished:
                self._out.append(Send(sender, Refuse(message.digest, "finished", 0.0)))
                return
            if fault := self._fault(message):  # before we hurry for one that seems to be ahead
                self._out.append(Blame(sender, fault))
                self._out.append(Send(sender, Refuse(message.digest, "failed", 0.0)))
                return
            if self._catching_up or self._is_far(message.round):
                self._out.append(Send(sender, Refuse(message.digest, "far", 0.0)))
                return
            if self._inner is Inner.HELD and self._pairing.mine is None:
                self._out.append(Send(sender, Refuse(message.digest, "later", 0.0)))
                return
            if self._pairing.mine is None and not self._ready_soon(message, now):
                self._pairing.candidates.remember(sender, message)
                self._out.append(Send(sender, Refuse(message.digest, "later", self._eta_s(now))))
                return
        self._pairing.on_message(sender, message, now)

    def _fault(self, propose: Propose) -> str | None:
        if propose.round >= self.rounds:
            return f"a payload of round {propose.round}, the run has {self.rounds}"
        if propose.fragment >= self._fragments:
            return f"a payload of fragment {propose.fragment}, the run has {self._fragments}"
        return None

    def _is_far(self, round: Round) -> bool:
        return is_far(self.round, round, self.config.reanchor_rounds)

    def _ready_soon(self, propose: Propose, now: float) -> bool:
        """Whether our snapshot is a step away at most; made so if the proposer is ahead.

        A proposer that waits for one that trains is lost to the others that are ready.
        """
        if self._inner is not Inner.RUNNING or self._closing:
            return True
        share = self._steps(self.round) / LEAST_SHARE
        made = (now - self._inner_since) / self._step_s if self._step_s else share
        if propose.round > self.round and made >= share:
            self._closing = True
            self._out.append(CloseInner())
        return self._closing

    def _eta_s(self, now: float) -> float:
        """Seconds until our next snapshot, as far as we know; 0 in the first round."""
        if self._inner is not Inner.RUNNING or self._step_s is None:
            return 0.0
        end = self._inner_since + self._step_s * self._steps(self.round)
        return max(0.0, end - now)
