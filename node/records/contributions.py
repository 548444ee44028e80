"""The contribution ledger: who trained how much, read from the records alone.

Each row is what an author's signed record says of its author, so it is the same at every peer
that holds the same records.  Who left or died keeps its row.  An author with a proof of
equivocation has one that says so, with nothing in it.

Totals are claims.  The last few rounds in a record can be checked against the others' records: an
exchange leaves the same receipt at both partners, a roster the same name at all of its members.
So a row also says how many of these rounds somebody else's record confirms, how many it
contradicts, and of how many nobody speaks (yet, or any more; in spsa nobody ever does).  What
this cannot show: authors that lie together, and rounds that are no longer in a record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields

from crdt.schema import ClosedRound, Content, NoView, View
from protocol.ids import Digest, PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One author's row, or the sum of all."""

    peer: str = ""
    name: str = ""
    """As its operator wants it to be called; empty unless one was set."""
    status: str = ""
    """joined, finished, left, as the author says; frozen; or unreadable."""
    tokens: int = 0
    rounds: int = 0
    exchanges: int = 0
    """Rounds with others; the rest is alone."""
    alone: int = 0
    half: int = 0
    """Of those alone: the partner may have applied the exchange."""
    confirmed: int = 0
    """Of the last rounds with others: another record says the same."""
    contradicted: int = 0
    """Another record says something else about the same payloads or the same roster."""
    unconfirmed: int = 0
    """No other record speaks of it."""


def ledger(views: Mapping[PeerId, View], *, is_group: bool) -> tuple[Contribution, ...]:
    """A row for each author, the most tokens first.

    Args:
        is_group: rounds of this run are closed by rosters, not by pairs.
    """
    contents = {author: view for author, view in views.items() if isinstance(view, Content)}
    judge = _Rosters(contents) if is_group else _Pairs(contents)
    rows = (_row(author, view, judge) for author, view in views.items())
    return tuple(sorted(rows, key=lambda row: (-row.tokens, row.peer)))


def total(rows: Iterable[Contribution]) -> Contribution:
    """The sum of the rows."""
    found = list(rows)
    numbers = [field.name for field in fields(Contribution) if field.type == "int"]
    return Contribution(**{name: sum(getattr(row, name) for row in found) for name in numbers})


def told(views: Mapping[PeerId, View], root: Digest, *, is_group: bool) -> dict[str, object]:
    """The ledger for the API: rows, their sum, and the hash of the records they come from."""
    rows = ledger(views, is_group=is_group)
    authors = [asdict(row) for row in rows]
    return {"records": root.hex(), "authors": authors, "sum": asdict(total(rows))}


def _row(author: PeerId, view: View, judge: _Pairs | _Rosters) -> Contribution:
    if isinstance(view, NoView):
        status = "frozen" if view.is_frozen else "unreadable"
        return Contribution(peer=author, status=status)
    totals, member = view.totals, view.member
    verdicts = [judge.verdict(author, closed) for closed in view.closed if closed.theirs]
    return Contribution(
        peer=author,
        name=(member and member.name) or "",
        status=member.status if member else "",
        tokens=totals.tokens,
        rounds=totals.rounds,
        exchanges=totals.exchanges,
        alone=totals.alone,
        half=totals.half,
        confirmed=verdicts.count(True),
        contradicted=verdicts.count(False),
        unconfirmed=verdicts.count(None),
    )


class _Pairs:
    """What partners say of each other's exchanges."""

    def __init__(self, contents: Mapping[PeerId, Content]) -> None:
        self._contents = contents

    def verdict(self, author: PeerId, closed: ClosedRound) -> bool | None:
        """Whether the partner's record has the same receipt; None: it does not speak of it."""
        content = self._contents.get(closed.partner) if closed.partner else None
        spoken = [
            theirs
            for theirs in (content.closed if content else ())
            if closed.theirs == theirs.mine or closed.mine == theirs.theirs
        ]
        if not spoken or closed.mine is None:
            return None
        return all(self._mirrors(author, closed, theirs) for theirs in spoken)

    def _mirrors(self, author: PeerId, closed: ClosedRound, theirs: ClosedRound) -> bool:
        ours = (author, closed.mine, closed.theirs, closed.tokens, closed.their_tokens)
        return ours == (
            theirs.partner,
            theirs.theirs,
            theirs.mine,
            theirs.their_tokens,
            theirs.tokens,
        )


class _Rosters:
    """What members say of rosters that they share."""

    def __init__(self, contents: Mapping[PeerId, Content]) -> None:
        self._members: dict[Digest, dict[PeerId, ClosedRound]] = {}
        for author, content in contents.items():
            for closed in content.closed:
                if closed.theirs:
                    self._members.setdefault(closed.theirs, {})[author] = closed

    def verdict(self, _author: PeerId, closed: ClosedRound) -> bool | None:
        """Whether the others name the same roster in the same way; None: nobody else names it.

        Members who claim more tokens than the roster has are contradicted, all of them: who of
        them lies is not to be seen from here.
        """
        assert closed.theirs is not None
        members = self._members[closed.theirs]
        if len(members) < 2:
            return None
        facts = {(other.round, other.partner, other.their_tokens) for other in members.values()}
        claimed = sum(other.tokens for other in members.values() if other.mine)
        return len(facts) == 1 and claimed <= closed.their_tokens
