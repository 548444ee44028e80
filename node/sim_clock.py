"""Virtual time: a heap of actions, done one after the other, each at its own instant.

Time moves only from one action to the next, and actions due at the same instant are done in
the order in which they were asked for, so nothing depends on the machine it runs on.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any


class Clock:
    """The one clock of a simulated world, and all that is to happen in it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def after(self, delay_s: float, action: Callable[..., None], *arguments: object) -> None:
        """Do it in `delay_s` seconds; at once means after what is being done now."""
        at = self.now + delay_s if delay_s > 0.0 else self.now
        heapq.heappush(self._heap, (at, next(self._order), action, arguments))

    def at(self, when: float, action: Callable[..., None], *arguments: object) -> None:
        """Do it then, or at once if that is over."""
        at = when if when > self.now else self.now
        heapq.heappush(self._heap, (at, next(self._order), action, arguments))

    def run_until(self, end: float) -> None:
        """Do all that is due until `end`, which is then the time."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= end:
            self.now, _, action, arguments = pop(heap)
            action(*arguments)
        self.now = end
