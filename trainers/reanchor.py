"""Whose slow weights a peer takes over that has been away too long to exchange with the others.

Old weights in an exchange pull the partner back.  So peers whose rounds are far apart refuse each
other, and the one behind takes over the slow weights and the outer momentum of one ahead.  That
it is behind two peers must say, or one if there is only one.  The weights come from one of them,
and are used if they lie near those of others, where any can tell (`node.late_join`).
"""

from __future__ import annotations

from collections.abc import Mapping

from protocol.algorithms import NolocoConfig, TrainerConfig
from protocol.ids import PeerId, Round

AWAY_ROUNDS = 4
"""Who was away takes over weights from here on: nothing of its own is lost but what it did alone.
A guess; a peer that is there, but slow, has the run's `reanchor_rounds` instead."""
BACK_S = 3.0
"""How long who comes back looks for members that are ahead.  They speak once a second."""
AGAIN_S = 1.0
"""Until somebody is named again: weights may be refused, or lost on the way."""
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


class Watch:
    """Notices that one peer is left behind: by fewer rounds once it was away.

    Only where pairs exchange: in a group rosters say so (`trainers.straying`), in spsa the logs.
    """

    def __init__(self, trainer: TrainerConfig) -> None:
        self._most = trainer.reanchor_rounds if isinstance(trainer, NolocoConfig) else None
        self._not_before = 0.0
        self._back_until = 0.0
        """Until then what is seen of the members is what we come back to."""
        self._behind_at: Round | None = None
        """Where we last were left behind, since we came back."""

    def was_away(self, now: float) -> None:
        """Nobody was there, or we were not."""
        self._back_until = now + BACK_S
        self._behind_at = None

    def source(self, round: Round, others: Mapping[PeerId, Round], now: float) -> PeerId | None:
        """As the function of this name; named again every `AGAIN_S` until the round is ahead."""
        if self._most is None or now < self._not_before:
            return None
        is_back = now < self._back_until
        most = AWAY_ROUNDS if is_back else self._most
        found = source(round, others, most)
        if found:
            before, self._behind_at = self._behind_at, round
            if is_back and (before is None or round < before + most):
                self._back_until = now + AGAIN_S + BACK_S  # weights are still to come
            self._not_before = now + AGAIN_S
        return found
