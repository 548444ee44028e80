"""The machine of diloco, streaming and sync: train, then average with all members of the group.

    round r:   RunInner -> InnerDone -> Snapshot -> SnapshotDone -> (agreement) -> ApplyOuter
    overlap:                                        RunInner of tau steps of round r + 1 ...
    stale:                                          RunInner and Snapshot of round r + 1, whole

Each round averages one fragment; all that apply it have equal slow weights after it.  Nobody
waits for the slow: who is called by the first contribution closes its inner phase early, or, too
early for that, says `Later`, takes over the average under its inner steps, and contributes to a
later round.  So does who was left out: what it trained stays, and its tokens count next time.

A stale contribution names the slow weights at the start of its round, not the older ones that
its outer gradient was measured from: so a restarted member takes part at once.

Sources: DiLoCo, https://arxiv.org/abs/2311.08105; Streaming DiLoCo,
https://arxiv.org/abs/2501.18512; CO2, https://arxiv.org/abs/2401.16265; docs/algorithms.md.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import assert_never

from protocol.algorithms import DilocoConfig, GroupConfig
from protocol.envelope import Signer
from protocol.ids import Digest, PeerId, Round, RunId
from protocol.messages import Message
from protocol.rosters import Contribution, Later, SignedRoster
from trainers.agreement import REPEATS, Agreement
from trainers.control import Control
from trainers.effects import (
    ApplyOuter,
    Effect,
    Finished,
    Release,
    SetTimer,
    Share,
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
from trainers.group import KEPT_ROSTERS, KEPT_STEPS, Group
from trainers.phase import Inner, Phase
from trainers.roster import Where, shares, where
from trainers.straying import Straying
from trainers.timers import RepeatDue, TermEnds, Timer


class Streaming:
    """One peer's side of the algorithm; see `trainers.machine.Trainer`.

    Handlers record what they are told; `_advance` alone decides what is to be done next.

    Args:
        fragments: P; in so many rounds every fragment has its turn.
        max_tokens, most_claimed: of one contribution, that weigh in a mean, and that it may claim.
        sizes: for each fragment those that its payloads may have; empty: as our own.
    """

    def __init__(
        self,
        me: PeerId,
        config: GroupConfig,
        *,
        run: RunId,
        signer: Signer,
        rounds: int,
        fragments: int,
        max_tokens: int,
        most_claimed: int,
        sizes: Sequence[Collection[int]] = (),
    ) -> None:
        self.me = me
        self.config = config
        self.finished = False
        self._out: list[Effect] = []
        self._group = Group(
            me,
            self._out,
            rounds=rounds,
            fragments=fragments,
            max_tokens=max_tokens,
            most_claimed=most_claimed,
            kept_rosters=KEPT_ROSTERS if config.inner_steps > 1 else KEPT_STEPS,
            sizes=sizes,
        )
        self._agreement = Agreement(
            self._group, run=run, signer=signer, deadline_s=config.round_deadline_s
        )
        self._control = Control(self._out, inner_steps=config.inner_steps, rounds=rounds)
        self._phase = Phase(self._out, self._control, fragments=fragments)
        self._overlap = config.overlap_steps if isinstance(config, DilocoConfig) else 0
        self._is_stale = isinstance(config, DilocoConfig) and config.stale
        self._start = 0
        """Times that the worker came up."""
        self._left_out_tokens = 0
        """Of contributions that no roster named: they are in the next one."""
        self._ahead: tuple[SnapshotDone, int] | None = None
        """Stale: the snapshot of the next round, and its tokens."""
        self._straying = Straying(self._group)

    @property
    def round(self) -> Round:
        return self._group.here.round

    def handle(self, event: Event, now: float) -> list[Effect]:
        self._group.forget_line()
        self._record(event, now)
        self._group.forget_line()
        if self._start:
            self._advance(now)
        effects = list(self._out)
        self._out.clear()
        return effects

    def _record(self, event: Event, now: float) -> None:
        group = self._group
        match event:
            case MembersChanged(members):
                group.peers.members(members)
            case Received(sender, message):
                self._on_message(sender, message, now)
            case SendFailed(to=to):
                group.peers.unreachable(to)
            case DecisionsSeen() | LeftBehind() | Sampled() | Added() | SumNamed():
                pass  # of other trainers
            case InnerDone(steps, tokens):
                self._phase.ended(steps, tokens, now)
            case SnapshotDone():
                self._on_snapshot(event, now)
            case Fetched(digest):
                group.holding.add(digest)
            case FetchFailed(digest):
                group.holding.failed(digest)
            case OuterDone(round, weights):
                self._on_outer_done(round, weights, now)
            case OuterRefused(culprit, reason):
                self._agreement.refuse(culprit, reason, now)
            case CatchUpFailed():
                self._straying.failed()
            case InnerFailed() | SnapshotFailed() | OuterFailed():
                self._lose_worker()
            case Resumed(round, weights):
                self._on_resumed(round, weights, now)
            case ControlChanged():
                self._on_control(event, now)
            case TimerFired(timer):
                self._on_timer(timer, now)
            case _:
                assert_never(event)

    def _advance(self, now: float) -> None:
        """Agree, answer, fetch; then let the worker do what is due."""
        group = self._group
        self._agreement.lead(now)
        has_rest = self._left_out_tokens > 0
        if group.is_called:
            self._phase.hurry(now, has_rest=has_rest)
        has_enough = self._phase.has_enough(now, has_rest=has_rest)
        is_held_up = self._straying.source or self.finished or self._control.is_paused
        is_coming = has_enough and not is_held_up
        group.answer(will_contribute=self._will_contribute, is_coming=is_coming)
        group.fetch()
        self._use_worker()
        group.release(self._ahead[0].digest if self._ahead else None)

    def _use_worker(self) -> None:
        """The outer step if it is decided and due (when all is over, too: others may have been
        stopped later, and all shall end equal), else the snapshot."""
        group, o, inner = self._group, self._group.open, self._phase.inner
        if not self._is_free or self._straying.source:
            return
        if group.is_ready and o.chosen and self._may_apply:
            self._apply(shares(o.chosen.roster, o.refused, group.max_tokens))
        elif o.mine and inner is Inner.IDLE and not o.chosen and not group.peers.there:
            self._apply(())
        elif inner is Inner.DONE and (round := self._snapshot_due()) is not None:
            self._phase.inner = Inner.SNAPSHOT
            self._out.append(Snapshot(round, round % group.fragments))

    @property
    def _may_apply(self) -> bool:
        """The inner steps need not, or must not, go first: others have gone on without us."""
        group, phase = self._group, self._phase
        is_slow = phase.inner is Inner.RUNNING and not phase.is_near
        is_overtaken = is_slow and bool(group.peers.after(self.round))
        return group.open.mine is None or phase.inner is Inner.IDLE or is_overtaken

    @property
    def _is_free(self) -> bool:
        """The worker's outer side has nothing to do."""
        is_busy = self._phase.inner in (Inner.OFF, Inner.SNAPSHOT)
        return not is_busy and not self._group.open.is_applying

    def _apply(self, averaged: tuple[Share, ...]) -> None:
        o = self._group.open
        o.is_applying = True
        ends_in = Round(self.round + 1)
        self._out.append(ApplyOuter(ends_in, self._group.fragment, o.mine, averaged))

    def _snapshot_due(self) -> Round | None:
        """The round that a snapshot of now is for; None: the open one must be over first."""
        group, o = self._group, self._group.open
        if o.own is None:
            return None if o.chosen or group.is_outside else self.round
        return Round(self.round + 1) if self._is_stale and not self._ahead else None

    @property
    def _will_contribute(self) -> bool:
        """Our contribution to the open round is a step away at most."""
        is_held_up = self._group.is_outside or self._straying.source or self.finished
        return self._phase.is_near and not is_held_up

    # --- the worker's answers ---------------------------------------------------------------

    def _on_snapshot(self, done: SnapshotDone, now: float) -> None:
        if self._phase.inner is not Inner.SNAPSHOT:  # asked for before the worker was lost
            if not self._group.holding.has(done.digest):
                self._out.append(Release(done.digest))
            return
        self._group.holding.add(done.digest)
        self._phase.snapshot_made()
        tokens, self._left_out_tokens = self._phase.tokens + self._left_out_tokens, 0
        if done.round == self.round:
            self._contribute(done, tokens, now)
        else:
            self._ahead = (done, tokens)

    def _contribute(self, made: SnapshotDone, tokens: int, now: float) -> None:
        """Tell all; meanwhile the inner steps go on as far as they may."""
        self._agreement.contribute(self._group.offer(made, tokens), now)
        following = Round(self.round + 1)
        if following >= self._control.ends or self._control.is_paused:
            return
        if self._is_stale:
            self._phase.run(following, now)
        elif self._overlap:
            self._phase.overlap(following, self._overlap, now)

    def _on_outer_done(self, round: Round, weights: Digest, now: float) -> None:
        group, o = self._group, self._group.open
        if not o.is_applying or round != self.round + 1:
            return
        known = group.end()
        tokens = o.own.tokens if o.own else 0
        if known and o.own and o.own.digest not in known.payloads:
            self._left_out_tokens += tokens if o.mine else 0
            tokens = 0
        self._out.append(group.closed(known, tokens))
        led_here = known.roster.tokens if known else tokens
        self._agreement.begin(Where(round, led_here, weights), now)
        self._go_on(now)

    def _go_on(self, now: float) -> None:
        """The next round of this worker begins."""
        if self.round >= self._control.ends:
            self._finish()
        elif self._ahead:
            (made, tokens), self._ahead = self._ahead, None
            self._contribute(made, tokens, now)
        elif self._phase.inner is Inner.IDLE:
            self._phase.run(self.round, now)

    def _take_up(self, now: float) -> None:
        """Nothing is trained for: is there something?"""
        if self._group.open.own is None:
            self._go_on(now)
        elif self._is_stale and not self._ahead and self.round + 1 < self._control.ends:
            self._phase.run(Round(self.round + 1), now)

    def _on_control(self, event: ControlChanged, now: float) -> None:
        at = Round(self.round + 1) if self._group.open.own else self.round
        self._control.take(event, max(at, self._phase.following))
        if self._phase.inner is Inner.IDLE and not (self._straying.source or self.finished):
            self._take_up(now)

    def _lose_worker(self) -> None:
        """What it had made is held, but it cannot go on from there."""
        self._phase.lost()
        self._ahead, self._left_out_tokens = None, 0
        self._group.open.mine, self._group.open.is_applying = None, False

    def _on_resumed(self, round: Round, weights: Digest, now: float) -> None:
        group = self._group
        self._lose_worker()  # it may have died while it had nothing to fail
        self._straying.arrived()
        self.finished = False
        self._phase.came_up()
        self._start += 1
        self._control.tell_again()
        self._set_repeat(now)
        is_here = group.here.place == (round, weights)
        tokens = group.here.tokens if is_here else group.peers.tokens_to((round, weights))
        self._agreement.restart(Where(round, tokens, weights), now)
        self._take_up(now)

    def _finish(self) -> None:
        self._phase.stop()
        self.finished = True
        self._out.append(Finished(self.round))
        self._straying.say_farewell(0)

    # --- the others -------------------------------------------------------------------------

    def _on_message(self, sender: PeerId, message: Message, now: float) -> None:
        group = self._group
        if isinstance(message, SignedRoster):
            self._agreement.on_roster(sender, message, now)
        elif isinstance(message, Contribution | Later):
            group.on_said(sender, message)
            self._straying.heard(where(message).place)

    def _set_repeat(self, now: float) -> None:
        at = now + self.config.round_deadline_s / REPEATS
        self._out.append(SetTimer(at, RepeatDue(self._start)))

    def _on_timer(self, timer: Timer, now: float) -> None:
        if isinstance(timer, TermEnds):
            self._agreement.on_timer(timer, now)
        elif isinstance(timer, RepeatDue) and timer.start == self._start:
            self._set_repeat(now)
            self._group.peers.repeat()
            self._group.holding.retry()
            if not self.finished:
                self._agreement.repeat()
            else:
                self._straying.say_farewell()
            self._straying.look(now + self.config.round_deadline_s, may_move=self._is_free)
