"""What a record says: typed, bounded, and small whatever the number of rounds.

    Member        who the author is and whether it takes part
    Progress      its last closed round
    Totals        its contribution so far, instead of a history
    ClosedRound   of the last 4 rounds
    Checkpoint    of the newest 3 that it serves
    BlamedPeer    of at most 16 peers that broke the protocol towards it
    Control       what the creator wants

How they lie in the author's document is in `crdt.values`.  Everything is a claim of the author
about itself; what its partners' records say of it is in `node.records.contributions`.  It is
written at most once a round; live telemetry is presence, not record.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from protocol import check
from protocol.changes import MAX_CHANGES, Change
from protocol.ids import Digest, PeerId, Round
from protocol.limits import MAX_ROUND, MAX_TOKENS
from protocol.messages import Checkpoint

MAX_NAME_BYTES = 64
MAX_CLOSED = 4
"""Enough for two partners' records to speak of the same round although one of them is a round or
two behind in being passed on; what was decided about an exchange is in presence, of 4 as well."""
MAX_CHECKPOINTS = 3
MAX_BLAMED = 16
MAX_REASON_BYTES = 128
MAX_LOSS = 1e6
NOTHING_COUNTED = Round(0)
STATUSES = ("joined", "finished", "left")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """Who the author is."""

    name: str | None = None
    """As its operator wants to be called."""
    since: Round
    """The round in which it first began to train."""
    status: str = "joined"

    def __post_init__(self) -> None:
        if self.name is not None:
            check.line("member.name", self.name, MAX_NAME_BYTES, least=1)
        check.integer("member.since", self.since, 0, MAX_ROUND)
        check.one_of("member.status", self.status, STATUSES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The author's last closed round."""

    round: Round
    tokens: int
    """Trained on in this round."""
    loss: float | None
    """Mean training loss of the round, nats per token; None if it was not finite."""
    weights: Digest
    """blake2b-256 of its slow weights after the round, float32 little endian."""

    def __post_init__(self) -> None:
        check.integer("progress.round", self.round, 0, MAX_ROUND)
        check.integer("progress.tokens", self.tokens, 0, MAX_TOKENS)
        if self.loss is not None:
            check.number("progress.loss", self.loss, 0.0, MAX_LOSS)
        check.digest("progress.weights", self.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What the author did for the run since it joined."""

    tokens: int = 0
    rounds: int = 0
    """Closed; `exchanges` of them with a partner, `alone` without."""
    exchanges: int = 0
    alone: int = 0
    half: int = 0
    """Of those alone: the partner may have applied the exchange."""
    counted_to: Round = NOTHING_COUNTED
    """Rounds below this one are in these sums.  One that is trained again, for a crash lost what
    it had brought, is not counted again."""

    def __post_init__(self) -> None:
        check.integer("totals.tokens", self.tokens, 0, MAX_TOKENS)
        for name in ("rounds", "exchanges", "alone", "half"):
            check.integer(f"totals.{name}", getattr(self, name), 0, MAX_ROUND)
        check.integer("totals.counted_to", self.counted_to, 0, MAX_ROUND + 1)

    def after(self, round: Round, tokens: int, *, alone: bool, half: bool) -> Totals:
        """With one more round; the same if it is in them already."""
        if round < self.counted_to:
            return self
        return Totals(
            tokens=self.tokens + tokens,
            rounds=self.rounds + 1,
            exchanges=self.exchanges + (not alone),
            alone=self.alone + alone,
            half=self.half + half,
            counted_to=Round(round + 1),
        )

    def moved(self, base: Totals, found: Totals) -> Totals:
        """What was added to `base`, added to `found` instead."""
        return Totals(
            counted_to=max(self.counted_to, found.counted_to),
            **{name: getattr(found, name) + getattr(self, name) - getattr(base, name)
               for name in ("tokens", "rounds", "exchanges", "alone", "half")},
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedRound:
    """One closed round, as the author saw it."""

    round: Round
    tokens: int
    partner: PeerId | None
    """The other peer of the pair, or the leader whose roster closed it; None alone, and in spsa."""
    mine: Digest | None
    """The author's payload; None if the round closed without one."""
    theirs: Digest | None
    """The partner's payload, the roster, or (spsa) the horizon; None: alone."""
    their_tokens: int = 0
    """In the partner's payload, or in the whole roster, as the receipt says; else 0."""

    def __post_init__(self) -> None:
        check.integer("closed.round", self.round, 0, MAX_ROUND)
        check.integer("closed.tokens", self.tokens, 0, MAX_TOKENS)
        check.integer("closed.their_tokens", self.their_tokens, 0, MAX_TOKENS)
        if self.mine is not None:
            check.digest("closed.mine", self.mine)
        if self.theirs is not None:
            check.digest("closed.theirs", self.theirs)
        if self.partner is not None:
            check.peer("closed.partner", self.partner)
            check.digest("closed.theirs", self.theirs)
        elif self.their_tokens:
            raise ValueError("closed.their_tokens without a partner")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlamedPeer:
    """How often a peer broke the protocol towards the author, and how the last time."""

    peer: PeerId
    count: int
    reason: str

    def __post_init__(self) -> None:
        check.peer("blame.peer", self.peer)
        check.integer("blame.count", self.count, 1, MAX_ROUND)
        check.text("blame.reason", self.reason, MAX_REASON_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What the creator wants of the run.  In any other record it says nothing to anybody."""

    paused: bool = False
    stopped: bool = False
    """For good: members finish, nobody joins."""
    changes: tuple[Change, ...] = ()
    """The newest change of each setting, sorted by its name; what it says may be nonsense."""

    def __post_init__(self) -> None:
        check.items("control.changes", self.changes, MAX_CHANGES)
        _check_sorted("control.changes", [change.name for change in self.changes])

    def with_change(self, change: Change) -> Control:
        """With one more; what was said of this setting before is forgotten."""
        others = [old for old in self.changes if old.name != change.name]
        changes = sorted([*others, change], key=lambda one: one.name)
        return replace(self, changes=tuple(changes))

    def moved(self, base: Control, found: Control) -> Control:
        """What was changed since `base`, on top of `found`; a stop of either is for good."""
        new = {change.name: change for change in self.changes if change not in base.changes}
        old = [change for change in found.changes if change.name not in new]
        changes = [*new.values(), *old[: MAX_CHANGES - len(new)]]
        return Control(
            paused=found.paused if self.paused == base.paused else self.paused,
            stopped=self.stopped or found.stopped,
            changes=tuple(sorted(changes, key=lambda one: one.name)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """All that a record says.  The empty one is what nobody has written yet."""

    member: Member | None = None
    progress: Progress | None = None
    totals: Totals = field(default_factory=Totals)
    closed: tuple[ClosedRound, ...] = ()
    """Sorted by round, each round once."""
    checkpoints: tuple[Checkpoint, ...] = ()
    """Sorted by round, each round once."""
    blamed: tuple[BlamedPeer, ...] = ()
    """Sorted by peer, each peer once."""
    control: Control | None = None

    def __post_init__(self) -> None:
        check.items("closed", self.closed, MAX_CLOSED)
        check.items("checkpoints", self.checkpoints, MAX_CHECKPOINTS)
        check.items("blamed", self.blamed, MAX_BLAMED)
        _check_sorted("closed", [closed.round for closed in self.closed])
        _check_sorted("checkpoints", [checkpoint.round for checkpoint in self.checkpoints])
        _check_sorted("blamed", [blamed.peer for blamed in self.blamed])

    def joined(self, name: str | None, round: Round) -> Content:
        """Taking part from `round` on, or again."""
        since = self.member.since if self.member else round
        return replace(self, member=Member(name=name, since=since, status="joined"))

    def finished(self) -> Content:
        """Its last round is closed; it still answers."""
        return replace(self, member=self.member and replace(self.member, status="finished"))

    def left(self) -> Content:
        """Not taking part any more."""
        return replace(self, member=self.member and replace(self.member, status="left"))

    def with_round(self, closed: ClosedRound, progress: Progress, *, half: bool) -> Content:
        """After one more round; the oldest beyond `MAX_CLOSED` is forgotten.

        A round that is in the totals is not counted again.
        """
        rounds = {old.round: old for old in self.closed} | {closed.round: closed}
        alone = closed.theirs is None
        totals = self.totals.after(closed.round, closed.tokens, alone=alone, half=half)
        newest = tuple(rounds[round] for round in sorted(rounds))[-MAX_CLOSED:]
        return replace(self, progress=progress, totals=totals, closed=newest)

    def with_start(self, round: Round) -> Content:
        """About to train on from another peer's weights: all rounds from there on are new."""
        if round >= self.totals.counted_to:
            return self
        before = tuple(closed for closed in self.closed if closed.round < round)
        return replace(self, totals=replace(self.totals, counted_to=round), closed=before)

    def moved(self, base: Content, found: Content) -> Content:
        """What was changed since `base`, on top of `found`, an own record that came late.

        The checkpoints are ours: those that were found are of a store that is lost, or older.
        """
        rounds = {closed.round: closed for closed in (*found.closed, *self.closed)}
        member = self.member or found.member
        if member and found.member:
            member = replace(member, since=min(member.since, found.member.since))
        moved = replace(
            self,
            member=member,
            progress=found.progress if self.progress == base.progress else self.progress,
            totals=self.totals.moved(base.totals, found.totals),
            closed=tuple(rounds[round] for round in sorted(rounds))[-MAX_CLOSED:],
            blamed=found.blamed,
            control=_moved_word(self.control, base.control, found.control),
        )
        return moved.with_blames(_blamed_since(base.blamed, self.blamed))

    def with_blame(self, peer: PeerId, reason: str) -> Content:
        """Blaming `peer` once more; see `with_blames`."""
        short = reason.encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")
        return self.with_blames((BlamedPeer(peer=peer, count=1, reason=short),))

    def with_blames(self, more: Iterable[BlamedPeer]) -> Content:
        """Blaming each of these so much more; of too many the least blamed other is forgotten."""
        held = {old.peer: old for old in self.blamed}
        for new in more:
            before = held.pop(new.peer).count if new.peer in held else 0
            while len(held) >= MAX_BLAMED:
                del held[min(held, key=lambda other: (held[other].count, other))]
            held[new.peer] = replace(new, count=min(before + new.count, MAX_ROUND))
        return replace(self, blamed=tuple(held[peer] for peer in sorted(held)))


@dataclass(frozen=True, slots=True)
class NoView:
    """There is nothing to read of this author, and why."""

    reason: str
    is_frozen: bool = False
    """There is a proof that it equivocated."""


View = Content | NoView


def _moved_word(now: Control | None, base: Control | None, found: Control | None) -> Control | None:
    """As `Control.moved`; who has said nothing has taken nothing back."""
    if now is None or found is None:
        return now or found
    return now.moved(base or Control(), found)


def _blamed_since(base: Sequence[BlamedPeer], now: Sequence[BlamedPeer]) -> list[BlamedPeer]:
    """Whom the author blamed since `base`, and how often."""
    before = {old.peer: old.count for old in base}
    counts = ((new, new.count - before.get(new.peer, 0)) for new in now)
    return [replace(new, count=count) for new, count in counts if count > 0]


def _check_sorted(name: str, keys: Sequence[int] | Sequence[str]) -> None:
    if any(one >= other for one, other in pairwise(keys)):  # type: ignore[operator]
        raise ValueError(f"{name} is not sorted, or has the same one twice")
