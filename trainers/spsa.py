"""spsa: shared-seed SPSA, one byte a sample.

Each peer measures how the loss changes along random perturbations that everybody can make
again from a seed, and sends the slopes, one byte each, in signed frames.  All peers add all
scalars to one integer sum, from which the weights follow, so whoever has the same scalars has
the same bits, in whatever order they came.  Nobody waits for anybody; peers come and go.

    Sample -> Sampled -> a frame: signed, added, pushed to up to 16 members -> Sample ...
    now and then: Want(horizon) to a random member -> the frames that are lacking

After every `base_scalars` scalars the leader by hash signs a base: horizon, name of the sum,
number of authors since the base before.  Frames build on the newest base that their author has
checked, which says how many authors share the step; logs are cut at the base before it.  A
joiner needs a sum with its horizon, and the logs behind it.

Sources: Just One Byte, https://arxiv.org/abs/2306.10015; docs/algorithms.md.
"""

from __future__ import annotations

import hashlib
from random import Random

from protocol import codec
from protocol.algorithms import SpsaConfig
from protocol.envelope import Domain, Seal
from protocol.errors import Malformed
from protocol.ids import PeerId, Round, RunId, digest_of
from protocol.messages import Message
from protocol.scalar import MAX_FRAME_SCALARS
from protocol.spsa import (
    BOOT_BYTES,
    MAX_LOGS,
    Behind,
    Frame,
    Frames,
    Horizon,
    LogId,
    SignedBase,
    SignedFrame,
    Want,
    check_frame,
    frame_in,
    log_id,
    packed,
    unpacked,
)
from trainers.bases import Bases
from trainers.control import Control
from trainers.effects import (
    AddScalars,
    Blame,
    Closed,
    CloseInner,
    Effect,
    Finished,
    Gathered,
    Sample,
    Send,
    SetTimer,
    Wait,
)
from trainers.events import (
    Added,
    CatchUpFailed,
    ControlChanged,
    Event,
    InnerFailed,
    MembersChanged,
    OuterFailed,
    Received,
    Resumed,
    Sampled,
    SumNamed,
    TimerFired,
)
from trainers.logs import Logs
from trainers.pulls import Pulls
from trainers.timers import BaseIsDue, FrameEnds, PullAgain, Timer

PUSH_TO = 16
"""Members that a frame is sent to at once; in a larger swarm the others ask for it."""
BASE_TO = 4
"""Members that a base is sent to by who made it: it may have 24 KiB; the others ask for it."""
FRAME_S = 0.5
"""A frame stays open for this long at most, in a small swarm."""
FRAMES_PER_S = 64
"""Of all authors together: with more than 32 of them frames stay open longer.  250 bytes each are
16 kB/s for everybody, an eighth of a line of 1 Mbit/s; the questions cost as much again."""
MAX_ADDED = 64
"""Frames in one `AddScalars`: 12 KiB for the worker, some milliseconds of its time each."""
MAX_WAITING = 4096
"""Frames that the worker is not told yet; beyond it others' are left out, and asked for later.
Who is slower than the rest for long falls behind and takes over a sum instead."""
FULL = f"a free log: the run has {MAX_LOGS}, the most there can be"
FULL_S = 86400.0
"""For the operator: a log never becomes free."""


