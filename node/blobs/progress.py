"""How far the fetch of a blob has come, for the person who waits for it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from pathlib import Path

from node.telemetry import Waits
from protocol.limits import MIB

REPORT_S = 10.0
"""Between two words on how much of a blob is here."""
SPEED_REPORTS = 6
"""A speed is measured over so many: a minute, for a chunk takes that long on a slow line."""


class Report:
    """How much of a blob is here: a wait whose text says so anew every `REPORT_S`."""

    def __init__(self, what: str, source: str, for_s: float, waits: Waits) -> None:
        self._what = what
        self._source = source
        self._for_s = for_s
        self._waits = waits
        self._first_bytes: int | None = None
        """What was here before."""
        self._held_bytes = self._size_bytes = self._donors = 0
        self._came: deque[tuple[float, int]] = deque(maxlen=SPEED_REPORTS + 1)
        """Bytes that came by some time, at each report."""

    async def on(self, fetching: Coroutine[None, None, Path]) -> Path:
        """What comes of `fetching`, reported on meanwhile."""
        try:
            async with asyncio.TaskGroup() as tasks:
                reporting = tasks.create_task(self._report(), name=f"report on {self._what}")
                try:
                    return await fetching
                finally:
                    reporting.cancel()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            self._waits.end(self)

    async def _report(self) -> None:
        now = asyncio.get_running_loop().time
        until = now() + self._for_s
        while True:
            self._waits.begin(self, self.text(now()), self._source, until - now())
            await asyncio.sleep(REPORT_S)

    def told(self, held_bytes: int, size_bytes: int, donors: int) -> None:
        """See `node.blobs.transfers.Progress`."""
        if self._first_bytes is None:
            self._first_bytes = held_bytes
        self._held_bytes, self._size_bytes, self._donors = held_bytes, size_bytes, donors

    def text(self, now: float) -> str:
        """What is waited for, and how far it has come by `now`, seconds of any clock."""
        self._came.append((now, self._held_bytes - (self._first_bytes or 0)))
        if not self._size_bytes:
            return self._what
        (since, before), (_, came) = self._came[0], self._came[-1]
        speed = (came - before) / max(now - since, 1e-3) / MIB
        return (
            f"{self._what}, {self._held_bytes / MIB:.1f} of {self._size_bytes / MIB:.1f} MiB "
            f"are here, {speed:.2f} MiB/s from {self._donors} donors"
        )
