"""What members of a diloco, streaming or sync run say to each other about a round.

    everyone                               leader of the term
       | -- Contribution (to all) -----------> |
       |    or Later: do not wait for me       |
       |                  fetches them, and signs a roster of those that it holds
       | <-------------------- SignedRoster -- |
    fetch what they lack, from whoever made it or has it; average in the roster's order

Nothing but the roster decides what is averaged, so all that have it are bit-equal and can
check it.  Each `Contribution` and `Later` says where its sender is, so whoever is further
answers with the rosters that lead on.  Tags go on from those in `protocol.messages`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from protocol import check, codec
from protocol.algorithms import MAX_GROUP
from protocol.envelope import Domain, Signer, verify
from protocol.errors import Malformed
from protocol.ids import Digest, PeerId, Round, RunId, digest_of
from protocol.limits import MAX_FRAGMENT, MAX_PAYLOAD_BYTES, MAX_ROUND, MAX_TOKENS

MAX_TERM = 1000
"""Leaders tried in one round: a term lasts as long as the round's deadline."""
MAX_ROSTER_BYTES = 3072
"""Sixteen entries of 107 bytes, and 115 bytes around them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """ "My outer gradient of this round is `digest`; I measured it from these slow weights." """

    TAG: ClassVar[int] = 7
    round: Round
    fragment: int
    anchor: Digest
    """Slow weights at the start of the round; equal on all members that can be averaged."""
    anchor_tokens: int
    """Tokens of the roster that led to the anchor: of two histories the one with more wins."""
    digest: Digest
    size_bytes: int
    tokens: int
    """Trained on since this peer's last contribution."""

    def __post_init__(self) -> None:
        check.integer("round", self.round, 0, MAX_ROUND)
        check.integer("fragment", self.fragment, 0, MAX_FRAGMENT)
        check.digest("anchor", self.anchor)
        check.integer("anchor_tokens", self.anchor_tokens, 0, MAX_TOKENS)
        check.digest("digest", self.digest)
        check.integer("size_bytes", self.size_bytes, 1, MAX_PAYLOAD_BYTES)
        check.integer("tokens", self.tokens, 1, MAX_TOKENS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Later:
    """ "I am at `round`, from these slow weights, and contribute nothing now." """

    TAG: ClassVar[int] = 8
    round: Round
    """Where the sender is; of a finished one the rounds of the run."""
    anchor: Digest
    anchor_tokens: int
    is_coming: bool
    """On the way to a later round: wait a little; else do not wait."""

    def __post_init__(self) -> None:
        check.integer("round", self.round, 0, MAX_ROUND)
        check.digest("anchor", self.anchor)
        check.integer("anchor_tokens", self.anchor_tokens, 0, MAX_TOKENS)


@dataclass(frozen=True, slots=True)
class Entry:
    """One contribution in a roster."""

    peer: PeerId
    digest: Digest
    size_bytes: int
    """Of the payload: who did not hear of it must know what to fetch."""
    tokens: int

    def __post_init__(self) -> None:
        check.peer("peer", self.peer)
        check.digest("digest", self.digest)
        check.integer("size_bytes", self.size_bytes, 1, MAX_PAYLOAD_BYTES)
        check.integer("tokens", self.tokens, 1, MAX_TOKENS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """What is averaged in a round, in this order: sorted by peer, each peer once."""

    round: Round
    fragment: int
    term: int
    leader: PeerId
    anchor: Digest
    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        check.integer("round", self.round, 0, MAX_ROUND)
        check.integer("fragment", self.fragment, 0, MAX_FRAGMENT)
        check.integer("term", self.term, 0, MAX_TERM)
        check.peer("leader", self.leader)
        check.digest("anchor", self.anchor)
        check.items("entries", self.entries, MAX_GROUP)
        peers = [entry.peer for entry in self.entries]
        if not peers or peers != sorted(set(peers)):
            raise ValueError("entries are empty, not sorted by peer, or name one twice")

    @property
    def tokens(self) -> int:
        """Of all entries."""
        return sum(entry.tokens for entry in self.entries)


@dataclass(frozen=True, slots=True)
class SignedRoster:
    """A roster as it travels, from its leader or from whoever has it."""

    TAG: ClassVar[int] = 9
    body: bytes
    signature: bytes

    def __post_init__(self) -> None:
        check.raw("body", self.body, 1, MAX_ROSTER_BYTES)
        check.raw("signature", self.signature, 64, 64)

    @property
    def digest(self) -> Digest:
        """Its name in records."""
        return digest_of(self.body)

    def open(self, run: RunId) -> Roster:
        """The roster in it.

        Raises:
            Malformed: broken, or not signed by the leader that it names.
        """
        roster = codec.decode(Roster, self.body, max_bytes=MAX_ROSTER_BYTES)
        verify(roster.leader, Domain.ROSTER, run, self.body, self.signature)
        return roster


def sign_roster(roster: Roster, run: RunId, signer: Signer) -> SignedRoster:
    """The roster as its leader sends it."""
    body = codec.encode(roster)
    if len(body) > MAX_ROSTER_BYTES:
        raise Malformed(f"a roster of {len(body)} bytes, at most {MAX_ROSTER_BYTES}")
    return SignedRoster(body, signer.sign(Domain.ROSTER, run, body))
