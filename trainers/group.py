"""What one member of a group knows of the round that is open, says to the others, and fetches.

Where everybody stands, what each contributes, which payloads are here, and the last rosters that
were applied, with which others are led on.  What is averaged is decided in `trainers.agreement`.

Source: docs/algorithms.md, diloco.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from protocol.algorithms import MAX_GROUP
from protocol.ids import Digest, PeerId, Round
from protocol.rosters import Contribution, Later, SignedRoster
from trainers.effects import Agreed, Blame, Closed, Effect, Send, Wait
from trainers.events import SnapshotDone
from trainers.holding import Holding
from trainers.peers import Peers
from trainers.roster import (
    SEAT_ROUNDS,
    KnownRoster,
    Place,
    Where,
    fault_of_statement,
    first_in_line,
    where,
)

KEPT_ROSTERS = 2
"""With their payloads, for whoever comes later.  Who is further behind takes over a member's
weights, which is cheaper than the payloads of more rounds."""
KEPT_STEPS = 6
"""The same where a round is a single step: so many pass while a joiner is sent the weights."""
FETCHES_TRIED = 2
"""Nobody waits for a payload that could not be had so often."""


@dataclass(slots=True)
class Open:
    """The facts of the open round."""

    own: Contribution | None = None
    """What this peer contributes; its payload is held."""
    mine: Digest | None = None
    """The worker's open snapshot; None if the worker has lost it."""
    said_later: bool = False
    """Somebody was told not to wait for us."""
    chosen: KnownRoster | None = None
    """What is averaged."""
    fallback: KnownRoster | None = None
    """Of a member that should not lead, leaving others out: taken if the term brings no other."""
    furthest: dict[PeerId, Round] = field(default_factory=dict)
    """The highest round that each said it is in since then: who closed a roster goes on."""
    is_applying: bool = False
    refused: set[Digest] = field(default_factory=set)
    """Payloads that are not what they must be."""
    seen: set[Digest] = field(default_factory=set)
    """Rosters that were looked at, with their signatures."""
    term: int = 0
    silent: set[PeerId] = field(default_factory=set)
    """Led a term that brought no roster."""
    since: float = 0.0
    """Our contribution was made."""
    close_at: float = 0.0
    """From then on the leader closes the roster with what it holds."""
    until: float | None = None
    """Of what is waited for: a roster, or its payloads."""
    waits_for: tuple[str, PeerId | None] | None = None


