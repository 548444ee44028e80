"""Who can be exchanged with now, and why not the others.

Presence says who is alive and what it does; the record says what it wants in the long run.
Presence is newer, so without a sign of life nobody is a candidate, and a record only speaks
against one: it left, it equivocated; who finished may still be asked.  A peer whose record has
not arrived yet is a candidate: its presence is signed, and records are seconds behind.

Pure: the same views and presences give the same answer, sorted by peer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from crdt.schema import Content, NoView, View
from protocol.algorithms import DilocoConfig, SpsaConfig, SyncConfig, TrainerConfig
from protocol.ids import PeerId
from protocol.messages import Presence


@dataclass(frozen=True, slots=True)
class Standing:
    """One known peer: whether it can be exchanged with, and why (not)."""

    peer: PeerId
    is_candidate: bool
    reason: str


TRAINING = ("training",)
GROUPED = ("training", "paused")
"""Who averages in a group is led on by whoever has the roster, and that one may have paused by
then; asked to contribute, it says that it will not."""
ANSWERING = ("training", "paused", "finished")
"""In spsa who trains no more still adds what others measure, and gives what they lack."""


def states_of(trainer: TrainerConfig | None) -> tuple[str, ...]:
    """What a member does that this trainer exchanges with."""
    match trainer:
        case DilocoConfig() | SyncConfig():
            return GROUPED
        case SpsaConfig():
            return ANSWERING
        case _:
            return TRAINING


def standings(
    views: Mapping[PeerId, View],
    live: Iterable[Presence],
    *,
    me: PeerId,
    states: tuple[str, ...] = TRAINING,
) -> tuple[Standing, ...]:
    """Everyone of whom there is a record or a sign of life, but for `me`; sorted.

    Args:
        live: the presences that hold now; who keeps them lets them expire.
        states: what a candidate does.
    """
    seen = {presence.peer: presence for presence in live}
    found = []
    for peer in sorted(views.keys() | seen.keys()):
        if peer != me:
            presence = seen.get(peer)
            against = _against(views.get(peer), presence, states)
            found.append(Standing(peer, not against, against or _state(presence)))
    return tuple(found)


def candidates(standings: tuple[Standing, ...]) -> tuple[PeerId, ...]:
    """The peers that the trainer may choose a partner from, sorted."""
    return tuple(standing.peer for standing in standings if standing.is_candidate)


def _state(presence: Presence | None) -> str:
    return presence.state if presence else ""


def _against(view: View | None, presence: Presence | None, states: tuple[str, ...]) -> str:
    """Why a peer is no candidate; empty if it is one."""
    if isinstance(view, Content) and view.member:
        status = view.member.status
        if status == "left" or (status == "finished" and presence is None):
            return f"{status} the run"
    if isinstance(view, NoView):
        return view.reason
    if presence is None:
        return "no sign of life"
    return "" if presence.state in states else presence.state
