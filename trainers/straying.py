"""When a member takes over another's weights: the group went on without it, or elsewhere.

Judged at each repeat from what the others said (`Peers.to_follow`), and only when two of them find
the others elsewhere while no roster leads on from here: one may still be on its way.  Those that
finished look around, too, and say where they ended.
"""

from __future__ import annotations

from protocol.ids import PeerId
from trainers.agreement import REPEATS
from trainers.effects import CatchUp, Send
from trainers.group import Group
from trainers.roster import Place

STRAYED_REPEATS = 2
"""That find the others elsewhere, with none between that does not.  After a start one is enough:
no roster is under way to who was not there."""
FAREWELLS = 4
"""A finished peer says so often where it is, and then once in the time of a deadline: who ended
elsewhere takes over the right weights, even if they were cut apart all the time."""


class Straying:
    """Looks after one member."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self.source: PeerId | None = None
        """Whose weights are on their way."""
        self._farewells = 0
        self._repeats = 0
        self._useless: set[PeerId] = set()
        """Whose weights could not be had; asked again when no other is left."""

    def look(self, until: float, *, may_move: bool) -> None:
        """Follow the others, if they are elsewhere."""
        group = self._group
        is_led_on = group.open.chosen and not group.hopeless
        if is_led_on or not may_move or self.source:
            return
        source = group.peers.to_follow(group.me, group.here, group.past, self._useless)
        self._repeats = self._repeats + 1 if source else 0
        if source is None:
            self._useless.clear()
        elif self._repeats >= STRAYED_REPEATS:
            self.source = source
            group.wait("the weights of a member that is elsewhere", source, until)
            group.out.append(CatchUp(source))

    def failed(self) -> None:
        """The weights could not be had: another member's, at the next repeat."""
        if self.source:
            self._useless.add(self.source)
        self.source, self._repeats = None, STRAYED_REPEATS - 1

    def arrived(self) -> None:
        """The worker is there, or came up again, with weights that may be old by now."""
        self.source, self._repeats = None, STRAYED_REPEATS - 1

    def heard(self, place: Place) -> None:
        """A member is there: if that is elsewhere, a finished one has to say farewell again."""
        if place not in {self._group.here.place, *self._group.past}:
            self._farewells = 0

    def say_farewell(self, said: int | None = None) -> None:
        """Tell where we ended, those that we do not see any more, too.

        Args:
            said: how often by now, if not as often as it was.
        """
        self._farewells = (self._farewells if said is None else said) + 1
        if self._farewells <= FAREWELLS or self._farewells % REPEATS == 0:
            for peer in self._group.peers.everyone:
                self._group.out.append(Send(peer, self._group.later()))