class Group:
    """One member's view of the group."""

    def __init__(
        self,
        me: PeerId,
        out: list[Effect],
        *,
        rounds: int,
        fragments: int,
        max_tokens: int,
        most_claimed: int,
        kept_rosters: int,
        sizes: Sequence[Collection[int]] = (),
    ) -> None:
        """Args: sizes: for each fragment those that its payloads may have; empty: ours alone."""
        self.me = me
        self.out = out
        self.rounds = rounds
        self.fragments = fragments
        self.max_tokens, self.most_claimed = max_tokens, most_claimed
        self._sizes = sizes
        self.peers = Peers()
        self.holding = Holding(out)
        self.here = Where(Round(0), 0, Digest(b""))
        self.open = Open()
        self._kept_rosters = kept_rosters
        self.kept: list[KnownRoster] = []
        """The newest that were applied, oldest first: each leads to the next, the last to here."""
        self._was_left_out = False
        """Of a roster that was full."""
        self._line: dict[PeerId, Contribution] | None = None
        self._seats: dict[PeerId, Round] = {}
        """In which round each peer was in a roster last."""

    @property
    def past(self) -> set[Place]:
        """Places from which we can lead others here."""
        return {known.place for known in self.kept}

    @property
    def fragment(self) -> int:
        """That the open round averages."""
        return self.here.round % self.fragments

    def sizes_of(self, fragment: int) -> Collection[int]:
        """That payloads of a fragment may have besides our own's."""
        return self._sizes[fragment] if fragment < len(self._sizes) else ()

    @property
    def line(self) -> dict[PeerId, Contribution]:
        """The contributions that the roster of this round has room for."""
        if self._line is None:
            self._line = self._first_in_line()
        return self._line

    def forget_line(self) -> None:
        """Something was said or done: it may be another now."""
        self._line = None

    def _first_in_line(self) -> dict[PeerId, Contribution]:
        offers, own = self.peers.offers, self.open.own
        refused = self.open.refused
        offers = {id: said for id, said in offers.items() if said.digest not in refused}
        if own:
            sizes = {own.size_bytes, *self.sizes_of(own.fragment)}
            offers = {id: said for id, said in offers.items() if said.size_bytes in sizes}
            offers[self.me] = own
        return first_in_line(offers, self._seats)

    @property
    def is_outside(self) -> bool:
        """The group is full without us: follow, and contribute nothing."""
        return self._was_left_out and len(self.peers.present_of(self._seats)) >= MAX_GROUP

    @property
    def is_ready(self) -> bool:
        """What is averaged is decided, and here."""
        chosen = self.open.chosen
        return chosen is not None and not self.missing(chosen)

    @property
    def is_called(self) -> bool:
        """Others have contributed to the round that we train for."""
        o = self.open
        if o.own:  # the steps are of the next one
            return self.is_ready and bool(self.peers.after(self.here.round))
        is_free = not (o.chosen or o.said_later or self.is_outside)
        return is_free and bool(self.peers.offers)

    @property
    def hopeless(self) -> list[Digest]:
        """Payloads of the chosen roster that could not be had again and again."""
        missing = self.missing(self.open.chosen) if self.open.chosen else []
        return [digest for digest in missing if self.holding.failures(digest) >= FETCHES_TRIED]

    def missing(self, known: KnownRoster) -> list[Digest]:
        """Payloads of a roster that are still to come."""
        refused, has = self.open.refused, self.holding.has
        return [digest for digest in known.payloads if not has(digest) and digest not in refused]

    # --- from round to round ----------------------------------------------------------------

    def begin(self, here: Where) -> None:
        """A round opens here; the one before is over."""
        self.here, self.open = here, Open()
        self.peers.begin(here.place)

    def end(self) -> KnownRoster | None:
        """The outer step is taken; the roster of it, None: there was nobody else."""
        chosen = self.open.chosen
        if chosen is None:
            self.kept.clear()  # nothing leads others here
            return None
        self.kept = [*self.kept[1 - self._kept_rosters :], chosen]
        for entry in chosen.roster.entries:
            self._seats[entry.peer] = self.here.round
        oldest = self.here.round - SEAT_ROUNDS
        self._seats = {id: round for id, round in self._seats.items() if round > oldest}
        if self.open.own:
            is_full = len(chosen.roster.entries) == MAX_GROUP
            self._was_left_out = is_full and not chosen.names(self.me)
        return chosen

    def closed(self, known: KnownRoster | None, tokens: int) -> Closed:
        """What became of the open round: it was averaged by this roster, or alone."""
        receipt = Agreed(known.roster, known.digest) if known else None
        reason = "" if receipt else "nobody else trains"
        if known and known.names(self.me) and len(known.payloads) == 1:
            receipt, reason = None, "nobody else contributed"
        return Closed(self.here.round, tokens, receipt, False, reason)

    # --- what is said -----------------------------------------------------------------------

    def say(self, message: Contribution | SignedRoster) -> None:
        """Tell all that are there."""
        for peer in self.peers.there:
            self.out.append(Send(peer, message))

    def later(self, *, is_coming: bool = False) -> Later:
        """Where we are."""
        return Later(
            round=self.here.round,
            anchor=self.here.anchor,
            anchor_tokens=self.here.tokens,
            is_coming=is_coming,
        )

    def offer(self, made: SnapshotDone, tokens: int) -> Contribution:
        """Our contribution to the open round."""
        here = self.here
        return Contribution(
            round=here.round,
            fragment=made.fragment,
            anchor=here.anchor,
            anchor_tokens=here.tokens,
            digest=made.digest,
            size_bytes=made.size_bytes,
            tokens=max(1, min(tokens, self.most_claimed)),
        )

    def on_said(self, sender: PeerId, said: Contribution | Later) -> None:
        """A member says where it is, and perhaps what it contributes."""
        at = where(said)
        own = self.open.own if at.place == self.here.place else None
        fault = fault_of_statement(
            said,
            rounds=self.rounds,
            fragments=self.fragments,
            own=own,
            sizes=self.sizes_of(own.fragment) if own else (),
        )
        if fault:
            self.out.append(Blame(sender, fault))
            return
        self.peers.heard(sender, said, self.here.place)
        if self.open.chosen and self.peers.is_there(sender):
            furthest = self.open.furthest
            furthest[sender] = max(at.round, furthest.get(sender, at.round))
        is_unknown = self.here.round > 0 and not self.here.tokens  # after a restart
        if at.place == self.here.place and is_unknown:
            self.here = Where(at.round, at.tokens, at.anchor)
        if isinstance(said, Later):
            self._lead_on(sender, at.place)

    def answer(self, *, will_contribute: bool, is_coming: bool) -> None:
        """Tell who contributes that we do not, or lead it on, or say that we are elsewhere.

        Args:
            will_contribute: to this round, soon.
            is_coming: nothing but the average keeps us from the next round.
        """
        o = self.open
        for peer, place in self.peers.take_asked():
            if place == self.here.place:
                if o.chosen:
                    self.out.append(Send(peer, o.chosen.signed))
                elif o.own is None and not will_contribute:
                    o.said_later = True
                    self.out.append(Send(peer, self.later()))
            elif place in self.past:
                self._lead_on(peer, place)
            else:
                self.out.append(Send(peer, self.later(is_coming=is_coming)))

    def _lead_on(self, peer: PeerId, place: Place) -> None:
        """Send the rosters that lead from there to here."""
        places = [known.place for known in self.kept]
        if place in places:
            for known in self.kept[places.index(place) :]:
                self.out.append(Send(peer, known.signed))

    # --- payloads ---------------------------------------------------------------------------

    def fetch(self) -> None:
        """Ask for what the roster names; while there is none, for what it may name."""
        o = self.open
        if o.chosen:
            roster = o.chosen.roster
            others = [roster.leader, *(entry.peer for entry in roster.entries), *self.peers.there]
            for entry in roster.entries:
                if entry.digest not in o.refused:
                    self._want(entry.digest, entry.size_bytes, [entry.peer, *others])
            if not self.is_ready and o.until is not None:
                self.wait(f"the payloads of round {self.here.round}", None, o.until)
        elif o.own:
            for peer, said in self.line.items():
                self._want(said.digest, said.size_bytes, [peer])

    def _want(self, digest: Digest, size_bytes: int, sources: list[PeerId]) -> None:
        if not self.holding.has(digest):
            self.holding.want(digest, size_bytes, [peer for peer in sources if peer != self.me])

    def release(self, also: Digest | None) -> None:
        """Let go of all payloads but those that this or a kept round needs, and `also`."""
        o = self.open
        needed = {digest for known in self.kept for digest in known.payloads}
        needed |= set(o.chosen.payloads) if o.chosen else set()
        needed |= {said.digest for said in self.line.values()}
        needed |= {digest for digest in (o.mine, also, o.own and o.own.digest) if digest}
        self.holding.keep(needed)

    def wait(self, what: str, peer: PeerId | None, until: float) -> None:
        """Say once what this peer waits for."""
        if self.open.waits_for != (what, peer):
            self.open.waits_for = (what, peer)
            self.out.append(Wait(what, peer, until))
