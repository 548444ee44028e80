"""Rosters as facts: who leads a term, whom a roster names, how it is weighted, which one wins.

Pure functions of what was said, so members that heard the same come to the same.  Nothing here
knows of time, or of what this peer does.

Sources: docs/algorithms.md, diloco; the leader by hash needs no election: members that see each
other agree on it, and those that do not make rosters that are ordered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from protocol.algorithms import MAX_GROUP
from protocol.ids import DIGEST_BYTES, Digest, PeerId, Round, RunId
from protocol.rosters import Contribution, Entry, Later, Roster, SignedRoster
from trainers.effects import Share

LEAST_SHARE = 8
"""A contribution counts at least as an eighth of a whole round's tokens: who closed its inner
phase early has made at least so much, and a hair's weight is not worth its bytes."""
SEAT_ROUNDS = 4
"""Who was in one of so many rosters keeps its place before a newcomer.  A guess: a peer 16 times
slower than the fastest contributes to every second round."""

NEAR_ROUNDS = 2
"""Histories so close are on a par: what a peer said last is a round old, and two that go on side by
side are out of step by a part of one."""

Place = tuple[Round, Digest]
"""A round and the slow weights at its start: who is at the same place can be averaged."""


@dataclass(frozen=True, slots=True)
class Where:
    """Where a peer is."""

    round: Round
    tokens: int
    """Of the roster that led there."""
    anchor: Digest

    @property
    def place(self) -> Place:
        """Without the tokens, which not everybody knows."""
        return self.round, self.anchor


def where(said: Contribution | Later) -> Where:
    """Where its sender is."""
    return Where(said.round, said.anchor_tokens, said.anchor)


def greater(
    others: Sequence[tuple[Where, PeerId]], here: Where, lowest: PeerId
) -> list[tuple[Where, PeerId]]:
    """Those whose history wins over that of who is here, the best source first.

    A history wins that is clearly further; else one with clearly more tokens in its last roster;
    else that of the member with the lowest id.  Rounds, tokens and anchors of two histories that
    run on side by side change every round, so by them alone the halves of a partition would
    hardly ever agree for long, or swap.

    Args:
        lowest: of those on our history.
    """
    bits = here.tokens.bit_length()
    further = [(at, id) for at, id in others if at.round > here.round + NEAR_ROUNDS]
    near = [(at, id) for at, id in others if abs(at.round - here.round) <= NEAR_ROUNDS]
    more = [(at, id) for at, id in near if at.tokens.bit_length() > bits]
    even = [(at, id) for at, id in near if at.tokens.bit_length() == bits]
    if further:
        return sorted(further, key=lambda one: (-one[0].round, one[1]))
    if more or any(id < lowest for _, id in even):
        return sorted(more or even, key=lambda one: one[1])
    return []


@dataclass(frozen=True, slots=True)
class KnownRoster:
    """A roster whose signature was checked, and the bytes that prove it."""

    roster: Roster
    signed: SignedRoster

    @property
    def digest(self) -> Digest:
        """Its name."""
        return self.signed.digest

    @property
    def place(self) -> Place:
        """Where it leads on from."""
        return self.roster.round, self.roster.anchor

    @property
    def payloads(self) -> tuple[Digest, ...]:
        """What it averages."""
        return tuple(entry.digest for entry in self.roster.entries)

    def names(self, peer: PeerId) -> bool:
        """Whether a contribution of this peer is in it."""
        return any(entry.peer == peer for entry in self.roster.entries)

    def is_as_good_as(self, other: KnownRoster) -> bool:
        """Whether both lead to the same weights, whoever signed them."""
        return self.roster.entries == other.roster.entries and self.place == other.place

    def beats(self, other: KnownRoster) -> bool:
        """Of two rosters of one round that with more tokens wins; tie: the lower digest."""
        mine, theirs = self.roster.tokens, other.roster.tokens
        return mine > theirs or (mine == theirs and self.digest < other.digest)


