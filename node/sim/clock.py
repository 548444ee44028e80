"""Virtual time: actions, done one after the other, each at its own instant.

Time moves only from one action to the next, and actions due at the same instant are done in
the order in which they were asked for, so nothing depends on the machine it runs on.

What is due soon is in a heap, what is due later in unsorted slots: most of it are deadlines of
a minute, and a heap of a hundred thousand does not fit into a processor's cache.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from typing import Any

SLOT_S = 1 / 16
"""A power of two: a time divided by it and multiplied again is the same time."""

Entry = tuple[float, int, Callable[..., None], tuple[Any, ...]]


def world_time(when: float, skew_s: float) -> float:
    """When a clock that is `skew_s` ahead shows `when`, or a little later: never an ulp before."""
    at = when - skew_s
    while at + skew_s < when:
        at = math.nextafter(at, math.inf)
    return at


class Clock:
    """The one clock of a simulated world, and all that is to happen in it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self._near: list[Entry] = []
        """A heap of what is due before `_edge`."""
        self._edge = 0.0
        self._far: dict[int, list[Entry]] = {}
        """The rest by slot."""
        self._slots: list[int] = []
        """A heap of the slots that hold something."""

    def after(self, delay_s: float, action: Callable[..., None], *arguments: object) -> None:
        """Do it in `delay_s` seconds; at once means after what is being done now."""
        self.at(self.now + delay_s, action, *arguments)

    def at(self, when: float, action: Callable[..., None], *arguments: object) -> None:
        """Do it then, or at once if that is over."""
        if when < self.now:
            when = self.now
        entry = (when, next(self._order), action, arguments)
        if when < self._edge:
            heapq.heappush(self._near, entry)
            return
        slot = int(when / SLOT_S)
        if slot in self._far:
            self._far[slot].append(entry)
        else:
            self._far[slot] = [entry]
            heapq.heappush(self._slots, slot)

    def run_until(self, end: float) -> None:
        """Do all that is due until `end`, which is then the time."""
        near, pop = self._near, heapq.heappop
        while True:
            while near and near[0][0] <= end:
                self.now, _, action, arguments = pop(near)
                action(*arguments)
            if near or not self._slots or self._slots[0] * SLOT_S > end:
                break
            slot = pop(self._slots)
            near = self._near = self._far.pop(slot)
            heapq.heapify(near)
            self._edge = (slot + 1) * SLOT_S
        self.now = end
