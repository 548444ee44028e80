"""Notices that this machine's wall clock is wrong, by what live members say theirs shows.

Nothing in a run is decided by wall clocks; but addresses in the DHT expire by them, so a node whose
clock is hours off is not found, and finds nobody, and should be told why.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from protocol.messages import Presence

log = logging.getLogger(__name__)

WRONG_S = 300.0
"""A presence is ten seconds old at most; address records bear ten minutes."""


def ahead_s(live: Sequence[Presence], unix_s: float) -> float | None:
    """By how much our clock is ahead of the middle one of the members'; None: nobody is there."""
    offsets = sorted(unix_s - presence.unix_s for presence in live)
    return offsets[len(offsets) // 2] if offsets else None


class WallClock:
    """Says once that the clock is wrong, and once that it is right again."""

    def __init__(self) -> None:
        self._is_wrong = False

    def compare(self, live: Sequence[Presence], unix_s: float) -> None:
        """Look at what the members' clocks showed."""
        found_s = ahead_s(live, unix_s)
        if found_s is None:
            return
        is_wrong = abs(found_s) > WRONG_S
        if is_wrong and not self._is_wrong:
            log.warning(
                "clock of this machine: found %.0f s %s of that of %d members, expected less than "
                "%.0f s; addresses expire by it, so others may not find this node: set the clock",
                abs(found_s), "ahead" if found_s > 0 else "behind", len(live), WRONG_S,
            )  # fmt: skip
        elif self._is_wrong and not is_wrong:
            log.info("clock of this machine: as those of the members again")
        self._is_wrong = is_wrong
