"""What a node may send and receive in a second, as its operator says.

A token bucket that may be overdrawn: who waits for it is let through as soon as what was spent
before is paid for, but for a little, so that a large piece needs no large bucket.  All peers of a
node share two, and whoever waits is served in turn.  Trio side.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

BYTES_PER_MBIT = 1_000_000 / 8
SLACK_S = 0.02
"""What may be spent ahead: the line is never idle because a timer is late, and no router notices.
A guess."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """Both directions of one node; None: as much as the line carries."""

    up: Budget | None = None
    down: Budget | None = None


class Budget:
    """Of one direction."""

    def __init__(self, mbit_per_s: float) -> None:
        assert mbit_per_s > 0
        self._bytes_per_s = mbit_per_s * BYTES_PER_MBIT
        self._paid_at = 0.0
        """When what was spent so far is paid for, by trio's clock."""
        self._turn = trio.Lock()

    def charge(self, size_bytes: int) -> None:
        """Spend without waiting; others wait the longer."""
        self._paid_at = max(self._paid_at, trio.current_time()) + size_bytes / self._bytes_per_s

    async def spend(self, size_bytes: int) -> None:
        """Wait until all that was spent before is paid for, then spend."""
        async with self._turn:
            while (owed_s := self._paid_at - trio.current_time()) > SLACK_S:  # noqa: ASYNC110
                await trio.sleep(owed_s)
            self.charge(size_bytes)

    def bytes_in(self, seconds: float) -> int:
        """What may be spent meanwhile."""
        return int(self._bytes_per_s * seconds)


def budgets(up_mbit: float, down_mbit: float) -> Budgets:
    """Of these megabits a second; 0: no limit."""
    return Budgets(
        up=Budget(up_mbit) if up_mbit else None, down=Budget(down_mbit) if down_mbit else None
    )
