"""What a record says: the only file that knows its keys.

    "member"             Member        who the author is and whether it takes part
    "progress"           Progress      its last closed round
    "totals"             Totals        its contribution so far
    "closed/<round>"     ClosedRound   of the last 8 rounds
    "checkpoint/<round>" Checkpoint    of the newest 3 that it serves
    "blame/<peer>"       BlamedPeer    of at most 16 peers that broke the protocol towards it
    "control"            Control       what the creator wants; no node writes or obeys it yet

Each value is the codec's encoding of the class, so that types, ranges and the one spelling of
a value are checked where all messages are, and neither pycrdt's floats nor its order of keys
comes further than here.  Everything is a claim of the author about itself.  It is written
at most once a round; live telemetry is presence, not record.

A content that does not read is a `NoView` with a reason, never an exception and never half
of a content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from crdt import document
from protocol import check, codec
from protocol.errors import Malformed
from protocol.ids import Digest, PeerId, Round
from protocol.limits import MAX_ROUND, MAX_TOKENS
from protocol.messages import Checkpoint

MAX_NAME_BYTES = 64
MAX_CAPABILITIES = 16
MAX_CAPABILITY_BYTES = 32
MAX_CLOSED = 8
"""A partner that restarts looks this far back for what it decided; presence has the last 4."""
MAX_CHECKPOINTS = 3
MAX_BLAMED = 16
MAX_REASON_BYTES = 128
MAX_LOSS = 1e6
MAX_KEY_BYTES = 80
"""Of the longest key, "blame/" and a peer id of 52 characters, with room to spare."""
MAX_VALUE_BYTES = 1024
"""Of the largest value, a member with all its capabilities: 628 bytes."""
STATUSES = ("joined", "finished", "left")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """Who the author is."""

    name: str | None = None
    """As its operator wants to be called."""
    since: Round
    """The round in which it first began to train."""
    status: str = "joined"
    capabilities: tuple[str, ...] = ()
    """What it offers, sorted: "relay", "gpu", ..."""

    def __post_init__(self) -> None:
        if self.name is not None:
            check.text("member.name", self.name, MAX_NAME_BYTES, least=1)
        check.integer("member.since", self.since, 0, MAX_ROUND)
        check.one_of("member.status", self.status, STATUSES)
        check.items("member.capabilities", self.capabilities, MAX_CAPABILITIES)
        for capability in self.capabilities:
            check.text("capability", capability, MAX_CAPABILITY_BYTES, least=1)
        if list(self.capabilities) != sorted(set(self.capabilities)):
            raise ValueError("member.capabilities are not sorted, or one is there twice")


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

    def __post_init__(self) -> None:
        check.integer("totals.tokens", self.tokens, 0, MAX_TOKENS)
        for name in ("rounds", "exchanges", "alone", "half"):
            check.integer(f"totals.{name}", getattr(self, name), 0, MAX_ROUND)


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

    def __post_init__(self) -> None:
        check.integer("closed.round", self.round, 0, MAX_ROUND)
        check.integer("closed.tokens", self.tokens, 0, MAX_TOKENS)
        if self.mine is not None:
            check.digest("closed.mine", self.mine)
        if self.theirs is not None:
            check.digest("closed.theirs", self.theirs)
        if self.partner is not None:
            check.peer("closed.partner", self.partner)
            check.digest("closed.theirs", self.theirs)


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
    """What the creator wants of the run."""

    paused: bool = False
    stopped: bool = False
    """For good: members finish, nobody joins."""


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

    def with_round(self, closed: ClosedRound, progress: Progress, *, half: bool) -> Content:
        """After one more round; the oldest beyond `MAX_CLOSED` is forgotten."""
        rounds = {old.round: old for old in self.closed} | {closed.round: closed}
        alone = closed.theirs is None
        totals = Totals(
            tokens=self.totals.tokens + closed.tokens,
            rounds=self.totals.rounds + 1,
            exchanges=self.totals.exchanges + (not alone),
            alone=self.totals.alone + alone,
            half=self.totals.half + half,
        )
        newest = tuple(rounds[round] for round in sorted(rounds))[-MAX_CLOSED:]
        return replace(self, progress=progress, totals=totals, closed=newest)

    def with_checkpoint(self, checkpoint: Checkpoint) -> Content:
        """Offering one more checkpoint; the oldest beyond `MAX_CHECKPOINTS` is not."""
        held = {old.round: old for old in self.checkpoints} | {checkpoint.round: checkpoint}
        newest = tuple(held[round] for round in sorted(held))[-MAX_CHECKPOINTS:]
        return replace(self, checkpoints=newest)

    def with_blame(self, peer: PeerId, reason: str) -> Content:
        """Blaming `peer` once more; of too many the least blamed other one is forgotten."""
        held = {old.peer: old for old in self.blamed}
        count = held.pop(peer).count + 1 if peer in held else 1
        while len(held) >= MAX_BLAMED:
            del held[min(held, key=lambda other: (held[other].count, other))]
        short = reason.encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")
        held[peer] = BlamedPeer(peer=peer, count=min(count, MAX_ROUND), reason=short)
        return replace(self, blamed=tuple(held[other] for other in sorted(held)))


@dataclass(frozen=True, slots=True)
class NoView:
    """There is nothing to read of this author, and why."""

    reason: str


View = Content | NoView

_SINGLE = {"member": Member, "progress": Progress, "totals": Totals, "control": Control}
_MANY = {"closed": ClosedRound, "checkpoint": Checkpoint, "blame": BlamedPeer}


def view(updates: Sequence[bytes]) -> View:
    """What the updates of a chain say together; never raises."""
    if not updates:
        return NoView("no snapshot yet")
    try:
        return parsed(document.read(updates))
    except Malformed as error:
        return NoView(f"unreadable: {error}")


def keyed(content: Content) -> dict[str, bytes]:
    """The content as keys and bytes, as it lies in the document."""
    values: dict[str, object] = {"totals": content.totals}
    values |= {"member": content.member} if content.member else {}
    values |= {"progress": content.progress} if content.progress else {}
    values |= {"control": content.control} if content.control else {}
    values |= {f"closed/{closed.round}": closed for closed in content.closed}
    values |= {f"checkpoint/{checkpoint.round}": checkpoint for checkpoint in content.checkpoints}
    values |= {f"blame/{blamed.peer}": blamed for blamed in content.blamed}
    return {key: codec.encode(value) for key, value in sorted(values.items())}


def parsed(values: Mapping[str, bytes]) -> Content:
    """The content that `keyed` makes these keys and bytes of.

    Raises:
        Malformed: there is none.
    """
    single: dict[str, object] = {}
    many: dict[str, list[object]] = {name: [] for name in _MANY}
    for key, value in values.items():
        name, slash, _ = key.partition("/")
        kind: type[object] | None = (_MANY if slash else _SINGLE).get(name)
        if kind is None:
            raise Malformed(f"unknown key {key!r:.{MAX_KEY_BYTES}}")
        item = codec.decode(kind, value, max_bytes=MAX_VALUE_BYTES)
        if slash:
            many[name].append(item)
        else:
            single[name] = item
    try:
        content = Content(
            **single,  # type: ignore[arg-type]  # decoded as what `_SINGLE` says
            closed=_by("round", many["closed"]),  # type: ignore[arg-type]
            checkpoints=_by("round", many["checkpoint"]),  # type: ignore[arg-type]
            blamed=_by("peer", many["blame"]),  # type: ignore[arg-type]
        )
    except ValueError as error:
        raise Malformed(str(error)) from error
    if keyed(content) != dict(values):
        raise Malformed("a value under the key of another one")
    return content


def _by(name: str, items: list[object]) -> tuple[object, ...]:
    return tuple(sorted(items, key=lambda item: getattr(item, name)))


def _check_sorted(name: str, keys: Sequence[int] | Sequence[str]) -> None:
    if any(one >= other for one, other in pairwise(keys)):  # type: ignore[operator]
        raise ValueError(f"{name} is not sorted, or has the same one twice")
