"""Who with whom: edge keys, weights, and the facts of an exchange.

Greedy matching on a symmetric edge key needs no shared list: 256 peers whose views each miss
3 % of the others agree on 89 % of their pairs, pairing neighbours of a sorted list on 51 %.
By symmetry it is a uniform random matching, so the analysis of NoLoCo's consensus holds.

Source: NoLoCo, https://arxiv.org/abs/2506.10911, section 3; docs/decisions.md.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from protocol.ids import DIGEST_BYTES, Digest, PeerId, Round, RunId
from protocol.messages import MAX_DECISIONS, Abort, Commit, Decision, Exchange, Propose

LEAST_WEIGHT = 0.25
"""A pair's weight stays within [1/4, 3/4], whatever tokens the partner claims."""


def edge_key(run: RunId, round: Round, fragment: int, one: PeerId, other: PeerId) -> bytes:
    """The symmetric random rank of a pair in a round; lower is preferred."""
    first, second = sorted((one, other))
    text = f"{round}|{fragment}|{first}|{second}".encode()
    return hashlib.blake2b(b"pair|" + run + text, digest_size=DIGEST_BYTES).digest()


def pair_weight(mine: int, theirs: int) -> float:
    """The weight of our vector in the pair's mean: by tokens, within bounds; equal is 0.5."""
    return min(max(mine / (mine + theirs), LEAST_WEIGHT), 1 - LEAST_WEIGHT)


@dataclass(frozen=True, slots=True)
class Payload:
    """Our side of an exchange: what we offer in `round`."""

    round: Round
    digest: Digest
    size_bytes: int
    tokens: int


def exchange_between(
    proposer: PeerId, proposed: Payload, partner: PeerId, accepted: Payload, max_tokens: int
) -> Exchange:
    """The facts that both sides sign; claims of tokens count up to `max_tokens`."""
    return Exchange(
        round=max(proposed.round, accepted.round),
        fragment=0,
        proposer=proposer,
        partner=partner,
        proposer_digest=proposed.digest,
        partner_digest=accepted.digest,
        proposer_tokens=min(proposed.tokens, max_tokens),
        partner_tokens=min(accepted.tokens, max_tokens),
    )


@dataclass(frozen=True, slots=True)
class Alone:
    """No exchange: the outer step is taken with our own vector."""

    reason: str
    half: bool = False
    """The partner may have applied the exchange."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Both sides have named their payloads."""

    peer: PeerId
    exchange: Exchange
    i_decide: bool
    theirs: Digest
    until: float
    fetched: bool = False
    have: bool = False
    """The partner's `Have` is received (proposer) or sent (partner)."""
    agreed: bool = False
    """To be applied now."""


@dataclass(frozen=True, slots=True)
class Held:
    """A proposal that waits for us."""

    propose: Propose
    until: float


class Decisions:
    """What this peer decided as a proposer, the last few: the answer to a doubt."""

    def __init__(self) -> None:
        self._exchanges: dict[Digest, Exchange | None] = {}

    def add(self, proposed: Digest, exchange: Exchange | None) -> tuple[Decision, ...]:
        """Note a commit, or an abort (None); the decisions to publish."""
        self._exchanges[proposed] = exchange
        for old in list(self._exchanges)[:-MAX_DECISIONS]:
            del self._exchanges[old]
        return tuple(Decision(digest, e is not None) for digest, e in self._exchanges.items())

    def answer(self, asked: Exchange) -> Commit | Abort | None:
        """What was decided about the exchange that a partner asks about; None: forgotten."""
        if asked.proposer_digest not in self._exchanges:
            return None
        decided = self._exchanges[asked.proposer_digest]
        return Commit(asked) if decided == asked else Abort(asked.proposer_digest)
