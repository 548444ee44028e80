"""What a member of a group knows of the others: who is there, and where each said it is.

A peer that leaves the view may be dead, or may have finished the run and still answer, so it
counts as there for a little longer.  What a peer said is believed until it says something else;
whether it was said since this peer's round began is remembered, for what was said before may
be overtaken by now.  Bounded: so many peers, and one statement of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from protocol.ids import Digest, PeerId, Round
from protocol.rosters import Contribution, Later
from trainers.roster import Place, Where, greater, where

MAX_PEERS = 64
"""As many as the presence view holds."""
QUIET_REPEATS = 2
"""A peer that left the view counts as there for so many repeats: one of them may be lost."""
UNREACHABLE_AFTER = 2
"""Messages in a row that did not get through: nobody waits for that peer any more."""
MAX_OFFERS = 3
"""Different payloads of one peer in one round that are looked at.  A restarted node makes its
payload anew once; each one costs a fetch."""


@dataclass(slots=True)
class _Peer:
    present: bool = False
    quiet: int = 0
    """Repeats since it left the view or was heard."""
    failures: int = 0
    said: Contribution | Later | None = None
    fresh: bool = False
    """Said since our round began."""
    offer: Contribution | None = None
    """To our round; stands when the peer has gone on."""
    asked: Place | None = None
    """It waits there, and was not answered."""
    names: set[Digest] = field(default_factory=set)
    """Of its offers to our round."""

    @property
    def is_there(self) -> bool:
        return self.present or self.quiet <= QUIET_REPEATS

    def is_at(self, place: Place) -> bool:
        return self.said is not None and where(self.said).place == place


class Peers:
    """The other peers, as one member sees them; everything is listed in the order of ids."""

    def __init__(self) -> None:
        self._peers: dict[PeerId, _Peer] = {}

    # --- facts ------------------------------------------------------------------------------

    def members(self, members: Sequence[PeerId]) -> None:
        """These train now."""
        view = set(sorted(members)[:MAX_PEERS])
        for id, peer in self._peers.items():
            if peer.present and id not in view:
                peer.present, peer.quiet = False, 0
        for id in sorted(view):
            known = self._known(id)
            if known:
                known.present = True

    def heard(self, sender: PeerId, said: Contribution | Later, here: Place) -> None:
        """Take in where it is, and what it offers."""
        peer = self._known(sender)
        if peer is None:
            return
        peer.quiet = peer.failures = 0
        if isinstance(said, Contribution):
            peer.asked = where(said).place
        if isinstance(said, Contribution) and where(said).place == here:
            if len(peer.names) < MAX_OFFERS:
                peer.names.add(said.digest)
            if said.digest in peer.names:
                peer.offer = said
        is_late = peer.said is not None and peer.fresh and said.round < peer.said.round
        if not (is_late and peer.said and peer.said.round == here[0]):
            peer.said, peer.fresh = said, True

    def unreachable(self, id: PeerId) -> None:
        """A message did not get through; who has left the view is gone."""
        peer = self._peers.get(id)
        if peer:
            peer.failures += 1
            if not peer.present:
                peer.quiet = QUIET_REPEATS + 1

    def repeat(self) -> None:
        """Time passes."""
        for peer in self._peers.values():
            peer.quiet += not peer.present

    def begin(self, here: Place) -> None:
        """Our round begins here: who is here already waits for an answer."""
        for peer in self._peers.values():
            peer.fresh = peer.is_at(here)
            peer.offer = None
            peer.names.clear()
            if peer.fresh and isinstance(peer.said, Contribution):
                peer.offer, peer.asked = peer.said, here

    def _known(self, id: PeerId) -> _Peer | None:
        """Its facts; None: there are too many peers, and none that is gone makes room."""
        if id not in self._peers:
            if len(self._peers) >= MAX_PEERS:
                gone = [other for other, peer in self._peers.items() if not peer.is_there]
                if not gone:
                    return None
                del self._peers[gone[0]]
            self._peers[id] = _Peer()
            self._peers = dict(sorted(self._peers.items()))
        return self._peers[id]

    # --- questions --------------------------------------------------------------------------

    @property
    def there(self) -> list[PeerId]:
        """Those in the view, and those that left it or were heard just now."""
        return [id for id, peer in self._peers.items() if peer.is_there]

    @property
    def everyone(self) -> list[PeerId]:
        """Those that are gone, too."""
        return list(self._peers)

    def is_there(self, id: PeerId) -> bool:
        """It is one of `there`."""
        return id in self._peers and self._peers[id].is_there

    @property
    def offers(self) -> dict[PeerId, Contribution]:
        """The contributions to our round."""
        return {
            id: peer.offer
            for id, peer in self._peers.items()
            if peer.is_there and peer.offer is not None
        }

    @property
    def leaving(self) -> list[PeerId]:
        """Who contributed and left the view just now: it may be dead, or have the roster."""
        return [id for id in self.offers if not self._peers[id].present]

    def present_of(self, ids: Collection[PeerId]) -> list[PeerId]:
        """Those that are in the view and can be reached."""
        return [
            id
            for id, peer in self._peers.items()
            if id in ids and peer.present and peer.failures < UNREACHABLE_AFTER
        ]

    def awaited(self, past: Collection[Place], *, has_time: bool) -> list[PeerId]:
        """Who may still contribute: is there, and has not said that it is here or elsewhere.

        Args:
            has_time: who said since the round began that it is on its way is waited for.
        """

        def may_come(peer: _Peer) -> bool:
            if peer.offer or peer.said is None:
                return not peer.offer
            is_coming = not peer.fresh or (has_time and _is_coming(peer.said))
            return is_coming and where(peer.said).place in past

        return self.present_of([id for id, peer in self._peers.items() if may_come(peer)])

    def tokens_to(self, here: Place) -> int:
        """Tokens of the roster that led here, as who is here says; 0: nobody is."""
        said = [peer.said for _, peer in self._peers.items() if peer.said and peer.is_at(here)]
        return max((one.anchor_tokens for one in said), default=0)

    def take_asked(self) -> list[tuple[PeerId, Place]]:
        """Who waits for an answer, and where; they are not named again."""
        asked = [(id, peer.asked) for id, peer in self._peers.items() if peer.asked is not None]
        for peer in self._peers.values():
            peer.asked = None
        return [(id, place) for id, place in asked if place is not None]

    def after(self, round: Round) -> list[PeerId]:
        """Who is in the view and says that it is at a later round."""
        return [
            id
            for id, peer in self._peers.items()
            if peer.present and peer.said is not None and peer.said.round > round
        ]

    def elsewhere(self, here: Place, past: Collection[Place]) -> list[PeerId]:
        """Who is in the view and says that it is neither here nor on the way here."""
        places = {here, *past}
        return [
            id
            for id, peer in self._peers.items()
            if peer.present and peer.said and where(peer.said).place not in places
        ]

    def may_lead_on(self, round: Round, rounds: int) -> list[PeerId]:
        """Who is further and may have the roster of this round: it has not answered `Later`.

        One that finished says so to all, whatever it has.
        """
        ahead = [(id, self._peers[id].said) for id in self.after(round)]
        return [id for id, said in ahead if isinstance(said, Contribution) or _is_at(said, rounds)]

    def to_follow(
        self, me: PeerId, here: Where, past: Collection[Place], but: Collection[PeerId]
    ) -> PeerId | None:
        """Whose history is to be taken over instead of ours; None: ours goes on.

        That of two that agree, if it is greater.  Who is alone on its own follows two that agree
        in any case, or three of four peers would wait for the one that was cut off for ever; and
        it believes one, if nobody is on ours or may be.
        """
        spoken = [(where(p.said), id) for id, p in self._peers.items() if p.said and p.is_there]
        others = [(at, id) for at, id in spoken if at.place != here.place and at.place not in past]
        counts = Counter(at.place for at, _ in others)
        agreed = [(at, id) for at, id in others if counts[at.place] >= 2]
        lowest = min([me, *({id for _, id in spoken} - {id for _, id in others})])
        is_silent = any(peer.present and peer.said is None for peer in self._peers.values())
        if len(others) < len(spoken):
            found = greater(agreed, here, lowest)
        else:
            found = agreed or ([] if is_silent else greater(others, here, lowest))
        return next((id for _, id in found if id not in but), None)


def _is_coming(said: Contribution | Later) -> bool:
    return isinstance(said, Contribution) or said.is_coming


def _is_at(said: Contribution | Later | None, round: int) -> bool:
    return said is not None and said.round == round
