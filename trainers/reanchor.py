"""Whose slow weights a peer takes over that has been away too long to exchange with the others.

Old weights in an exchange pull the partner back.  So peers whose rounds are far apart refuse each
other, and the one behind takes over the slow weights and the outer momentum of one ahead.  Nobody
does that on the word of fewer than two peers, or of one if there is only one.
"""

from __future__ import annotations

from collections.abc import Mapping

from protocol.ids import PeerId, Round

AWAY_ROUNDS = 4
"""Who was away takes over weights from here on: nothing of its own is lost but what it did alone.
A guess; a peer that is there, but slow, has the run's `reanchor_rounds` instead."""
LEAST_AHEAD = 2
"""Peers that must be ahead, if so many are there: one may lie, or be mistaken."""


def is_far(one: Round, other: Round, most: int) -> bool:
    """Whether two rounds are too far apart for an exchange."""
    return abs(one - other) >= most


def source(round: Round, others: Mapping[PeerId, Round], most: int) -> PeerId | None:
    """Whose weights to take over; None: nobody is that far ahead, or too few are.

    Of those ahead the one in the middle: the furthest may have claimed any round.

    Args:
        others: the members that are alive, with the rounds they say they are in.
        most: rounds apart at which no exchange is possible any more.
    """
    ahead = sorted(
        (other_round, peer)
        for peer, other_round in others.items()
        if other_round > round and is_far(round, other_round, most)
    )
    if not ahead or len(ahead) < min(LEAST_AHEAD, len(others)):
        return None
    return ahead[len(ahead) // 2][1]
