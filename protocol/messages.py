"""What peers say to each other about rounds, checkpoints and themselves.

This file *is* the wire format (docs/protocol.md describes it; golden bytes pin it).  A
message never changes: a changed one is a new class with a new tag.  Constructors check
ranges, so a message that exists is valid, whoever made it.

One exchange of noloco (docs/algorithms.md); the proposer decides:

    proposer                                   partner
       | -- Propose(my payload) ----------------> |
       | <------- Accept(its payload) | Refuse -- |
       | <== both fetch the other's payload ====> |
       | <------------------- Have(both digests)  |
    applies, once it holds the payload and the Have
       | -- Commit(both digests) | Abort -------> |
       |                                       applies

A partner in doubt repeats its `Have`, and reads the proposer's decisions in its presence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from protocol import check
from protocol.ids import Digest, PeerId, Round
from protocol.limits import (
    MAX_FRAGMENT,
    MAX_PAYLOAD_BYTES,
    MAX_ROUND,
    MAX_STEP,
    MAX_TOKENS,
    MAX_UNIX_S,
)
from protocol.manifest import MAX_BLOB_BYTES
from protocol.rosters import Contribution, Later, SignedRoster
from protocol.spsa import Behind, Frames, SignedBase, Want

MAX_MESSAGE_BYTES = 32 * 1024
"""The longest are horizons and frames of spsa; tensors travel as payloads, fetched by digest."""
MAX_PRESENCE_BYTES = 4096
MAX_DECISIONS = 4
"""A peer keeps what became of its last four payloads in its presence."""
MAX_TTL_MS = 60_000
REASONS = ("taken", "later", "fragment", "far", "failed", "finished")
"""Why a proposal is refused: paired already; still training; another fragment's turn here; rounds
too far apart; the fetch failed; this peer has no rounds left."""


@dataclass(frozen=True, slots=True)
class Propose:
    """ "Exchange with me: my payload of `round` is `digest`."

    Args:
        round: the proposer's round.
        fragment: the part of the parameters; 0 is the whole model.
        digest: name of the payload, to be fetched from the proposer.
        size_bytes: its length.
        tokens: tokens trained on since the last snapshot.
        wait_s: seconds for which the proposer waits for an answer.
    """

    TAG: ClassVar[int] = 1
    round: Round
    fragment: int
    digest: Digest
    size_bytes: int
    tokens: int
    wait_s: float

    def __post_init__(self) -> None:
        check.integer("round", self.round, 0, MAX_ROUND)
        check.integer("fragment", self.fragment, 0, MAX_FRAGMENT)
        check.digest("digest", self.digest)
        check.integer("size_bytes", self.size_bytes, 1, MAX_PAYLOAD_BYTES)
        check.integer("tokens", self.tokens, 0, MAX_TOKENS)
        check.number("wait_s", self.wait_s, 0.0, 3600.0)


@dataclass(frozen=True, slots=True)
class Accept:
    """ "Yes to your proposal `proposed`: my payload of my `round` is `digest`." """

    TAG: ClassVar[int] = 2
    proposed: Digest
    round: Round
    digest: Digest
    size_bytes: int
    tokens: int

    def __post_init__(self) -> None:
        check.digest("proposed", self.proposed)
        check.integer("round", self.round, 0, MAX_ROUND)
        check.digest("digest", self.digest)
        check.integer("size_bytes", self.size_bytes, 1, MAX_PAYLOAD_BYTES)
        check.integer("tokens", self.tokens, 0, MAX_TOKENS)


@dataclass(frozen=True, slots=True)
class Refuse:
    """ "No to your proposal `proposed`", or the partner withdraws before its Have.

    Args:
        reason: one of `REASONS`.
        eta_s: with "later", the seconds until this peer can answer; else 0.
    """

    TAG: ClassVar[int] = 3
    proposed: Digest
    reason: str
    eta_s: float

    def __post_init__(self) -> None:
        check.digest("proposed", self.proposed)
        check.one_of("reason", self.reason, REASONS)
        check.number("eta_s", self.eta_s, 0.0, 1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """The facts of one exchange that both receipts sign."""

    fragment: int
    proposer: PeerId
    partner: PeerId
    proposer_round: Round
    partner_round: Round
    proposer_digest: Digest
    partner_digest: Digest
    proposer_tokens: int
    partner_tokens: int

    def __post_init__(self) -> None:
        check.integer("fragment", self.fragment, 0, MAX_FRAGMENT)
        check.peer("proposer", self.proposer)
        check.peer("partner", self.partner)
        check.integer("proposer_round", self.proposer_round, 0, MAX_ROUND)
        check.integer("partner_round", self.partner_round, 0, MAX_ROUND)
        check.digest("proposer_digest", self.proposer_digest)
        check.digest("partner_digest", self.partner_digest)
        check.integer("proposer_tokens", self.proposer_tokens, 0, MAX_TOKENS)
        check.integer("partner_tokens", self.partner_tokens, 0, MAX_TOKENS)

    @property
    def round(self) -> Round:
        """The larger of the two rounds; closing takes both peers to the one after it."""
        return max(self.proposer_round, self.partner_round)


@dataclass(frozen=True, slots=True)
class Have:
    """The partner's receipt: "I hold your payload, and I shall do as you decide." """

    TAG: ClassVar[int] = 4
    exchange: Exchange


