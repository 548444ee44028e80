"""How peers of an spsa run get what they lack: one asks, another gives.

    Want(horizon, base) ->  <- SignedBase, if it is newer; Frames, or Behind

Pushes are lost, and reach few members of a large swarm, so every two seconds a peer asks a
member at random, and sooner while there is more to come.  What is given has a limit, so that
thin lines and hostile askers leave room for the rest: who gets no answer asks somebody else.  Who
hears from several members that it is behind takes over a sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from protocol.ids import PeerId
from protocol.spsa import MAX_FRAMES, Behind, Horizon, Want, packed, unpacked
from trainers.bases import Bases
from trainers.effects import CatchUp, Effect, Send, SetTimer
from trainers.logs import Logs
from trainers.timers import PullAgain

PULL_S = 2.0
"""Between two questions for what is lacking."""
AGAIN_S = 1.0
"""To the next question after an answer with more to come: at once would fill a thin line."""
BEHIND_OF = 3
"""Who hears from so many members, or from all, that it is behind, takes over a sum."""
BEHIND_ASKS = 6
"""What a member said of that counts while all members are asked so often: somebody else may have
helped meanwhile.  Who says it for longer is believed alone: after a partition one peer may have
the longer history."""
GIVEN_PER_S = 192
"""Frames that a peer gives at most in the long run: three times what all authors together make, so
that few askers go away empty, and 48 kB/s of the 125 of a line of 1 Mbit/s."""
GIVEN_S = 0.5
"""Who has given more than this of it ahead gives nothing to whoever asks next.  Simulated, 1,000
peers on 1 Mbit/s peak at 0.9; with 1 s, and asking for more at once, they did at 1.3."""
ANSWERS = 2
"""Messages with frames for one question: in a large swarm the question is half as long as one."""
BASE_FRAMES = 64
"""A base counts as so many frames: its horizon may have 24 KiB."""


class Pulls:
    """One peer's questions and answers."""

    def __init__(self, logs: Logs, bases: Bases, out: list[Effect], rng: Random) -> None:
        self.members: tuple[PeerId, ...] = ()
        self.is_catching_up = False
        """A sum has been asked for."""
        self._logs = logs
        self._bases = bases
        self._out = out
        self._rng = rng
        self._count = 0
        self._asked: PeerId | None = None
        self._behind: dict[PeerId, tuple[float, float]] = {}
        """Members that said so, since when, and when last."""
        self._given_until = 0.0
        """When what was given would have been given at the slowest."""

    # --- asking -----------------------------------------------------------------------------

    def restart(self, now: float) -> None:
        """The worker came up."""
        self.is_catching_up = False
        self._behind.clear()
        self._count += 1
        self.pull(now, self._count, is_ready=True)

    def pull(self, now: float, count: int, *, is_ready: bool) -> None:
        """Ask somebody, and again after a while."""
        if count != self._count:
            return
        self._out.append(SetTimer(now + PULL_S, PullAgain(count)))
        if is_ready and self.members:
            self._ask(self._rng.choice(self.members))

    def _ask(self, member: PeerId) -> None:
        self._asked = member
        self._out.append(Send(member, Want(packed(self._logs.horizon), self._bases.looked_at)))

    def on_frames(self, sender: PeerId, now: float, *, more: bool, taken: int) -> None:
        """Frames came, and some of them were new."""
        if sender == self._asked and more and taken:
            self._asked = None
            self._count += 1  # the timer that is set is for nothing then
            self._out.append(SetTimer(now + AGAIN_S, PullAgain(self._count)))

    def on_behind(self, sender: PeerId, now: float) -> None:
        """An answer of who was asked."""
        if sender != self._asked:
            return
        self._asked = None
        counts_s = BEHIND_ASKS * PULL_S * max(1, len(self.members))
        since, _ = self._behind.get(sender, (now, now))
        self._behind[sender] = (since, now)
        self._behind = {
            peer: (since, last)
            for peer, (since, last) in self._behind.items()
            if now - last <= counts_s and (peer in self.members or peer == sender)
        }
        is_agreed = len(self._behind) >= min(BEHIND_OF, len(self.members))
        if is_agreed or now - since > counts_s:
            self.catch_up(sender)

    def catch_up(self, source: PeerId) -> None:
        """Take over a sum, once at a time."""
        self._behind.clear()
        if not self.is_catching_up:
            self.is_catching_up = True
            self._out.append(CatchUp(source))

    def on_failed(self) -> None:
        """No sum came."""
        self.is_catching_up = False

    # --- giving -----------------------------------------------------------------------------

    def on_want(self, sender: PeerId, want: Want, now: float) -> None:
        """Give what somebody lacks."""
        if self._given_until > now + GIVEN_S:
            return
        cost, newest = 0, self._bases.newest
        horizon = unpacked(want.horizon)
        if newest and want.base < newest.base.index:
            self._out.append(Send(sender, newest.signed))
            cost += BASE_FRAMES
        if self._logs.leaves_behind(horizon):
            self._out.append(Send(sender, Behind()))
        else:
            cost += self._give(sender, horizon)
        self._given_until = max(now, self._given_until) + cost / GIVEN_PER_S

    def _give(self, asker: PeerId, horizon: Horizon) -> int:
        """Send what the asker lacks; how many frames."""
        given = 0
        while given < ANSWERS * MAX_FRAMES:
            answer = self._logs.answer(horizon, given)
            if answer.frames:
                self._out.append(Send(asker, answer))
            given += len(answer.frames)
            if not answer.more:
                break
        return given

    def some_members(self, most: int) -> Sequence[PeerId]:
        """Whom to tell something."""
        if len(self.members) <= most:
            return self.members
        return sorted(self._rng.sample(self.members, most))
