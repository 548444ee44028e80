"""Who with whom: edge keys, weights, and the facts of an exchange.

Greedy matching on a symmetric edge key needs no shared list: 256 peers whose views each miss
3 % of the others agree on 89 % of their pairs, pairing neighbours of a sorted list on 51 %.
By symmetry it is a uniform random matching, so the analysis of NoLoCo's consensus holds.

Source: NoLoCo, https://arxiv.org/abs/2506.10911, section 3; docs/decisions.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass

from protocol.ids import DIGEST_BYTES, Digest, PeerId, Round, RunId
from protocol.messages import MAX_DECISIONS, Abort, Accept, Commit, Decision, Exchange, Propose
from trainers.effects import ApplyOuter, Share

MAX_HELD = 64
"""Proposals kept while this peer is not free: as many as peers in the presence view."""
REMEMBERED = 64
"""Own payloads whose end is known: a partner asks within twice the deadline of an exchange."""
LEAST_WEIGHT = 0.25
"""A pair's weight stays within [1/4, 3/4], whatever tokens the partner claims."""


def edge_key(run: RunId, round: Round, fragment: int, one: PeerId, other: PeerId) -> bytes:
    """The symmetric random rank of a pair in a round; lower is preferred."""
    first, second = (one, other) if one < other else (other, one)
    text = f"{round}|{fragment}|{first}|{second}".encode()
    return hashlib.blake2b(b"pair|" + run + text, digest_size=DIGEST_BYTES).digest()


def shares(exchange: Exchange, max_tokens: int) -> tuple[Share, Share]:
    """Both payloads in the pair's mean, the proposer's first: by tokens, within bounds.

    Both sides compute the same two weights, and a sum of two products is commutative, so both
    have the same mean to the bit.
    """
    proposers = max(1, min(exchange.proposer_tokens, max_tokens))
    partners = max(1, min(exchange.partner_tokens, max_tokens))
    weight = min(max(proposers / (proposers + partners), LEAST_WEIGHT), 1 - LEAST_WEIGHT)
    return (
        Share(exchange.proposer_digest, exchange.proposer_round, weight),
        Share(exchange.partner_digest, exchange.partner_round, 1 - weight),
    )


def fragment_in_turn(run: RunId, round: Round, fragments: int) -> int:
    """Whose turn it is: each fragment once in so many rounds, in an order that changes.

    In a fixed order a peer that meets others every fourth round only would exchange the same
    one of four fragments each time.
    """
    cycle, turn = divmod(round, fragments)
    keys = {
        hashlib.blake2b(b"turn|" + run + f"{cycle}|{fragment}".encode()).digest(): fragment
        for fragment in range(fragments)
    }
    return keys[sorted(keys)[turn]]


@dataclass(frozen=True, slots=True)
class Payload:
    """Our side of an exchange: what we offer in `round`."""

    round: Round
    fragment: int
    digest: Digest
    size_bytes: int
    tokens: int
    sizes: Collection[int] = ()
    """That a partner's may have besides: the creator may change the codec."""

    def propose(self, wait_s: float) -> Propose:
        """The offer of it."""
        return Propose(self.round, self.fragment, self.digest, self.size_bytes, self.tokens, wait_s)

    def accept(self, proposed: Digest) -> Accept:
        """The answer to an offer."""
        return Accept(proposed, self.round, self.digest, self.size_bytes, self.tokens)

    def counterpart(self, exchange: Exchange) -> Payload:
        """What the partner must have accepted our offer with, as its receipt says."""
        return Payload(
            exchange.partner_round,
            self.fragment,
            exchange.partner_digest,
            self.size_bytes,
            exchange.partner_tokens,
        )

    def fault(self, offer: Propose | Accept, rounds: int) -> str | None:
        """Why no honest peer of a run of so many rounds offers this for ours; None: it may."""
        if offer.round >= rounds:
            return f"a payload of round {offer.round}, the run has {rounds}"
        if offer.digest == self.digest:
            return "our own payload offered as its own"
        if offer.size_bytes != self.size_bytes and offer.size_bytes not in self.sizes:
            return f"a payload of {offer.size_bytes} bytes, not {self.size_bytes}"
        return None