@dataclass(frozen=True, slots=True)
class Commit:
    """The proposer's receipt: "I have applied it; apply it, too." """

    TAG: ClassVar[int] = 5
    exchange: Exchange


@dataclass(frozen=True, slots=True)
class Abort:
    """The proposer's decision: "I went on without you." """

    TAG: ClassVar[int] = 6
    proposed: Digest

    def __post_init__(self) -> None:
        check.digest("proposed", self.proposed)


Message = (
    Propose
    | Accept
    | Refuse
    | Have
    | Commit
    | Abort
    | Contribution
    | Later
    | SignedRoster
    | Frames
    | Want
    | Behind
    | SignedBase
)


@dataclass(frozen=True, slots=True)
class SignedMessage:
    """A round message as it travels: the sender is who the connection belongs to."""

    body: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of a peer's own payload: it proposed it, and exchanged it for `accepted`.

    None: with nobody.  One payload may be proposed to several peers, one after the other, so a
    partner in doubt looks for its own payload here.
    """

    proposed: Digest
    accepted: Digest | None

    def __post_init__(self) -> None:
        check.digest("proposed", self.proposed)
        if self.accepted is not None:
            check.digest("accepted", self.accepted)


STATES = ("serving", "starting", "training", "paused", "finished", "leaving")
HAS_WEIGHTS = ("starting", "training", "paused", "finished")
"""States of a member that others may start from, and that stays for a while."""
BEGUN = ("training", "paused", "finished")
"""Those of them in whose rounds others may stand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """What a peer says of itself every second or so; expires, is never merged into records."""

    peer: PeerId
    boot: bytes
    """8 random bytes of this start of the process: a restart begins a new sequence."""
    seq: int
    started_unix_s: int
    """Wall clock at start; orders two boots of one peer, nothing else."""
    unix_s: int
    """Wall clock when this was said; others notice by it that theirs is wrong, nothing else."""
    ttl_ms: int
    addrs: tuple[str, ...]
    state: str
    round: Round
    inner_step: int
    tokens_per_s: float
    loss: float
    """Training loss of the last inner steps in nats per token; 0 before the first."""
    decisions: tuple[Decision, ...]

    def __post_init__(self) -> None:
        check.peer("peer", self.peer)
        check.raw("boot", self.boot, 8, 8)
        check.integer("seq", self.seq, 0, 1 << 48)
        check.integer("started_unix_s", self.started_unix_s, 0, MAX_UNIX_S)
        check.integer("unix_s", self.unix_s, 0, MAX_UNIX_S)
        check.integer("ttl_ms", self.ttl_ms, 1, MAX_TTL_MS)
        check.addrs("addrs", self.addrs)
        check.one_of("state", self.state, STATES)
        check.integer("round", self.round, 0, MAX_ROUND)
        check.integer("inner_step", self.inner_step, 0, MAX_STEP)
        check.number("tokens_per_s", self.tokens_per_s, 0.0, 1e12)
        check.number("loss", self.loss, 0.0, 1e6)
        check.items("decisions", self.decisions, MAX_DECISIONS)


@dataclass(frozen=True, slots=True)
class PresenceEntry:
    """A signed presence on its way: whoever passes it on lowers `remaining_ms`."""

    body: bytes
    signature: bytes
    remaining_ms: int

    def __post_init__(self) -> None:
        check.raw("body", self.body, 1, MAX_PRESENCE_BYTES)
        check.integer("remaining_ms", self.remaining_ms, 1, MAX_TTL_MS)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """ "My slow weights and outer momentum at the start of `round` are this blob." """

    round: Round
    digest: Digest
    size_bytes: int
    weights: Digest
    """blake2b-256 of the slow weights alone, float32 little endian: members compare it."""

    def __post_init__(self) -> None:
        check.integer("round", self.round, 0, MAX_ROUND)
        check.digest("digest", self.digest)
        check.integer("size_bytes", self.size_bytes, 1, MAX_BLOB_BYTES)
        check.digest("weights", self.weights)
