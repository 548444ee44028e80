"""The two processes of one contestant in `scripts/bench rpc`, as who started them sees them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ORDER_S = 120.0
"""One order, also on the slowest line: 64 MiB at 100 Mbit/s take 6 s."""
START_S = 30.0
END_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a process runs: what is put in front of its command, and its address there."""

    enter: Sequence[str] = ()
    host: str = "127.0.0.1"


class Failed(Exception):
    """A process of a contestant ended, or did not answer in time."""


class Pair:
    """One that listens and one that has dialled it."""

    def __init__(self, name: str, processes: Sequence[asyncio.subprocess.Process]) -> None:
        self.name = name
        self._listener, self._dialler = processes

    async def meet(self, *, both: bool) -> None:
        """Connect them; `both`: either may ask the other then."""
        listens = await self._answer(self._listener, START_S)
        await self._answer(self._dialler, START_S)
        dialled = await self.order("connect", addr=str(listens["addr"]))
        if both:
            await self.order("connect", back=True, addr=str(dialled["addr"]))

    async def order(
        self, what: str, *, back: bool = False, **terms: int | str
    ) -> dict[str, float | str]:
        """What came of it.  Args: back: the listener is to ask the dialler."""
        process = self._listener if back else self._dialler
        assert process.stdin is not None
        process.stdin.write((json.dumps({"do": what, **terms}) + "\n").encode())
        return await self._answer(process, ORDER_S)

    async def _answer(
        self, process: asyncio.subprocess.Process, within_s: float
    ) -> dict[str, float | str]:
        assert process.stdout is not None
        try:
            async with asyncio.timeout(within_s):
                line = await process.stdout.readline()
        except TimeoutError:
            raise Failed(f"{self.name} did not answer within {within_s:g} s") from None
        if not line:
            raise Failed(f"a process of {self.name} has ended; what it said is above")
        found: dict[str, float | str] = json.loads(line)
        return found


@asynccontextmanager
async def pair(name: str, places: Sequence[Place], *, both: bool) -> AsyncIterator[Pair]:
    """Start both and connect them; end them afterwards."""
    processes: list[asyncio.subprocess.Process] = []
    try:
        for place in places:
            command = (*place.enter, sys.executable, "-m", f"node.bench.rpc_{name}", place.host)
            pipe = asyncio.subprocess.PIPE
            processes.append(
                await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=pipe, stdout=pipe)
            )
        made = Pair(name, processes)
        await made.meet(both=both)
        yield made
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
        async with asyncio.timeout(END_S):
            for process in processes:
                await process.wait()