def exchange_between(
    proposer: PeerId,
    proposed: Payload | Propose,
    partner: PeerId,
    accepted: Payload | Accept,
    most_claimed: int,
) -> Exchange:
    """The facts that both sides sign; claims of tokens count up to `most_claimed`."""
    return Exchange(
        fragment=proposed.fragment,
        proposer=proposer,
        partner=partner,
        proposer_round=proposed.round,
        partner_round=accepted.round,
        proposer_digest=proposed.digest,
        partner_digest=accepted.digest,
        proposer_tokens=min(proposed.tokens, most_claimed),
        partner_tokens=min(accepted.tokens, most_claimed),
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

    @classmethod
    def of(cls, exchange: Exchange, me: PeerId, until: float) -> Pair:
        """The pair of this exchange, as one of the two sees it."""
        if exchange.proposer == me:
            return cls(exchange.partner, exchange, True, exchange.partner_digest, until)
        return cls(exchange.proposer, exchange, False, exchange.proposer_digest, until)


def outer_step(mine: Payload, result: Alone | Pair, max_tokens: int) -> ApplyOuter:
    """The step that ends the round of our payload."""
    if isinstance(result, Alone):
        return ApplyOuter(Round(mine.round + 1), mine.fragment, mine.digest, ())
    exchange = result.exchange
    both = shares(exchange, max_tokens)
    return ApplyOuter(Round(exchange.round + 1), mine.fragment, mine.digest, both)


@dataclass(frozen=True, slots=True)
class Held:
    """A proposal that waits for us."""

    propose: Propose
    until: float


class Candidates:
    """Whom to pair with next; a pair is sought for one payload after the other."""

    def __init__(self, me: PeerId, run: RunId) -> None:
        self._me = me
        self._run = run
        self.members: tuple[PeerId, ...] = ()
        self.held: dict[PeerId, Held] = {}
        """Proposals to us that are not answered."""
        self.tried: set[PeerId] = set()
        """Not to be proposed to again with this payload."""
        self._asked: dict[PeerId, Propose] = {}
        """Who proposed while we trained: open then, so tried first once we are."""
        self._keys: dict[PeerId, bytes] = {}
        """Edge keys of this search: the machine's dearest computation."""
        self._fragment = 0

    @property
    def anyone(self) -> bool:
        """Somebody trains, or waits for us."""
        return bool(self.members or self.held)

    def start_anew(self, fragment: int) -> None:
        """Another payload, of this fragment, looks for a partner."""
        self.tried.clear()
        self._keys.clear()
        self._fragment = fragment

    def forget_asked(self) -> None:
        """The search is over; who asked before it has found others."""
        self._asked.clear()

    def hold(self, peer: PeerId, propose: Propose, now: float) -> None:
        """Keep a proposal until we can answer it."""
        if peer in self.held or len(self.held) < MAX_HELD:
            self.held[peer] = Held(propose, now + propose.wait_s)

    def remember(self, peer: PeerId, propose: Propose) -> None:
        """It looks for a partner now: try it first when we do."""
        if peer in self._asked or len(self._asked) < MAX_HELD:
            self._asked[peer] = propose

    def wanted(self, round: Round) -> int | None:
        """The fragment that the one furthest ahead of `round` has asked for; None: nobody has.

        Who is behind takes the turn of those ahead: then they can meet.
        """
        asked = [*(held.propose for held in self.held.values()), *self._asked.values()]
        ahead = [propose for propose in asked if propose.round > round]
        return max(ahead, key=lambda p: (p.round, p.digest)).fragment if ahead else None

    def best(self, round: Round, now: float) -> tuple[PeerId | None, Propose | None]:
        """Whom to accept, with the proposal that was kept, or to propose to; None: nobody."""
        self.held = {peer: held for peer, held in self.held.items() if held.until > now}
        candidates: Collection[PeerId] = self.held
        if not candidates:
            untried = set(self.members) - self.tried
            candidates = untried.intersection(self._asked) or untried
        if not candidates:
            return None, None
        for peer in candidates:
            self._key(peer, round)
        best = min(candidates, key=self._keys.__getitem__)
        held = self.held.pop(best, None)
        return best, held.propose if held else None

    def prefers(self, one: PeerId, other: PeerId, round: Round) -> bool:
        """Whether `one` is the better partner in this round of ours."""
        return self._key(one, round) < self._key(other, round)

    def _key(self, peer: PeerId, round: Round) -> bytes:
        if peer not in self._keys:
            self._keys[peer] = edge_key(self._run, round, self._fragment, self._me, peer)
        return self._keys[peer]

    def take_held(self, unwanted: Callable[[Propose], bool]) -> list[tuple[PeerId, Propose]]:
        """The kept proposals that are unwanted; they are kept no more."""
        taken = {p: held for p, held in self.held.items() if unwanted(held.propose)}
        self.held = {peer: held for peer, held in self.held.items() if peer not in taken}
        return [(peer, held.propose) for peer, held in sorted(taken.items())]


class Decisions:
    """What became of this peer's own payloads: the answer to a partner in doubt."""

    def __init__(self) -> None:
        self._ends: dict[Digest, Exchange | None] = {}

    def add(self, mine: Digest, exchange: Exchange | None) -> tuple[Decision, ...]:
        """Our payload was exchanged as proposed, or not; the decisions to publish."""
        self._ends[mine] = exchange
        for old in list(self._ends)[:-REMEMBERED]:
            del self._ends[old]
        return self._newest()

    def forget(self, mine: Digest) -> tuple[Decision, ...] | None:
        """Our payload is offered again: a worker that restarts makes the same one once more."""
        if mine not in self._ends:
            return None
        del self._ends[mine]
        return self._newest()

    def _newest(self) -> tuple[Decision, ...]:
        newest = list(self._ends.items())[-MAX_DECISIONS:]
        return tuple(Decision(d, e.partner_digest if e else None) for d, e in newest)

    def answer(self, asked: Exchange) -> Commit | Abort | None:
        """What was decided about the exchange that a partner asks about; None: forgotten."""
        if asked.proposer_digest not in self._ends:
            return None
        decided = self._ends[asked.proposer_digest]
        return Commit(asked) if decided == asked else Abort(asked.proposer_digest)
