"""Bases of an spsa run: the sum at a horizon, by name, signed by the leader of a term.

After every `base_scalars` scalars a base is due.  Its leader, the first in an order by hash among
those that it sees, has the worker name the sum and signs it with the horizon; nobody having
done so, the next leader tries.  Another peer adopts a base once it has all scalars of it and its
own sum less what is newer has the same name.  One that took over a sum with more than the base
cannot check it, and takes the signer's word: what it learns from it is how many authors share a
step.  Two bases of one index, made in two halves of a swarm, do no harm: a frame says itself how
it is weighed.

A base with another sum than ours is not adopted.  Whose fault that is cannot be seen from here:
the leader may lie, or an author signed two frames of one place and the other half of the swarm
saw the other one first.  So nobody is blamed; but whose sum differs from that of several leaders
in a row takes over theirs.

Kept are the newest two; the frames of the older one are dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from protocol import codec
from protocol.algorithms import SpsaConfig
from protocol.envelope import Domain, Seal
from protocol.errors import Malformed
from protocol.ids import DIGEST_BYTES, Digest, PeerId, RunId
from protocol.spsa import MAX_BASE_BYTES, Base, Horizon, SignedBase, packed, unpacked
from trainers.effects import Blame, Effect, NameSum, SetTimer
from trainers.logs import Logs
from trainers.timers import BaseIsDue

TERM_S = 10.0
"""How long the leader of a term has to make a base that is due."""
NO_BASE = Digest(bytes(DIGEST_BYTES))
"""What frames name before the first."""
MAX_CANDIDATES = 16
"""Bases of others that wait to be checked, one from each peer: as many as push to us at once."""
STRANGE_LEADERS = 3
"""So many leaders in a row, or as many as there are, with other sums than ours: ours is odd."""


@dataclass(frozen=True, slots=True)
class Adopted:
    """A base that was made or checked here."""

    base: Base
    signed: SignedBase
    horizon: Horizon


class Bases:
    """The bases of one peer, and the one that is being made or checked."""

    def __init__(
        self,
        me: PeerId,
        config: SpsaConfig,
        logs: Logs,
        out: list[Effect],
        *,
        run: RunId,
        seal: Seal,
    ) -> None:
        self._me = me
        self._config = config
        self._logs = logs
        self._out = out
        self._run = run
        self._seal = seal
        self._older: Adopted | None = None
        self.newest: Adopted | None = None
        self._since = 0
        """Scalars up to the newest."""
        self._making: Base | None = None
        """A base of ours that waits for the name of its sum."""
        self._checking: Adopted | None = None
        """Somebody's base, whose sum is being named."""
        self._candidates: dict[PeerId, Adopted] = {}
        """Better than the newest and not checked, by who told us; oldest first."""
        self._told = -1
        """Scalars that the worker had been told when no candidate could be checked."""
        self._refused = 0
        """Highest index of a base with another sum than ours."""
        self._strange: dict[PeerId, None] = {}
        """Leaders of bases with another sum than ours, since the last one with ours."""
        self._due = 0
        """Index of the base that is due."""

    @property
    def index(self) -> int:
        """Of the newest; 0 before the first."""
        return self.newest.base.index if self.newest else 0

    @property
    def looked_at(self) -> int:
        """Highest index that need not be sent to us."""
        return max(self.index, self._refused)

    @property
    def name(self) -> Digest:
        """Of the newest."""
        return self.newest.signed.digest if self.newest else NO_BASE

    @property
    def authors(self) -> int:
        """n of frames that build on the newest."""
        return self.newest.base.authors if self.newest else self._config.expected_peers

    @property
    def _is_naming(self) -> bool:
        return self._making is not None or self._checking is not None

    @property
    def _has_enough(self) -> bool:
        return self._logs.scalars_told >= self._since + self._config.base_scalars

    def restart(self) -> None:
        """The worker came up: what it was to name is forgotten."""
        self._making = self._checking = None
        self._told = -1

    # --- ours -------------------------------------------------------------------------------

    def look(self, members: Sequence[PeerId], now: float) -> None:
        """After scalars were added: is a base due?"""
        if self._due <= self.index and self._has_enough:
            self._due = self.index + 1
            self._lead(0, members, now, can_make=True)

    def on_timer(
        self, timer: BaseIsDue, members: Sequence[PeerId], now: float, *, can_make: bool
    ) -> None:
        """The leader of a term has had its time.

        Args:
            can_make: there is a worker.
        """
        if timer.index == self._due > self.index:
            self._lead(timer.term, members, now, can_make=can_make)

    def _lead(self, term: int, members: Sequence[PeerId], now: float, *, can_make: bool) -> None:
        """Make the base if this term is ours, and see to it that somebody does."""
        self._out.append(SetTimer(now + TERM_S, BaseIsDue(self._due, term + 1)))
        leader = min((self._me, *members), key=lambda peer: self._rank(peer, term))
        if leader != self._me or self._is_naming or not can_make or not self._has_enough:
            return  # scalars get fewer when the worker loses some
        horizon = self._logs.told
        self._making = Base(
            index=self._due,
            leader=self._me,
            horizon=packed(horizon),
            authors=self._grown(horizon),
            sum=NO_BASE,
        )
        self._out.append(NameSum(()))

    def _rank(self, peer: PeerId, term: int) -> bytes:
        named = b"base|" + self._run + f"{self._due}|{term}|{peer}".encode()
        return hashlib.blake2b(named).digest()

    def _grown(self, horizon: Horizon) -> int:
        """Authors since the newest base."""
        before: Horizon = self.newest.horizon if self.newest else {}
        return sum(count > before.get(log, 0) for log, count in horizon.items())

    # --- others' ----------------------------------------------------------------------------

    def on_base(self, sender: PeerId, signed: SignedBase) -> None:
        """Somebody's newest."""
        if signed.digest == self.name or any(
            signed.digest == known.signed.digest for known in self._candidates.values()
        ):
            return
        try:
            base = codec.decode(Base, signed.body, max_bytes=MAX_BASE_BYTES)
            heard = Adopted(base, signed, unpacked(base.horizon))
            self._seal.verify(base.leader, Domain.BASE, self._run, signed.body, signed.signature)
            scalars = sum(heard.horizon.values())
            if base.index * self._config.base_scalars > scalars:
                raise Malformed(f"the index is {base.index} after {scalars} scalars")
        except Malformed as error:
            self._out.append(Blame(sender, f"sent a base that is none: {error}"))
            return
        if _is_better(heard, self.newest) and self._is_plausible(heard):
            self._candidates.pop(sender, None)
            self._candidates[sender] = heard
            if len(self._candidates) > MAX_CANDIDATES:
                del self._candidates[next(iter(self._candidates))]
            self._told = -1

    def _is_plausible(self, heard: Adopted) -> bool:
        """Its number of authors is much the same as we count since our newest.

        A leader could else scale the steps of all to nothing, or to too much, until the next base.
        Those of several bases together are no more than the sum of what each counts; who has no
        base yet can only hold that there is a log for each author.
        """
        bases = max(1, heard.base.index - self.index)
        if self.newest is None and bases > 1:
            return True
        counted, authors = self._grown(heard.horizon), heard.base.authors
        return authors <= 2 * counted + 1 and counted <= 2 * bases * authors + 1

    def check(self) -> None:
        """Have the sum of a base named once the worker was told all scalars of it."""
        if not self._candidates or self._is_naming or self._told == self._logs.scalars_told:
            return
        self._told = self._logs.scalars_told
        better = {p: c for p, c in self._candidates.items() if _is_better(c, self.newest)}
        best: Adopted | None = None
        for candidate in better.values():
            if _is_better(candidate, best) and self._logs.has_told(candidate.horizon):
                best = candidate
        self._candidates = {p: c for p, c in better.items() if c is not best}
        if best is None:
            return
        if self._logs.reaches_back_to(best.horizon):
            self._checking = best
            self._out.append(NameSum(self._logs.told_beyond(best.horizon)))
        else:  # our sum has more, and nobody has the frames of that
            self._adopt(best)

    def on_named(self, sum: Digest) -> SignedBase | None:
        """The name of the sum; a base of ours, to be told to others."""
        if made := self._making:
            self._making = None
            base = replace(made, sum=sum)
            body = codec.encode(base)
            signed = SignedBase(body, self._seal.sign(Domain.BASE, self._run, body))
            self._adopt(Adopted(base, signed, unpacked(base.horizon)))
            return signed
        if checked := self._checking:
            self._checking, self._told = None, -1
            if checked.base.sum == sum:
                self._strange.clear()
                self._adopt(checked)
            else:
                self._strange[checked.base.leader] = None
                self._refused = max(self._refused, checked.base.index)
        return None

    def take_odd(self, members: Sequence[PeerId]) -> PeerId | None:
        """Whom to follow, for our sum is another one than that of the others; told once."""
        strange = [leader for leader in self._strange if leader in members]
        if not strange or len(strange) < min(STRANGE_LEADERS, len(members)):
            return None
        self._strange.clear()
        self._refused = 0
        return strange[-1]

    def _adopt(self, adopted: Adopted) -> None:
        """Build on it from now on; forget what both of the newest two have."""
        if self.newest and self.newest.base.index < adopted.base.index:
            self._older = self.newest
        self.newest = adopted
        self._since = sum(adopted.horizon.values())
        if self._older:
            self._logs.cut(self._older.horizon)


def _is_better(one: Adopted, other: Adopted | None) -> bool:
    """Newer; of two with one index the lower name."""
    if other is None or one.base.index != other.base.index:
        return other is None or one.base.index > other.base.index
    return one.signed.digest < other.signed.digest