def leader_of(
    candidates: Iterable[PeerId], run: RunId, round: Round, fragment: int, term: int
) -> PeerId:
    """First in the order of a hash that nobody can choose."""

    def key(peer: PeerId) -> bytes:
        text = f"{round}|{fragment}|{term}|{peer}".encode()
        return hashlib.blake2b(b"leader|" + run + text, digest_size=DIGEST_BYTES).digest()

    return min(candidates, key=key)


def first_in_line(
    offers: Mapping[PeerId, Contribution], seated: Collection[PeerId]
) -> dict[PeerId, Contribution]:
    """Those that a roster has room for: who was in the last ones, then by id; sorted by id.

    Of equal payloads the first alone: who sends a copy of another's is not averaged.
    """
    line: dict[Digest, PeerId] = {}
    for peer in sorted(offers, key=lambda peer: (peer not in seated, peer)):
        line.setdefault(offers[peer].digest, peer)
    first = sorted(list(line.values())[:MAX_GROUP])
    return {peer: offers[peer] for peer in first}


def roster_of(
    line: Mapping[PeerId, Contribution], *, leader: PeerId, term: int, most_claimed: int
) -> Roster:
    """The roster of these contributions, which are at least one; claims of tokens are clipped."""
    one = next(iter(line.values()))
    return Roster(
        round=one.round,
        fragment=one.fragment,
        term=term,
        leader=leader,
        anchor=one.anchor,
        entries=tuple(
            Entry(peer, said.digest, said.size_bytes, min(said.tokens, most_claimed))
            for peer, said in sorted(line.items())
        ),
    )


def shares(roster: Roster, refused: Collection[Digest], max_tokens: int) -> tuple[Share, ...]:
    """What is averaged, weighted by tokens within [max / 8, max], without refused payloads.

    Everybody refuses the same bytes, so everybody averages the same.
    """
    least = max(1, max_tokens // LEAST_SHARE)
    counted = {
        entry.digest: min(max(entry.tokens, least), max_tokens)
        for entry in roster.entries
        if entry.digest not in refused
    }
    total = sum(counted.values())
    return tuple(Share(digest, roster.round, n / total) for digest, n in counted.items())


def fault_of_roster(
    roster: Roster,
    *,
    rounds: int,
    fragments: int,
    most_claimed: int,
    own: Contribution | None,
    sizes: Collection[int] = (),
) -> str | None:
    """Why no honest leader signs this; None: it may.

    Args:
        own: what this peer contributed at that place, if it did.
        sizes: that payloads of this fragment may have besides our own's.
    """
    if roster.round >= rounds:
        return f"a roster of round {roster.round}, the run has {rounds}"
    if roster.fragment != roster.round % fragments:
        return f"a roster of fragment {roster.fragment} in round {roster.round}"
    if any(entry.tokens > most_claimed for entry in roster.entries):
        return f"a roster that counts more than {most_claimed} tokens for a peer"
    for entry in roster.entries:
        if own and entry.size_bytes != own.size_bytes and entry.size_bytes not in sizes:
            return f"a roster of payloads of {entry.size_bytes} bytes, not {own.size_bytes}"
    return None


def fault_of_statement(
    said: Contribution | Later,
    *,
    rounds: int,
    fragments: int,
    own: Contribution | None,
    sizes: Collection[int] = (),
) -> str | None:
    """Why no honest member says this; None: it may.

    Args:
        own: what this peer contributed at that place, if it did.
        sizes: that payloads of this fragment may have besides our own's.
    """
    if isinstance(said, Later):
        return f"at round {said.round}, the run has {rounds}" if said.round > rounds else None
    if said.round >= rounds:
        return f"a contribution to round {said.round}, the run has {rounds}"
    if said.fragment != said.round % fragments:
        return f"a contribution of fragment {said.fragment} in round {said.round}"
    if own and said.size_bytes != own.size_bytes and said.size_bytes not in sizes:
        return f"a payload of {said.size_bytes} bytes, not {own.size_bytes}"
    if own and said.digest == own.digest:
        return "our own payload offered as its own"
    return None