class Spsa:
    """One peer's side of the algorithm; see `trainers.machine.Trainer`.

    Args:
        boot: 8 random bytes of this start of the node; its log is named after them.
        rng: whom to push to and to ask.
    """

    def __init__(
        self,
        me: PeerId,
        config: SpsaConfig,
        *,
        run: RunId,
        seal: Seal,
        boot: bytes,
        rng: Random,
        rounds: int,
    ) -> None:
        self.me = me
        self.config = config
        self.logs = Logs(run)
        self.round = Round(0)
        self._run = run
        self._seal = seal
        self._boot = boot
        self._log = log_id(run, me, boot)
        self._steps = rounds * config.inner_steps
        self._step = 0
        self._ready = False
        """There is a worker, and its sum is what `logs` has told it."""
        self._sampling: int | None = None
        self._adding = 0
        """`AddScalars` under way."""
        self._round_tokens = 0
        self._heard: dict[PeerId, int] = {}
        """Scalars of others since our round began."""
        self._convicted: set[PeerId] = set()
        """Authors that signed two frames of one place; no more than there are logs."""
        self._out: list[Effect] = []
        self._control = Control(self._out, inner_steps=config.inner_steps, rounds=rounds)
        self.bases = Bases(me, config, self.logs, self._out, run=run, seal=seal)
        self.pulls = Pulls(self.logs, self.bases, self._out, rng)

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case MembersChanged(members):
                self.pulls.members = members
            case Received(sender, message):
                self._on_message(sender, message, now)
            case Sampled(step, scalars, tokens):
                self._on_sampled(step, scalars, tokens)
            case Added():
                self._adding = max(0, self._adding - 1)
            case SumNamed(sum):
                if made := self.bases.on_named(sum):
                    self._tell(made, BASE_TO)
                if leader := self.bases.take_odd(self.pulls.members):
                    self.pulls.catch_up(leader)
            case ControlChanged():
                self._on_control(event)
            case Resumed(round, _, horizon):
                self._on_resumed(round, unpacked(horizon), now)
            case InnerFailed() | OuterFailed():
                self._ready = False
            case TimerFired(timer):
                self._on_timer(timer, now)
            case CatchUpFailed():
                self.pulls.on_failed()
            case _:
                pass  # of other trainers
        self._advance(now)
        effects = list(self._out)
        self._out.clear()
        return effects

    def _advance(self, now: float) -> None:
        """What the worker does next."""
        if not self._ready:
            return
        if not self._adding:
            self._add()
        self.bases.look(self.pulls.members, now)
        self.bases.check()
        if self._sampling is None and not self._is_over and self._has_log:
            done = self._step % self.config.inner_steps
            if not done and not self._control.may_begin(self.round):
                return
            in_round = self.config.inner_steps - done
            steps = min(in_round, max(1, MAX_FRAME_SCALARS // self.config.samples))
            self._sampling = self._step
            self._out.append(Sample(self._boot, self._step, steps))
            self._out.append(SetTimer(now + self._frame_s(), FrameEnds(self._step)))

    @property
    def _is_over(self) -> bool:
        return self._step >= self._control.ends * self.config.inner_steps

    def _on_control(self, event: ControlChanged) -> None:
        was_over, begun = self._is_over, self._step + (self._sampling is not None)
        self._control.take(event, Round(-(-begun // self.config.inner_steps)))
        if self._ready and self._is_over and not was_over:
            self._out.append(Finished(self.round))

    @property
    def _has_log(self) -> bool:
        return self.logs.has_place(self._log)

    def _frame_s(self) -> float:
        """A peer sees some of a large swarm only; the newest base says how many there are."""
        authors = max(1 + len(self.pulls.members), self.bases.authors)
        return max(FRAME_S, authors / FRAMES_PER_S)

    def _add(self) -> None:
        if frames := self.logs.tell(MAX_ADDED):
            self._adding += 1
            self._out.append(AddScalars(frames))

    def _tell(self, message: Message, most: int) -> None:
        for member in self.pulls.some_members(most):
            self._out.append(Send(member, message))

    # --- the worker's answers -----------------------------------------------------------------

    def _on_resumed(self, round: Round, horizon: Horizon, now: float) -> None:
        self._sampling, self._adding = None, 0
        self._ready = True
        ours = self.logs.count(self._log)
        self.logs.resume(horizon, forget=self.pulls.is_catching_up)
        if self.logs.count(self._log) != ours:
            self._begin_log()
        self.bases.restart()
        self.round = max(self.round, round)
        self._step = max(self._step, self.round * self.config.inner_steps)
        if self._is_over:
            self._out.append(Finished(self.round))
        elif not self._has_log:
            self._out.append(Wait(FULL, None, now + FULL_S))
        self.pulls.restart(now)

    def _begin_log(self) -> None:
        """What we have signed is not here any more: never sign two frames of one place."""
        self._boot = hashlib.blake2b(b"again|" + self._boot, digest_size=BOOT_BYTES).digest()
        self._log = log_id(self._run, self.me, self._boot)

    def _on_sampled(self, step: int, scalars: bytes, tokens: int) -> None:
        if self._sampling != step:
            return
        self._sampling = None
        if not scalars or not self._has_log:  # others filled the last places meanwhile
            return
        frame = self._frame(scalars)
        body = codec.encode(frame)
        signed = SignedFrame(body, self._seal.sign(Domain.FRAME, self._run, body))
        self.logs.add(self._log, frame, signed)
        self._add()  # before the next step is measured
        self._tell(Frames((signed,), False), PUSH_TO)
        self._step += len(scalars) // self.config.samples
        self._round_tokens += tokens
        if self._step % self.config.inner_steps == 0:
            self._close_round()

    def _frame(self, scalars: bytes) -> Frame:
        return Frame(
            author=self.me,
            boot=self._boot,
            first=self.logs.count(self._log),
            step=self._step,
            base=self.bases.name,
            authors=self.bases.authors,
            scalars=scalars,
        )

    def _close_round(self) -> None:
        receipt = None
        if self._heard:
            horizon = digest_of(packed(self.logs.horizon))
            receipt = Gathered(self.round, sum(self._heard.values()), len(self._heard), horizon)
        reason = "" if receipt else "no scalars of others came"
        self._out.append(Closed(self.round, self._round_tokens, receipt, False, reason))
        self.round = Round(self.round + 1)
        self._round_tokens = 0
        self._heard.clear()
        if self._is_over:
            self._out.append(Finished(self.round))

    # --- the others ---------------------------------------------------------------------------

    def _on_message(self, sender: PeerId, message: Message, now: float) -> None:
        match message:
            case Frames(frames, more):
                taken = 0
                try:
                    for signed in frames:
                        taken += self._take(signed)
                except Malformed as error:
                    self._out.append(Blame(sender, f"sent a frame that is none: {error}"))
                    return
                self.pulls.on_frames(sender, now, more=more, taken=taken)
            case Want():
                self.pulls.on_want(sender, message, now)
            case Behind():
                self.pulls.on_behind(sender, now)
            case SignedBase():
                self.bases.on_base(sender, message)
            case _:
                pass  # of other trainers

    def _take(self, signed: SignedFrame) -> bool:
        """Take in a frame, if it is the next one of its log.

        Raises:
            Malformed: whoever passed it on has not looked at it.
        """
        frame = frame_in(signed.body)
        check_frame(frame, steps=self._steps, samples=self.config.samples)
        log = self.logs.name(frame)
        count = self.logs.count(log)
        if frame.first < count:
            self._compare(log, frame, signed)
            return False
        is_wanted = frame.first == count and self.logs.waiting < MAX_WAITING
        if not is_wanted or not self.logs.has_place(log):
            return False  # after a gap it is asked for
        self._verify(frame, signed)
        self.logs.add(log, frame, signed)
        self._heard[frame.author] = self._heard.get(frame.author, 0) + len(frame.scalars)
        return True

    def _verify(self, frame: Frame, signed: SignedFrame) -> None:
        self._seal.verify(frame.author, Domain.FRAME, self._run, signed.body, signed.signature)

    def _compare(self, log: LogId, frame: Frame, signed: SignedFrame) -> None:
        """Two frames of one place: who has seen the other one first adds that."""
        kept = self.logs.kept(log, frame.first)
        if kept and kept.body != signed.body and frame.author not in self._convicted:
            self._verify(frame, signed)
            self._convicted.add(frame.author)
            self._out.append(Blame(frame.author, "signed two frames of one place"))

    def _on_timer(self, timer: Timer, now: float) -> None:
        match timer:
            case FrameEnds(step):
                if self._sampling == step:
                    self._out.append(CloseInner())
            case PullAgain(count):
                self.pulls.pull(now, count, is_ready=self._ready)
            case BaseIsDue():
                self.bases.on_timer(timer, self.pulls.members, now, can_make=self._ready)
            case _:
                pass  # of other trainers
